"""Hubs: the controller's own VMs, their checkpoints and experiments."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import Integer, Numeric, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from autovibe.models.base import Base, CreatedAt, Json, Key, reference


class HubInstance(Base):
    """One hub. hub_type: primary, development, experimental, domain_specific; status: active, inactive, experimental,
    retiring."""

    __tablename__ = "hub_instances"

    uuid: Mapped[Key]
    hub_type: Mapped[str] = mapped_column(String(50))
    status: Mapped[str] = mapped_column(String(50))
    vm_id: Mapped[int | None] = mapped_column(Integer, unique=True)
    version: Mapped[str | None] = mapped_column(String(50))
    config: Mapped[Json]
    parent_hub_uuid: Mapped[UUID | None] = reference("hub_instances.uuid")
    experiment_uuid: Mapped[UUID | None] = reference("hub_experiments.uuid", deferred=True)
    spawned_at: Mapped[CreatedAt]
    last_checkpoint_at: Mapped[datetime | None]
    terminated_at: Mapped[datetime | None]
    metadata_: Mapped[Json] = mapped_column("metadata")


class HubCheckpoint(Base):
    """A hub's checkpoint: daily, manual, pre_experiment, recovery."""

    __tablename__ = "hub_checkpoints"

    uuid: Mapped[Key]
    hub_instance_uuid: Mapped[UUID] = reference("hub_instances.uuid")
    checkpoint_type: Mapped[str] = mapped_column(String(50))
    proxmox_snapshot_id: Mapped[str] = mapped_column(String(255))
    trigger_reason: Mapped[str | None] = mapped_column(Text)
    system_metrics: Mapped[Json]
    active_machines_count: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    active_projects_count: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    size_gb: Mapped[Decimal | None] = mapped_column(Numeric(8, 4))
    verification_status: Mapped[str] = mapped_column(String(50), server_default=text("'pending'"))
    created_at: Mapped[CreatedAt]
    verified_at: Mapped[datetime | None]
    metadata_: Mapped[Json] = mapped_column("metadata")


class HubExperiment(Base):
    """Two hubs compared over days. status: planned, running, completed, failed; results: experimental_wins,
    original_wins, inconclusive."""

    __tablename__ = "hub_experiments"

    uuid: Mapped[Key]
    experiment_name: Mapped[str] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(Text)
    base_checkpoint_uuid: Mapped[UUID] = reference("hub_checkpoints.uuid")
    original_hub_uuid: Mapped[UUID] = reference("hub_instances.uuid")
    experimental_hub_uuid: Mapped[UUID | None] = reference("hub_instances.uuid")
    config_changes: Mapped[Json]
    success_metrics: Mapped[Json]
    performance_data: Mapped[Json]
    status: Mapped[str] = mapped_column(String(50))
    duration_days: Mapped[int] = mapped_column(Integer, server_default=text("14"))
    started_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    results: Mapped[str | None] = mapped_column(String(50))
    created_at: Mapped[CreatedAt]
    metadata_: Mapped[Json] = mapped_column("metadata")
