"""Budgets, reservations, the ledger, prices and exchange rates."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    ForeignKeyConstraint,
    Integer,
    Numeric,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import UUID as PG_UUID
from sqlalchemy.orm import Mapped, mapped_column

from autovibe.models.base import MONEY, TIMESTAMP, Base, CreatedAt, Json, Key, reference


class Budget(Base):
    """Allocated, used and reserved of one resource in one half-open period of one project.

    It holds from the day `since` on. The database keeps `used + reserved <= allocated + overrun`. A frozen budget
    (`frozen_at`) lends nothing. One that is not `hard` only counts. The next period begins with `base_amount`. A
    `pooled` one is a share of a pool.
    """

    __tablename__ = "resource_budgets"

    uuid: Mapped[Key]
    project_uuid: Mapped[UUID] = reference("projects.uuid")
    resource_type: Mapped[str] = mapped_column(String(50))
    budget_period: Mapped[str] = mapped_column(String(20))
    since: Mapped[date] = mapped_column(Date)
    period_start: Mapped[date] = mapped_column(Date)
    period_end: Mapped[date] = mapped_column(Date)
    allocated_amount: Mapped[Decimal] = mapped_column(MONEY)
    used_amount: Mapped[Decimal] = mapped_column(MONEY, server_default=text("0"))
    reserved_amount: Mapped[Decimal] = mapped_column(MONEY, server_default=text("0"))
    overrun_amount: Mapped[Decimal] = mapped_column(MONEY, server_default=text("0"))
    unit: Mapped[str] = mapped_column(String(20))
    auto_reset: Mapped[bool] = mapped_column(Boolean, server_default=text("true"))
    base_amount: Mapped[Decimal] = mapped_column(MONEY)
    hard: Mapped[bool] = mapped_column(Boolean, server_default=text("true"))
    soft_percent: Mapped[int] = mapped_column(SmallInteger, server_default=text("80"))
    removed_at: Mapped[datetime | None]
    pooled: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    frozen_at: Mapped[datetime | None]
    freeze_reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]


class Pool(Base):
    """An amount of each period that the projects share in proportion to their greediness."""

    __tablename__ = "budget_pools"

    uuid: Mapped[Key]
    resource_type: Mapped[str] = mapped_column(String(50))
    budget_period: Mapped[str] = mapped_column(String(20))
    amount: Mapped[Decimal] = mapped_column(MONEY)
    unit: Mapped[str] = mapped_column(String(20))
    week_start: Mapped[int] = mapped_column(SmallInteger, server_default=text("1"))
    created_at: Mapped[CreatedAt]
    removed_at: Mapped[datetime | None]


class PoolLimit(Base):
    """What a project's share of a pool is at least, and at most."""

    __tablename__ = "pool_limits"

    pool_uuid: Mapped[UUID] = reference("budget_pools.uuid", primary_key=True)
    project_uuid: Mapped[UUID] = reference("projects.uuid", primary_key=True)
    floor_amount: Mapped[Decimal] = mapped_column(MONEY, server_default=text("0"))
    cap_amount: Mapped[Decimal | None] = mapped_column(MONEY)


class Reservation(Base):
    """Part of the budgets of a day, held for something under way. Status: held, settled, released, reaped.

    `amounts`: what it holds beside money, by resource type.
    """

    __tablename__ = "reservations"

    uuid: Mapped[Key]
    project_uuid: Mapped[UUID] = reference("projects.uuid")
    machine_uuid: Mapped[UUID | None] = reference("intelligent_machines.uuid")
    day: Mapped[date] = mapped_column(Date)
    amounts: Mapped[Json]
    amount_cad: Mapped[Decimal] = mapped_column(MONEY)
    settled_cad: Mapped[Decimal | None] = mapped_column(MONEY)
    holder: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str] = mapped_column(String(50))
    status: Mapped[str] = mapped_column(String(20), server_default=text("'held'"))
    expires_at: Mapped[datetime]
    created_at: Mapped[CreatedAt]
    ended_at: Mapped[datetime | None]
    metadata_: Mapped[Json] = mapped_column("metadata")


class BudgetAlert(Base):
    """A budget has reached a level, is used up, or is frozen; its webhook is tried until it is delivered.

    `kind`: level, with its `percent`, or exhausted or frozen, with its `reason`. `passed_at`: the budget was raised
    since, so that it may come again.
    """

    __tablename__ = "budget_alerts"

    uuid: Mapped[Key]
    budget_uuid: Mapped[UUID] = reference("resource_budgets.uuid")
    kind: Mapped[str] = mapped_column(String(10), server_default=text("'level'"))
    percent: Mapped[int | None] = mapped_column(SmallInteger)
    used_amount: Mapped[Decimal] = mapped_column(MONEY)
    allocated_amount: Mapped[Decimal] = mapped_column(MONEY)
    overrun_amount: Mapped[Decimal] = mapped_column(MONEY, server_default=text("0"))
    reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[CreatedAt]
    delivered_at: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    next_attempt_at: Mapped[CreatedAt]
    last_error: Mapped[str | None] = mapped_column(Text)
    passed_at: Mapped[datetime | None]


