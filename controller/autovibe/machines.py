"""Machines: one VM, one agent, one prompt. What is asked of them becomes operations; Ansible does the rest.

status: spawning → active (enrolled) → working ⇄ checkpointing → terminated. What the end of an operation means
for its machine is in `autovibe.records`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from autovibe import checkpoints, lookup, operations, slots, templates
from autovibe.errors import AutovibeError, Conflict, Invalid
from autovibe.models import Checkpoint, Installation, Machine, MachineEvent, Operation, Project
from autovibe.settings import Settings

TYPES = ("claude_code", "aider", "qwen_coder", "command")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class BudgetTooSmall(AutovibeError):
    """The budget is too small for a machine."""

    code = "budget_too_small"
    http_status = 402
    default_hint = "Give the project a larger budget."


class ProjectNotActive(Conflict):
    """The project is not active."""

    code = "project_not_active"


class MachineEnded(Conflict):
    """The machine has ended."""

    code = "machine_ended"


@dataclass(frozen=True)
class Ask:
    """What a machine is to do, checked."""

    prompt: str
    machine_type: str
    command: list[str] | None
    files: list[dict[str, Any]]
    model: str | None
    limits: dict[str, Any]


def find(session: Session, text_: str | UUID, project: Project | None = None) -> Machine:
    """By uuid, name or uuid prefix."""
    scope = {"project_uuid": project.uuid} if project is not None else {}
    return lookup.find(session, Machine, text_, "machine", **scope)


def listed(session: Session, *, project: Project | None = None, everything: bool = False) -> list[Machine]:
    """Machines, newest first; without `everything` only those that have not ended."""
    query = select(Machine).order_by(Machine.spawned_at.desc())
    if project is not None:
        query = query.where(Machine.project_uuid == project.uuid)
    if not everything:
        query = query.where(Machine.status != "terminated")
    return list(session.scalars(query))


def spawn(
    session: Session,
    settings: Settings,
    *,
    project: Project,
    prompt: str,
    machine_type: str = "claude_code",
    template: str | None = None,
    checkpoint: Checkpoint | None = None,
    name: str | None = None,
    files: Sequence[dict[str, Any]] = (),
    command: Sequence[str] | None = None,
    model: str | None = None,
    limits: dict[str, Any] | None = None,
    idempotency_key: str | None = None,
) -> Machine:
    """Ask for a machine: it is `spawning`, and a spawn operation is queued, when this transaction commits.

    It starts from `checkpoint`, else from the newest version of `template` (default: the settings' one).
    `files` are {"path", "content_base64", "mode"}. With an idempotency key in use, that key's machine is returned.
    """
    key = f"spawn:{project.uuid}:{idempotency_key}" if idempotency_key else None
    if asked_before := operations.by_key(session, key):
        return session.get_one(Machine, asked_before.machine_uuid)
    ask = _checked(prompt, machine_type, command, files, model, limits)
    _may_spawn(session, settings, project)
    source, parent, dependency = _source(session, settings, project, template, checkpoint)
    machine = Machine(uuid=uuid4(), name="", machine_type=machine_type, project_uuid=project.uuid)
    machine.name = _name(session, project, name, machine.uuid)
    machine.original_prompt = ask.prompt
    machine.assignment = {"command": ask.command, "files": ask.files, "model": ask.model, "limits": ask.limits}
    machine.resource_constraints = {"cores": settings.default_cores, "memory": settings.default_memory, **ask.limits}
    machine.parent_checkpoint_uuid = parent.uuid
    machine.vm_id = next_vm_id(session, settings)
    session.add(machine)
    session.flush()
    machine.network_slot = slots.acquire(session, settings, machine.uuid).slot
    operations.enqueue(
        session,
        "spawn",
        machine_uuid=machine.uuid,
        project_uuid=project.uuid,
        params={"identity": True, "vars": spawn_variables(session, settings, machine, source)},
        idempotency_key=key,
        depends_on_uuid=dependency.uuid if dependency else None,
    )
    return machine


def terminate(
    session: Session,
    settings: Settings,
    machine: Machine,
    *,
    outcome: str = "stopped",
    reason: str | None = None,
    manifest: dict[str, Any] | None = None,
) -> Operation:
    """Ask for a machine's end: shut down, final checkpoint, `terminated`. Asking again returns the same operation.

    What is queued for it and has not begun is cancelled; what is running comes first.
    """
    machine = session.get_one(Machine, machine.uuid, with_for_update=True, populate_existing=True)
    if under_way := operations.pending(session, machine.uuid, "terminate"):
        return under_way[0]
    if machine.status == "terminated":
        raise MachineEnded(f"Machine {machine.name} has ended already ({machine.outcome})", "")
    for cancelled in operations.cancel_queued(session, machine.uuid, "The machine was told to end"):
        checkpoints.cancel(session, cancelled)
    machine.outcome = machine.outcome or outcome
    machine.stop_requested_at = machine.stop_requested_at or datetime.now(UTC)
    machine.stop_reason = machine.stop_reason or reason
    if outcome == "failed":
        machine.error_message = machine.error_message or reason
    if manifest:
        machine.file_modifications = manifest
    return end(session, machine, "none" if is_empty(machine) else "auto")


def is_empty(machine: Machine) -> bool:
    """Whether its VM holds nothing worth keeping: its agent never came up, and no checkpoint stands on it."""
    return machine.enrolled_at is None and machine.checkpoint_count == 0


def end(session: Session, machine: Machine, kind: str) -> Operation:
    """Queue a terminate operation: `auto` keeps the stopped VM as the final checkpoint, `none` destroys it."""
    final = {"kind": kind}
    checkpoint = None
    if kind != "none":
        checkpoint = checkpoints.start(session, machine, "final", manifest=machine.file_modifications)
        final |= checkpoints.variables(checkpoint)
    return operations.enqueue(
        session,
        "terminate",
        machine_uuid=machine.uuid,
        project_uuid=machine.project_uuid,
        checkpoint_uuid=checkpoint.uuid if checkpoint else None,
        params={"vars": {**variables(machine), "machine_final": final}},
    )


def checkpoint(
    session: Session,
    settings: Settings,
    machine: Machine,
    *,
    checkpoint_type: str = "manual",
    description: str | None = None,
    context: str | None = None,
    manifest: dict[str, Any] | None = None,
    idempotency_key: str | None = None,
) -> tuple[Checkpoint, Operation]:
    """Ask for a checkpoint of a machine that lives: a snapshot with the guest's file systems frozen."""
    key = f"checkpoint:{machine.uuid}:{idempotency_key}" if idempotency_key else None
    if asked_before := operations.by_key(session, key):
        return session.get_one(Checkpoint, asked_before.checkpoint_uuid), asked_before
    _living(session, machine)
    made = checkpoints.start(
        session, machine, checkpoint_type, description=description, context=context, manifest=manifest
    )
    request = {**checkpoints.variables(made), "freeze": True, "ram": False}
    operation = operations.enqueue(
        session,
        "checkpoint",
        machine_uuid=machine.uuid,
        project_uuid=machine.project_uuid,
        checkpoint_uuid=made.uuid,
        params={"vars": {**variables(machine), "machine_checkpoint": request}},
        idempotency_key=key,
    )
    return made, operation


def restore(session: Session, settings: Settings, machine: Machine, checkpoint: Checkpoint) -> Operation:
    """Ask that a living machine go back to one of its own checkpoints. Its tokens so far end with this transaction."""
    _living(session, machine)
    if checkpoint.carrier != "snapshot" or checkpoint.vm_id != machine.vm_id:
        raise Invalid(
            f"Checkpoint {checkpoint.uuid} is not a snapshot of machine {machine.name}",
            "Start a new machine from it: `autovibe machine spawn --from`.",
        )
    machine = session.get_one(Machine, machine.uuid, with_for_update=True, populate_existing=True)
    machine.generation += 1
    machine.enrolled_nonce = None
    machine.status = "spawning"
    machine.last_checkpoint_uuid = checkpoint.uuid
    variables_ = spawn_variables(session, settings, machine, None)
    variables_["machine_checkpoint"] = {"name": checkpoint.proxmox_snapshot_id}
    return operations.enqueue(
        session,
        "restore",
        machine_uuid=machine.uuid,
        project_uuid=machine.project_uuid,
        checkpoint_uuid=checkpoint.uuid,
        params={"identity": True, "vars": variables_},
    )


def next_vm_id(session: Session, settings: Settings) -> int:
    """A VM id that this installation has never used, `vm_id_first` or above: the range only grows."""
    vm_id = session.scalar(text("SELECT nextval('vm_ids')::integer"))
    if vm_id >= settings.vm_id_first:
        return vm_id
    session.execute(text("SELECT pg_advisory_xact_lock(hashtext('autovibe vm_ids'))"))
    vm_id = session.scalar(text("SELECT nextval('vm_ids')::integer"))
    if vm_id < settings.vm_id_first:
        vm_id = session.scalar(text("SELECT setval('vm_ids', :first)::integer"), {"first": settings.vm_id_first})
    return vm_id


def installation_id(session: Session) -> UUID:
    """The id that stands in the description of every VM of ours."""
    return session.scalars(select(Installation.uuid)).one()


def variables(machine: Machine) -> dict[str, Any]:
    """The host variables that say which VM it is, for every playbook."""
    return {"machine_vm_id": machine.vm_id, "machine_name": machine.name, "machine_uuid": str(machine.uuid)}


def spawn_variables(
    session: Session, settings: Settings, machine: Machine, source: dict[str, Any] | None
) -> dict[str, Any]:
    """The host variables that say what the VM is like."""
    slot = slots.acquire(session, settings, machine.uuid)
    found = variables(machine) | {
        "machine_tags": tags(session.get_one(Project, machine.project_uuid), machine.machine_type),
        "machine_cores": machine.resource_constraints["cores"],
        "machine_memory": machine.resource_constraints["memory"],
        "machine_mac": slot.mac,
        "machine_ip": slots.address(settings, slot),
        "machine_start": True,
    }
    return found | {"machine_source": source} if source else found


def tags(project: Project, machine_type: str) -> list[str]:
    """Tags that people, the inventory plugin and `usage_info` find a project's VMs by; `[a-z0-9_.-]` on Proxmox."""
    slug = re.sub(r"[^a-z0-9_.]+", "-", project.name.lower()).strip("-.") or project.uuid.hex
    return [f"project-{slug}", f"type-{machine_type}"]


def say(session: Session, machine_uuid: UUID, message: str, kind: str = "system") -> None:
    """Add a line to the machine's log."""
    session.add(MachineEvent(machine_uuid=machine_uuid, kind=kind, text=message))


def _living(session: Session, machine: Machine) -> None:
    if machine.status == "terminated" or operations.pending(session, machine.uuid, "terminate"):
        raise MachineEnded(f"Machine {machine.name} has ended, or is about to", "")


def _checked(
    prompt: str,
    machine_type: str,
    command: Sequence[str] | None,
    files: Sequence[dict[str, Any]],
    model: str | None,
    limits: dict[str, Any] | None,
) -> Ask:
    if machine_type not in TYPES:
        raise Invalid(f"There is no machine type {machine_type!r}", f"Types: {', '.join(TYPES)}.")
    if machine_type == "command" and not command:
        raise Invalid("A machine of type command needs a command")
    if machine_type != "command" and command:
        raise Invalid(f"A machine of type {machine_type} takes a prompt, not a command")
    prompt = prompt or ""
    if not prompt.strip() and machine_type != "command":
        raise Invalid("The prompt is empty", "Say what the machine is to do.")
    if "\0" in prompt:
        raise Invalid("The prompt has a NUL character in it")
    return Ask(prompt, machine_type, list(command) if command else None, list(files), model, dict(limits or {}))


def _may_spawn(session: Session, settings: Settings, project: Project) -> None:
    from autovibe import budgets

    if project.status != "active":
        raise ProjectNotActive(f"Project {project.name} is {project.status}", "Only an active one gets machines.")
    available = budgets.available(session, project.uuid)
    if available < settings.min_spawn_cad:
        shown, least = (format(amount.normalize(), "f") for amount in (available, settings.min_spawn_cad))
        raise BudgetTooSmall(f"Project {project.name} has CAD {shown} left; a machine needs at least {least}")


def _source(
    session: Session, settings: Settings, project: Project, template: str | None, checkpoint: Checkpoint | None
) -> tuple[dict[str, Any], Checkpoint, Operation | None]:
    """What to clone, the parent checkpoint, and the operation that has to make the template first (or None)."""
    if checkpoint is not None and template is not None:
        raise Invalid("Give a checkpoint or a template, not both")
    if checkpoint is None:
        ready = templates.ready(session, template or settings.default_template)
        return {"vm_id": ready.vm_id}, checkpoints.genesis(session, project, ready), None
    if checkpoint.project_uuid != project.uuid:
        raise Invalid(f"Checkpoint {checkpoint.uuid} belongs to another project")
    vm_id, promotion = checkpoints.clonable(session, checkpoint, lambda: next_vm_id(session, settings))
    return {"vm_id": vm_id}, checkpoint, promotion


def _name(session: Session, project: Project, wanted: str | None, machine_uuid: UUID) -> str:
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
