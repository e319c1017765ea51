"""The queue: operations, the ansible-runner runs that serve them, and what their tasks returned."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Double, Identity, Integer, String, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from autovibe.models.base import Base, CreatedAt, Json, Key, reference


class Run(Base):
    """One ansible-runner invocation. Status: running, succeeded, failed, lost (its worker died)."""

    __tablename__ = "runs"

    uuid: Mapped[Key]
    kind: Mapped[str] = mapped_column(String(20))
    worker: Mapped[str] = mapped_column(Text)
    hostname: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(20), server_default=text("'running'"))
    artifact_dir: Mapped[str | None] = mapped_column(Text)
    pids: Mapped[list[Any]] = mapped_column(JSONB, default=list, server_default=text("'[]'"))
    return_code: Mapped[int | None] = mapped_column(Integer)
    started_at: Mapped[CreatedAt]
    ended_at: Mapped[datetime | None]


class Operation(Base):
    """One thing to be done to a machine by Ansible.

    kind: spawn, checkpoint, restore, promote, terminate, template, verify, prune, pause, resume, adopt,
    hub_checkpoint. status: queued,
    running, succeeded, failed. `seq` is the order of asking. The database keeps: one running operation per machine; a
    running one has a lease; `finished_at` is set exactly when it has ended.
    """

    __tablename__ = "operations"

    uuid: Mapped[Key]
    seq: Mapped[int] = mapped_column(BigInteger, Identity(always=True), unique=True)
    kind: Mapped[str] = mapped_column(String(20))
    status: Mapped[str] = mapped_column(String(20), server_default=text("'queued'"))
    machine_uuid: Mapped[UUID | None] = reference("intelligent_machines.uuid")
    project_uuid: Mapped[UUID | None] = reference("projects.uuid")
    checkpoint_uuid: Mapped[UUID | None] = reference("checkpoints.uuid")
    template_uuid: Mapped[UUID | None] = reference("templates.uuid")
    depends_on_uuid: Mapped[UUID | None] = reference("operations.uuid")
    idempotency_key: Mapped[str | None] = mapped_column(Text, unique=True)
    not_before: Mapped[datetime | None]
    params: Mapped[Json]
    result: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    error: Mapped[str | None] = mapped_column(Text)
    error_class: Mapped[str | None] = mapped_column(String(100))
    attempts: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    lease_owner: Mapped[str | None] = mapped_column(Text)
    lease_expires_at: Mapped[datetime | None]
    run_uuid: Mapped[UUID | None] = reference("runs.uuid")
    created_at: Mapped[CreatedAt]
    claimed_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class TaskResult(Base):
    """One Ansible task on one host. Status: ok, failed, skipped, unreachable."""

    __tablename__ = "task_results"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    run_uuid: Mapped[UUID] = reference("runs.uuid")
    operation_uuid: Mapped[UUID | None] = reference("operations.uuid")
    host: Mapped[str] = mapped_column(Text)
    task: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(20))
    changed: Mapped[bool] = mapped_column(server_default=text("false"))
    duration: Mapped[float | None] = mapped_column(Double)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    recorded_at: Mapped[CreatedAt]
