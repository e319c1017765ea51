"""Checkpoints: what they are; comparing, keeping and removing them."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field

from autovibe.api.v1.schemas.base import Body, Number, View, text
from autovibe.api.v1.schemas.machines import CheckpointMaking
from autovibe.api.v1.schemas.operations import Operation, Started


class Checkpoint(View):
    uuid: UUID
    type: str
    status: str
    project: str
    machine: str | None
    machine_uuid: UUID | None
    parent: UUID | None
    carrier: str | None
    vm_id: int | None
    node: str | None
    snapshot: str | None
    template_vm_id: int | None
    files: int
    size_bytes: int | None
    tags: list[str]
    milestone: bool
    description: str | None
    created_at: datetime
    verified_at: datetime | None


class CheckpointInFull(Checkpoint):
    cad_to_reach: Number
    context: str | None
    manifest: dict[str, Any]


class CheckpointChange(Body):
    milestone: bool | None = None
    add_tags: list[text(63, 1)] = Field([], max_length=20)
    remove_tags: list[text(63, 1)] = Field([], max_length=20)


class CheckpointStarted(Started):
    checkpoint: Checkpoint


class ManifestFile(View):
    path: str
    size: int
    sha256: str | None = Field(description="Null: it was too large to be read.")
    mode: Any


class DiffStat(BaseModel):
    added: int
    removed: int
    changed: int
    mode: int
    unread: int
    bytes: int = Field(description="By so many the files have grown altogether.")


class Diff(BaseModel):
    """What is different from one checkpoint to another. Null: not asked for."""

    stat: DiffStat
    added: list[ManifestFile] | None = None
    removed: list[ManifestFile] | None = None
    changed: list[tuple[ManifestFile, ManifestFile]] | None = Field(None, description="Before and after.")
    mode: list[tuple[ManifestFile, ManifestFile]] | None = Field(None, description="Only the mode is another.")
    unread: list[str] | None = Field(None, description="As large as before; nobody knows their content.")
    whole: bool = Field(description="False: a manifest does not list all files.")
    content: str | None = Field(None, description="The changed lines of text files, where their content is known.")


class Verify(Body):
    trial: bool = Field(False, description="Start a machine from it, compare its files, and remove the machine again.")


class Making(View):
    seconds: int
    calls: int
    budget_percent: int
    floor_seconds: int
    hold_seconds: int
    risky: list[str]
    risky_seconds: int
    turns: bool


class Keeping(View):
    days: int
    daily: int
    weekly: int
    parents: bool


class Policy(BaseModel):
    """When a project's machines are checkpointed, and how long that is kept."""

    made: Making
    kept: Keeping


class KeepingChange(Body):
    days: int | None = Field(None, ge=0, le=36_500, description="All are kept for so many days.")
    daily: int | None = Field(None, ge=0, le=36_500, description="The newest of each day, for so many days.")
    weekly: int | None = Field(None, ge=0, le=5_200, description="The newest of each week, for so many weeks.")
    parents: bool | None = Field(None, description="Each one that another goes on from, too.")


class PolicyChange(Body):
    """What is not given stays as it is."""

    made: CheckpointMaking = Field(default_factory=CheckpointMaking)
    kept: KeepingChange = Field(default_factory=KeepingChange)


class Verdict(Checkpoint):
    reason: str | None = Field(description="Why it is kept; null: the policy does not keep it.")


class Pruning(BaseModel):
    """The checkpoints that are being removed."""

    checkpoints: list[UUID]
    operations: list[Operation]


class TreeNode(Checkpoint):
    """A checkpoint in its tree; parents come before their children."""

    tree_parent: UUID | None = Field(description="The nearest ancestor that is shown.")
    own_cad: Number = Field(description="Spent by its machine since its checkpoint before.")
    cad_to_reach: Number = Field(description="Spent by all that led to it.")
