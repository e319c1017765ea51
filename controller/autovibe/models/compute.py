"""A machine's own cost: compute rates, the meters of VMs; and the scheduler's jobs."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import BigInteger, Date, Double, Integer, Numeric, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from autovibe.models.base import Base, CreatedAt, Key, reference


class ComputeRate(Base):
    """What one unit of an item costs from a day on. Never changed, never deleted.

    item: time, cpu, memory, storage, network; `multiplier` is for a machine type. source: default, override.
    """

    __tablename__ = "compute_rates"
    __table_args__ = (UniqueConstraint("item", "machine_type", "effective_from", "source"),)

    uuid: Mapped[Key]
    item: Mapped[str] = mapped_column(String(20))
    machine_type: Mapped[str] = mapped_column(String(50), server_default=text("''"))
    effective_from: Mapped[date] = mapped_column(Date)
    rate: Mapped[Decimal] = mapped_column(Numeric(24, 12))
    currency: Mapped[str | None] = mapped_column(String(3))
    source: Mapped[str] = mapped_column(String(20))
    created_at: Mapped[CreatedAt]


class VmMeter(Base):
    """A VM that is counted: all before `metered_to` is in the ledger, the runtime until `held_to` is reserved.

    state: waiting (asked for, has not run), running, stopped, stored (holds checkpoints only), ended (is gone).
    """

    __tablename__ = "vm_meters"

    vm_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    project_uuid: Mapped[UUID] = reference("projects.uuid")
    machine_uuid: Mapped[UUID] = reference("intelligent_machines.uuid")
    state: Mapped[str] = mapped_column(String(20))
    changed_at: Mapped[datetime]
    metered_to: Mapped[datetime]
    held_to: Mapped[datetime | None]
    cores: Mapped[int] = mapped_column(Integer)
    memory_mib: Mapped[int] = mapped_column(Integer)
    disk_mib: Mapped[int] = mapped_column(BigInteger)
    net_bytes: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[CreatedAt]


class SchedulerJob(Base):
    """When a job of the scheduler last succeeded, and how it last failed."""

    __tablename__ = "scheduler_jobs"

    name: Mapped[str] = mapped_column(String(50), primary_key=True)
    every_seconds: Mapped[float] = mapped_column(Double)
    last_success_at: Mapped[datetime | None]
    last_failure_at: Mapped[datetime | None]
    last_error: Mapped[str | None] = mapped_column(Text)
