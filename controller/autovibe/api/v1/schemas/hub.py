"""The hub itself, and its templates."""

from __future__ import annotations

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, Field

from autovibe.api.v1.schemas.base import MACHINE_NAME, Body, View, text


class TemplateAsked(Body):
    name: MACHINE_NAME | None = None
    null: bool = Field(False, description="Its guests are only records: for tests and benchmarks.")
    disk: text(255, 1) | None = None
    storage: text(63, 1) | None = None
    bridge: text(63, 1) | None = None


class TemplateImport(Body):
    name: MACHINE_NAME | None = None


class Template(View):
    uuid: UUID
    name: str
    status: str
    vm_id: int | None
    node: str | None
    inputs: str
    created_at: datetime


class HubAdoption(Body):
    vm_id: int = Field(ge=100, le=999_999_999, description="The VM in which this hub runs.")
    node: text(63, 1, "^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$") | None = Field(
        None, description="Where it has to be; default: wherever it is."
    )
    project: text(255, 1) | None = Field(None, description="Its checkpoints' project, made if need be; default: hub.")


class HubCheckpointAsked(Body):
    label: text(1000) | None = None


class HubVm(BaseModel):
    """The VM in which the hub runs, once it is adopted, and its newest checkpoint."""

    vm_id: int
    node: str
    machine: UUID
    name: str
    project: str
    adopted_at: datetime
    checkpoint: UUID | None
    checkpoint_at: datetime | None
    frozen: bool | None = Field(description="Whether its filesystems were frozen for the checkpoint, if that is known.")
    late: bool = Field(description="Whether there has been no checkpoint for more than 48 hours.")


class Hub(BaseModel):
    version: str
    installation: UUID
    schema_revision: str
    database_version: str
    default_model: str
    default_template: str
    ca_sha256: str
    started_at: datetime
    machines: dict[str, int]
    operations: dict[str, int]
    vm: HubVm | None = Field(None, description="None while it is not adopted, or of a project that one cannot see.")


class Check(BaseModel):
    name: str
    state: Literal["ok", "warning", "failed"]
    message: str


class Health(BaseModel):
    status: Literal["ok", "degraded", "failed"]
    checks: list[Check]
