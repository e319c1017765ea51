"""The tables, as classes. The rules that hold are in the database: `schema/`."""

from autovibe.models.base import MONEY, Base
from autovibe.models.hubs import HubCheckpoint, HubExperiment, HubInstance
from autovibe.models.machines import (
    Checkpoint,
    Installation,
    Machine,
    MachineEvent,
    MachineSlot,
    Project,
    Template,
)
from autovibe.models.money import Budget, BudgetAlert, ExchangeRate, Price, Reservation, Usage, UsageKey
from autovibe.models.work import Operation, Run, TaskResult

__all__ = [
    "MONEY",
    "Base",
    "Budget",
    "BudgetAlert",
    "Checkpoint",
    "ExchangeRate",
    "HubCheckpoint",
    "HubExperiment",
    "HubInstance",
    "Installation",
    "Machine",
    "MachineEvent",
    "MachineSlot",
    "Operation",
    "Price",
    "Project",
    "Reservation",
    "Run",
    "TaskResult",
    "Template",
    "Usage",
    "UsageKey",
]
