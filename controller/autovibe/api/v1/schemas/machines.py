"""Machines: spawning them, what they are, say and leave."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, BaseModel, Field

from autovibe.api.v1.schemas.base import MACHINE_NAME, Amount, Body, Number, View, formed, text
from autovibe.api.v1.schemas.operations import Operation, Started


def _in_workspace(path: str) -> str:
    if (
        PurePosixPath(path).is_absolute()
        or ".." in PurePosixPath(path).parts
        or PurePosixPath(path) == PurePosixPath(".")
    ):
        raise ValueError("a file's path is relative and stays in the workspace")
    return path


def _base64(value: str) -> str:
    try:
        base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("this is not Base64") from None
    return value


class FileIn(Body):
    path: Annotated[text(4096, 1), AfterValidator(_in_workspace)] = Field(description="In the workspace.")
    content_base64: Annotated[str, AfterValidator(_base64)] = ""
    mode: formed(4, "[0-7]{3,4}", "a mode is octal, such as 0644") = "0644"
    delete: bool = Field(False, description="Remove this file or folder instead.")


class Limits(Body):
    wall_seconds: float | None = Field(None, ge=1, le=10**7)
    max_turns: int | None = Field(None, ge=1, le=10**6)
    cores: int | None = Field(None, ge=1, le=512)
    memory: int | None = Field(None, ge=64, le=16 << 20, description="MiB")
    max_resumes: int | None = Field(None, ge=0, le=10**6)
    idle_seconds: float | None = Field(None, ge=1, le=10**7)
    output_bytes: int | None = Field(None, ge=1, le=2**50)


class CheckpointMaking(Body):
    """When a working machine's checkpoints are due; 0 is never for that reason, what is not given is as before."""

    seconds: int | None = Field(None, ge=0, le=30 * 86_400)
    calls: int | None = Field(None, ge=0, le=1_000_000, description="Of the model.")
    budget_percent: int | None = Field(None, ge=0, le=100, description="Of the project's money.")
    floor_seconds: int | None = Field(None, ge=0, le=86_400, description="The least time between two.")
    hold_seconds: int | None = Field(None, ge=0, le=300, description="How long it and a model call wait for another.")
    risky: list[text(300, 1)] | None = Field(
        None, max_length=50, description="Regular expressions of commands before which one is made, or `default`."
    )
    risky_seconds: int | None = Field(
        None, ge=0, le=600, description="How long such a command waits; 0: no checkpoint."
    )
    turns: bool | None = Field(None, description="At the end of a turn that is not the last.")


class SpawnFromCheckpoint(Body):
    prompt: text(1_000_000) = ""
    type: text(50, 1) = Field("claude_code", description="claude_code, aider, qwen_coder or command.")
    name: MACHINE_NAME | None = None
    command: list[text(100_000)] | None = Field(None, min_length=1, max_length=1000)
    model: text(100, 1) | None = None
    files: list[FileIn] = Field(default_factory=list, max_length=1000)
    limits: Limits = Field(default_factory=Limits)
    checkpoint_policy: CheckpointMaking | None = Field(None, description="Where its project's is not to hold.")
    max_cad: Amount | None = Field(None, description="What it may cost itself, until it ends.")


class Spawn(SpawnFromCheckpoint):
    project: text(255, 1)
    checkpoint: text(255, 1) | None = Field(None, description="Start from this one.")
    template: text(63, 1) | None = Field(None, description="Start from its newest version. Default: the hub's.")


class Why(Body):
    reason: text(1000) | None = None


class CheckpointAsked(Body):
    description: text(1000) | None = None


class ResumeAsked(Body):
    max_cad: Amount | None = Field(None, description="What it may cost altogether, where it has its own limit.")


class RestoreAsked(Body):
    checkpoint: text(255, 1)


class Machine(View):
    uuid: UUID
    name: str
    project: str
    type: str
    status: str
    outcome: str | None
    pause_reason: str | None
    vm_id: int | None
    node: str | None
    progress: str | None
    error: str | None
    api_calls: int
    max_cad: Number | None = Field(description="What it may cost itself.")
    parent_checkpoint: UUID | None
    last_checkpoint: UUID | None
    checkpoint_count: int
    spawned_at: datetime
    enrolled_at: datetime | None
    terminated_at: datetime | None


class MachineFile(View):
    path: str
    size: int
    mode: str


class MachineFiles(View):
    """What a machine has left in its workspace."""

    items: list[MachineFile]


class MachineFileContent(View):
    path: str
    content_base64: str


class MachinePatch(View):
    """What a machine has changed of what it started from, as `git apply` takes it."""

    patch_base64: str


class MachineInFull(Machine):
    prompt: str | None
    model: str | None
    command: list[str] | None
    limits: dict[str, Any]
    result: dict[str, Any] | None
    files: list[dict[str, Any]]
    operations: list[Operation]


class LogLine(View):
    id: int
    at: datetime
    kind: str
    text: str


class Log(BaseModel):
    items: list[LogLine]
    next_cursor: str | None


class MachineStarted(Started):
    machine: Machine


class TemplateSought(Started):
    """There is no machine yet: its template is looked for on Proxmox. Ask again once the operation has succeeded."""

    machine: None


class MachineAsked(Started):
    """Either of both, as a client reads it."""

    machine: Machine | None