class Usage(Base):
    """A ledger line: what was used, what it cost, at which price and exchange rate. Never changed, never deleted."""

    __tablename__ = "resource_usage"
    __table_args__ = (
        ForeignKeyConstraint(
            ["machine_uuid", "project_uuid"],
            ["intelligent_machines.uuid", "intelligent_machines.project_uuid"],
            name="resource_usage_machine_of_project",
        ),
        {"postgresql_partition_by": "RANGE (recorded_at)"},
    )

    uuid: Mapped[Key]
    recorded_at: Mapped[datetime] = mapped_column(TIMESTAMP, primary_key=True, server_default=text("now()"))
    project_uuid: Mapped[UUID] = reference("projects.uuid")
    machine_uuid: Mapped[UUID | None]
    checkpoint_uuid: Mapped[UUID | None] = reference("checkpoints.uuid")
    operation_uuid: Mapped[UUID | None] = reference("operations.uuid")
    reservation_uuid: Mapped[UUID | None] = reference("reservations.uuid")
    resource_type: Mapped[str] = mapped_column(String(50))
    resource_subtype: Mapped[str | None] = mapped_column(String(100))
    amount: Mapped[Decimal] = mapped_column(MONEY)
    unit: Mapped[str] = mapped_column(String(20))
    cost_cad: Mapped[Decimal | None] = mapped_column(MONEY)
    cost: Mapped[Decimal | None] = mapped_column(MONEY)
    currency: Mapped[str | None] = mapped_column(String(3))
    exchange_rate: Mapped[Decimal | None] = mapped_column(MONEY)
    exchange_rate_date: Mapped[date | None] = mapped_column(Date)
    price_uuid: Mapped[UUID | None] = reference("prices.uuid")
    billing_period_start: Mapped[date | None] = mapped_column(Date)
    billing_period_end: Mapped[date | None] = mapped_column(Date)
    metadata_: Mapped[Json] = mapped_column("metadata")


class UsageKey(Base):
    """That a report was counted: a key in use is a ledger line that exists. Not partitioned, so it is unique."""

    __tablename__ = "usage_keys"

    idempotency_key: Mapped[str] = mapped_column(Text, primary_key=True)
    usage_uuid: Mapped[UUID]
    recorded_at: Mapped[datetime]


def _sums(name: str, *constraints: UniqueConstraint) -> Table:
    counts = ("lines", "input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens")
    return Table(
        name,
        Base.metadata,
        Column("project_uuid", PG_UUID, nullable=False),
        Column("day", Date, nullable=False),
        Column("machine_uuid", PG_UUID),
        Column("resource_type", String(50), nullable=False),
        Column("resource_subtype", String(100)),
        Column("model", Text),
        *(Column(count, BigInteger, nullable=False) for count in counts),
        *(Column(amount, Numeric, nullable=False) for amount in ("amount", "cad", "usd")),
        *constraints,
    )


# The ledger by day, kept by its trigger; read as the view `usage_by_day`, never written from here.
_KEY = ("project_uuid", "day", "machine_uuid", "resource_type", "resource_subtype", "model")
usage_sums = _sums("usage_sums", UniqueConstraint(*_KEY, name="usage_sums_key", postgresql_nulls_not_distinct=True))
usage_sums_new = _sums("usage_sums_new")


class Price(Base):
    """USD per million tokens of a model, from a date on, for prompts longer than `tier_above_tokens`.

    `usd_web_search`: per thousand. Never changed; of those that hold, the highest `rank` counts (see `pricelists`).
    """

    __tablename__ = "prices"

    uuid: Mapped[Key]
    provider: Mapped[str] = mapped_column(String(50))
    model: Mapped[str] = mapped_column(String(100))
    effective_from: Mapped[date] = mapped_column(Date)
    tier_above_tokens: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    usd_input: Mapped[Decimal] = mapped_column(MONEY)
    usd_output: Mapped[Decimal] = mapped_column(MONEY)
    usd_cache_read: Mapped[Decimal] = mapped_column(MONEY)
    usd_cache_write_5m: Mapped[Decimal] = mapped_column(MONEY)
    usd_cache_write_1h: Mapped[Decimal] = mapped_column(MONEY)
    usd_web_search: Mapped[Decimal | None] = mapped_column(MONEY)
    source: Mapped[str] = mapped_column(Text)
    rank: Mapped[int] = mapped_column(SmallInteger, server_default=text("1"))
    retired_at: Mapped[datetime | None]
    created_at: Mapped[CreatedAt]


class ExchangeRate(Base):
    """One unit of `base` in `quote` on a day."""

    __tablename__ = "exchange_rates"

    base: Mapped[str] = mapped_column(String(3), primary_key=True)
    quote: Mapped[str] = mapped_column(String(3), primary_key=True)
    rate_date: Mapped[date] = mapped_column(Date, primary_key=True)
    source: Mapped[str] = mapped_column(String(50), primary_key=True)
    rate: Mapped[Decimal] = mapped_column(MONEY)
    recorded_at: Mapped[CreatedAt]
