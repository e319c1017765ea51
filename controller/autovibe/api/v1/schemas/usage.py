"""What was used: the ledger's lines, and sums of them."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field

from autovibe.api.v1.schemas.base import Number, View
from autovibe.api.v1.schemas.projects import Alert, BudgetInFull, Project


class UsageLine(View):
    recorded_at: datetime
    project: str
    machine: str | None
    type: str
    subtype: str | None
    model: str | None
    amount: Number
    unit: str
    cost: Number | None
    currency: str | None
    exchange_rate: Number | None
    exchange_rate_date: date | None
    cost_cad: Number | None
    reservation: UUID | None
    uuid: UUID
    metadata: dict[str, Any]


class UsageSum(View):
    """Sums; the field that they are grouped by carries its name (`project`, `machine`, `model`, `day`, `type`)."""

    lines: int
    calls: Number
    cad: Number


class CheckpointSum(View):
    """What it cost to reach a checkpoint, and what its machine spent since the one before."""

    checkpoint: UUID
    type: str
    machine: str | None
    created_at: datetime
    since_the_last: Number
    cad: Number


class ModelSum(View):
    model: str
    calls: int
    input: int
    cache_read: int
    cache_write: int
    output: int
    usd: Number | None
    cad: Number | None


class DayUsage(BaseModel):
    day: date
    resource: str
    unit: str
    amount: Number
    cad: Number


class Efficiency(View):
    """Of the machines that have ended since a day."""

    project: str
    type: str
    machines: int
    succeeded: int
    success_rate: float | None
    cad: Number
    cad_per_success: Number | None
    calls: int
    mean_seconds: float | None
    tokens_in: int
    cache_read_rate: float | None


class Resources(BaseModel):
    """All that the caller can see, in short."""

    projects: int
    machines: dict[str, int] = Field(description="By status, of those that have not ended.")
    operations: dict[str, int] = Field(description="By status, of those that have not ended.")
    allocated_cad: Number = Field(description="The total budgets of money.")
    used_cad: Number
    reserved_cad: Number
    today_cad: Number
    alerts: list[Alert]


class ProjectResources(BaseModel):
    """What a project uses."""

    project: Project
    since: date
    days: list[DayUsage]
    efficiency: list[Efficiency]
    budgets: list[BudgetInFull]


class TodayUsage(BaseModel):
    project: str
    day: date
    resources: list[DayUsage]
    budgets: list[BudgetInFull]
