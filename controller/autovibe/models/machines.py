"""Projects, machines, and what belongs to them."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Identity, Integer, Numeric, SmallInteger, String, Text, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column, validates

from autovibe.models.base import MONEY, Base, CreatedAt, Json, Key, Manifest, reference

#: The type of the machine that is the hub's own VM. No agent is in it; nothing but checkpoints is made of it.
HUB = "hub"


class Installation(Base):
    """This installation; one row. Its id stands in the description of every VM that it makes."""

    __tablename__ = "installation"

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, server_default=text("1"), autoincrement=False)
    uuid: Mapped[UUID] = mapped_column(server_default=text("gen_random_uuid()"), unique=True)
    created_at: Mapped[CreatedAt]


class Project(Base):
    """Owns a greediness (0–1), budgets, a tree of checkpoints. Status: active, paused, completed, archived.

    when_exhausted: what becomes of its machines when its budget is used up: pause, end.
    `models`: patterns (* for any characters) of the AI models that its machines may use; None for all.
    """

    __tablename__ = "projects"

    uuid: Mapped[Key]
    name: Mapped[str] = mapped_column(String(255), unique=True)
    greediness: Mapped[Decimal] = mapped_column(Numeric(3, 2), server_default=text("0.50"))
    status: Mapped[str] = mapped_column(String(50), server_default=text("'active'"))
    description: Mapped[str | None] = mapped_column(Text)
    time_zone: Mapped[str] = mapped_column(Text, server_default=text("'UTC'"))
    when_exhausted: Mapped[str] = mapped_column(String(10), server_default=text("'pause'"))
    breaker_reset_at: Mapped[datetime | None]
    initial_checkpoint_uuid: Mapped[UUID | None] = reference("checkpoints.uuid", deferred=True)
    current_checkpoint_uuid: Mapped[UUID | None] = reference("checkpoints.uuid", deferred=True)
    models: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    checkpoint_policy: Mapped[Json]
    retention: Mapped[Json]
    metadata_: Mapped[Json] = mapped_column("metadata")
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]


class Machine(Base):
    """One VM, one agent, one prompt.

    machine_type: claude_code, aider, qwen_coder, hub, command. status: spawning, active, working, checkpointing,
    paused, terminated. outcome: None, succeeded, failed, out_of_budget, stopped. pause_reason: budget, person,
    circuit_breaker.
    """

    __tablename__ = "intelligent_machines"
    __table_args__ = (UniqueConstraint("project_uuid", "name"), UniqueConstraint("uuid", "project_uuid"))

    uuid: Mapped[Key]
    name: Mapped[str] = mapped_column(String(63))
    machine_type: Mapped[str] = mapped_column(String(50))
    status: Mapped[str] = mapped_column(String(50), server_default=text("'spawning'"))
    outcome: Mapped[str | None] = mapped_column(String(50))
    project_uuid: Mapped[UUID] = reference("projects.uuid")
    parent_checkpoint_uuid: Mapped[UUID | None] = reference("checkpoints.uuid", deferred=True)
    vm_id: Mapped[int | None] = mapped_column(Integer, unique=True)
    node: Mapped[str | None] = mapped_column(String(63))
    hub_vm_id: Mapped[int | None] = mapped_column(Integer)
    network_slot: Mapped[int | None] = mapped_column(Integer)
    original_prompt: Mapped[str | None] = mapped_column(Text)
    assignment: Mapped[Json]
    file_modifications: Mapped[Json]
    resource_constraints: Mapped[Json]
    resource_usage: Mapped[Json]
    current_progress: Mapped[str | None] = mapped_column(Text)
    error_message: Mapped[str | None] = mapped_column(Text)
    last_checkpoint_uuid: Mapped[UUID | None] = reference("checkpoints.uuid", deferred=True)
    checkpoint_count: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    generation: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    enrolled_generation: Mapped[int | None] = mapped_column(Integer)
    enrolled_nonce: Mapped[str | None] = mapped_column(Text)
    enrolled_at: Mapped[datetime | None]
    last_heartbeat_at: Mapped[datetime | None]
    api_calls: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    max_cad: Mapped[Decimal | None] = mapped_column(MONEY)
    stop_requested_at: Mapped[datetime | None]
    stop_reason: Mapped[str | None] = mapped_column(Text)
    pause_reason: Mapped[str | None] = mapped_column(String(20))
    paused_at: Mapped[datetime | None]
    result: Mapped[Json]
    manifest: Mapped[dict[str, Any] | None] = mapped_column(Manifest, deferred=True)
    spawned_at: Mapped[CreatedAt]
    terminated_at: Mapped[datetime | None]
    metadata_: Mapped[Json] = mapped_column("metadata")


class Checkpoint(Base):
    """A node of the tree: genesis, automatic, manual, final, hub_daily; it lives on a carrier.

    carrier: snapshot (of VM `vm_id`, named `proxmox_snapshot_id`), template (`vm_id`), backup; None until made.
    verification_status: pending, verified, failed, missing (Proxmox has it no more), pruning (being removed), pruned.
    `file_manifest` is read only when it is asked for.
    """

    __tablename__ = "checkpoints"

    uuid: Mapped[Key]
    project_uuid: Mapped[UUID] = reference("projects.uuid")
    parent_checkpoint_uuid: Mapped[UUID | None] = reference("checkpoints.uuid")
    creating_machine_uuid: Mapped[UUID | None] = reference("intelligent_machines.uuid")
    checkpoint_type: Mapped[str] = mapped_column(String(50))
    proxmox_snapshot_id: Mapped[str | None] = mapped_column(String(255))
    vm_id: Mapped[int | None] = mapped_column(Integer)
    node: Mapped[str | None] = mapped_column(String(63))
    carrier: Mapped[str | None] = mapped_column(String(20))
    template_vm_id: Mapped[int | None] = mapped_column(Integer, unique=True)
    file_manifest: Mapped[dict[str, Any] | None] = mapped_column(Manifest, deferred=True)
    file_count: Mapped[int] = mapped_column(Integer, default=0, server_default=text("0"))
    description: Mapped[str | None] = mapped_column(Text)
    creation_context: Mapped[str | None] = mapped_column(Text)
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    compression_ratio: Mapped[Decimal | None] = mapped_column(Numeric(5, 4))
    verification_status: Mapped[str] = mapped_column(String(50), server_default=text("'pending'"))
    created_at: Mapped[CreatedAt]
    verified_at: Mapped[datetime | None]
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text), default=list, server_default=text("'{}'"))
    milestone: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    metadata_: Mapped[Json] = mapped_column("metadata")

    @validates("file_manifest")
    def _count_files(self, _key: str, manifest: dict[str, Any] | None) -> dict[str, Any] | None:
        self.file_count = len((manifest or {}).get("files", []))
        return manifest


class MachineSlot(Base):
    """A place on the machines' network; free while `machine_uuid` is null. MAC and address follow from it."""

    __tablename__ = "machine_slots"

    slot: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    machine_uuid: Mapped[UUID | None] = reference("intelligent_machines.uuid", unique=True)
    ip: Mapped[str] = mapped_column(Text, unique=True)
    mac: Mapped[str] = mapped_column(Text, unique=True)
    released_at: Mapped[datetime | None]


