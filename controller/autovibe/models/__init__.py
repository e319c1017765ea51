"""The tables, as classes. The rules that hold are in the database: `schema/`."""

from autovibe.models.access import (
    ApiKey,
    AuditLine,
    LoginFailure,
    LoginSession,
    ProjectGrant,
    RequestReplay,
    User,
)
from autovibe.models.base import MONEY, Base
from autovibe.models.compute import ComputeRate, SchedulerJob, VmMeter
from autovibe.models.hubs import HubCheckpoint, HubExperiment, HubInstance
from autovibe.models.machines import (
    HUB,
    Checkpoint,
    Installation,
    Machine,
    MachineEvent,
    MachineFile,
    MachineSlot,
    Project,
    Template,
)
from autovibe.models.money import (
    Budget,
    BudgetAlert,
    ExchangeRate,
    Pool,
    PoolLimit,
    Price,
    Reservation,
    Usage,
    UsageKey,
)
from autovibe.models.work import Operation, Run, TaskResult

__all__ = [
    "HUB",
    "MONEY",
    "ApiKey",
    "AuditLine",
    "Base",
    "Budget",
    "BudgetAlert",
    "Checkpoint",
    "ComputeRate",
    "ExchangeRate",
    "HubCheckpoint",
    "HubExperiment",
    "HubInstance",
    "Installation",
    "LoginFailure",
    "LoginSession",
    "Machine",
    "MachineEvent",
    "MachineFile",
    "MachineSlot",
    "Operation",
    "Pool",
    "PoolLimit",
    "Price",
    "Project",
    "ProjectGrant",
    "RequestReplay",
    "Reservation",
    "Run",
    "SchedulerJob",
    "TaskResult",
    "Template",
    "Usage",
    "UsageKey",
    "User",
    "VmMeter",
]
