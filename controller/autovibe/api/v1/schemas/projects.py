"""Projects, their budgets, and the alerts of those."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from autovibe.api.v1.schemas.base import Amount, Body, Number, View, text

Resource = Literal["money", "time", "api_calls", "cpu", "memory", "storage", "network"]
Period = Literal["daily", "weekly", "monthly", "total"]


class ProjectNew(Body):
    name: text(255, 1)
    budget: Amount = Field(gt=0, description="All that it may ever spend, in CAD.")
    greediness: Annotated[Decimal, Field(ge=0, le=1, decimal_places=2)] = Decimal("0.5")
    description: text(10_000) | None = None
    time_zone: text(64, 1) = "UTC"
    when_exhausted: Literal["pause", "end"] = Field("pause", description="What its machines do without money.")
    models: list[text(200, 1)] = Field([], max_length=100, description="AI models that it may use; none: every one.")


class ProjectChange(Body):
    greediness: Annotated[Decimal, Field(ge=0, le=1, decimal_places=2)] | None = None
    description: text(10_000) | None = None
    status: Literal["active", "paused", "completed", "archived"] | None = None
    models: list[text(200, 1)] | None = Field(None, max_length=100, description="An empty list allows every model.")


class Budget(View):
    resource: str
    unit: str
    period: str
    pooled: bool
    period_start: date
    period_end: date | None
    allocated: Number
    each_period: Number
    used: Number
    reserved: Number
    available: Number
    overrun: Number
    hard: bool
    auto_reset: bool
    removed_at: datetime | None
    frozen_at: datetime | None
    freeze_reason: str | None


class BudgetInFull(Budget):
    runs_out: date | None = Field(description="When it is used up at the present pace.")


class BudgetToppedUp(Budget):
    resumed: list[UUID] = Field([], description="Its machines that were paused for want of money and go on.")


class BudgetSet(Body):
    amount: Amount = Field(gt=0)
    auto_reset: bool | None = None
    soft_percent: int = Field(80, ge=1, le=100)


class TopUp(Body):
    amount: Amount = Field(gt=0)


class Project(View):
    uuid: UUID
    name: str
    status: str
    greediness: Number
    description: str | None
    machines: int
    initial_checkpoint: UUID | None
    current_checkpoint: UUID | None
    created_at: datetime
    time_zone: str
    when_exhausted: str
    models: list[str] | None
    budget: Budget | None
    budgets: list[Budget]


class Alert(View):
    uuid: UUID
    created_at: datetime
    project: str
    resource: str
    period: str
    period_start: date
    kind: str
    percent: int | None
    used: Number
    allocated: Number
    overrun: Number
    reason: str | None
    unit: str
    delivered_at: datetime | None
    attempts: int
    last_error: str | None