class Template(Base):
    """A version of a VM template: what a first machine is cloned from. Status: building, ready, failed, retired."""

    __tablename__ = "templates"
    __table_args__ = (UniqueConstraint("name", "inputs"),)

    uuid: Mapped[Key]
    name: Mapped[str] = mapped_column(String(63))
    inputs: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(20), server_default=text("'ready'"))
    vm_id: Mapped[int | None] = mapped_column(Integer, unique=True)
    node: Mapped[str | None] = mapped_column(String(63))
    metadata_: Mapped[Json] = mapped_column("metadata")
    created_at: Mapped[CreatedAt]


class MachineEvent(Base):
    """What a machine's agent said. kind: text, tool, system, error. `spool`, `spool_seq`: its name at the agent's."""

    __tablename__ = "machine_events"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    machine_uuid: Mapped[UUID] = reference("intelligent_machines.uuid")
    at: Mapped[CreatedAt]
    kind: Mapped[str] = mapped_column(String(20))
    text: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    spool: Mapped[str | None] = mapped_column(Text)
    spool_seq: Mapped[int | None] = mapped_column(BigInteger)


class MachineFile(Base):
    """What a machine has left behind, by its content. kind: artifact, workspace, patch."""

    __tablename__ = "machine_files"

    machine_uuid: Mapped[UUID] = reference("intelligent_machines.uuid", primary_key=True)
    kind: Mapped[str] = mapped_column(String(20), primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[CreatedAt]
