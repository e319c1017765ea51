"""Operations: what is being done to a machine."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from autovibe.api.v1.schemas.base import View


class Operation(View):
    uuid: UUID
    kind: str
    status: Literal["queued", "running", "succeeded", "failed"]
    error: str | None
    attempts: int
    run: UUID | None
    checkpoint: UUID | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    seconds: float | None


class OperationInFull(Operation):
    machine: UUID | None
    template: dict[str, Any] | None = Field(description="What the building of a template has made.")
    verification: dict[str, Any] | None = Field(description="What a look for checkpoints, or a trial of one, found.")
    task_log: list[str] = Field(description="The end of Proxmox's task log, of one that failed.")


class Started(BaseModel):
    """Something was asked for; the operation says when it is done."""

    operation: Operation
