"""What is asked of a machine: its type, its prompt or command, its name; checked before anything is made of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from autovibe import agentpack
from autovibe.errors import Conflict, Invalid
from autovibe.models import Machine, Project

#: The agent types that are always there; packages bring more (`types`).
TYPES = ("claude_code", "aider", "qwen_coder", "command")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Ask:
    """What a machine is to do, checked."""

    prompt: str
    machine_type: str
    command: list[str] | None
    files: list[dict[str, Any]]
    model: str | None
    limits: dict[str, Any]


def types() -> list[str]:
    """The agent types that a machine can have here."""
    return sorted({*TYPES, *agentpack.types()})


def checked(
    prompt: str,
    machine_type: str,
    command: Sequence[str] | None,
    files: Sequence[dict[str, Any]],
    model: str | None,
    limits: dict[str, Any] | None,
) -> Ask:
    """The ask, when a machine can do it; Invalid. One of type `command` has a command, the others a prompt."""
    if machine_type not in (known := types()):
        raise Invalid(f"There is no machine type {machine_type!r}", f"Types: {', '.join(known)}.")
    if machine_type == "command" and not command:
        raise Invalid("A machine of type command needs a command")
    if machine_type != "command" and command:
        raise Invalid(f"A machine of type {machine_type} takes a prompt, not a command")
    prompt = prompt or ""
    if not prompt.strip() and machine_type != "command":
        raise Invalid("The prompt is empty", "Say what the machine is to do.")
    if "\0" in prompt:
        raise Invalid("The prompt has a NUL character in it")
    if model is not None and not (model.strip() and model.isprintable()):
        raise Invalid(f"{model[:80]!r} is not a model's name")
    _check_paths({PurePosixPath(file["path"]) for file in files if not file.get("delete")})
    return Ask(prompt, machine_type, list(command) if command else None, list(files), model, dict(limits or {}))


def _check_paths(paths: set[PurePosixPath]) -> None:
    """Invalid for a file that is another one's folder: only the machine would find out."""
    for path in paths:
        if folder := next((parent for parent in path.parents if parent in paths), None):
            raise Invalid(f"{str(folder)[:200]!r} is to be a file, and the folder of {str(path)[:200]!r}")


def name(session: Session, project: Project, wanted: str | None, machine_uuid: UUID) -> str:
    """The name that was asked for, or one of the project's name and the uuid; a DNS label either way."""
    if wanted is None:
        slug = re.sub(r"[^a-z0-9]+", "-", project.name.lower()).strip("-")[:50].strip("-") or "machine"
        return f"{slug}-{machine_uuid.hex[:8]}"
    if not _NAME.fullmatch(wanted):
        raise Invalid(f"{wanted!r} is not a machine name", "Use a-z, 0-9 and -, at most 63 characters.")
    taken = session.scalars(select(Machine).where(Machine.project_uuid == project.uuid, Machine.name == wanted)).first()
    if taken is not None:
        raise Conflict(f"Project {project.name} has a machine named {wanted} already")
    return wanted
