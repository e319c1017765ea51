"""Machines: one VM, one agent, one prompt. What is asked of them becomes operations; Ansible does the rest.

status: spawning → active (enrolled) → working ⇄ checkpointing → terminated; each of them → paused → spawning. What the
end of an operation means for its machine is in `autovibe.records`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import select
from sqlalchemy.orm import Session

from autovibe import (
    budgets,
    checkpoints,
    lookup,
    machine_asks,
    machine_limits,
    machine_vms,
    metering,
    operations,
    policies,
    slots,
    templates,
    throttle,
)
from autovibe.errors import AutovibeError, Conflict, Invalid
from autovibe.models import Checkpoint, Machine, MachineEvent, Operation, Project
from autovibe.settings import Settings

PAUSE_REASONS = ("budget", "person", "circuit_breaker")


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


class MachinePaused(Conflict):
    """The machine is paused."""

    code = "machine_paused"
    default_hint = "`autovibe machine resume` starts it again."


class NotPaused(Conflict):
    """The machine is not paused."""

    code = "not_paused"


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
    checkpoint_policy: dict[str, Any] | None = None,
    max_cad: Decimal | None = None,
) -> Machine:
    """Ask for a machine: it is `spawning`, and a spawn operation is queued, when this transaction commits.

    It starts from `checkpoint`, else from the newest version of `template` (default: the settings' one).
    `files` are {"path", "content_base64", "mode"}; `checkpoint_policy` (`policies.Making`) says when it is checkpointed
    where its project's is not to hold; `max_cad` is what it may cost itself, until it ends.
    """
    ask = machine_asks.checked(prompt, machine_type, command, files, model, limits)
    machine_limits.check(settings, max_cad)
    _may_spawn(session, settings, project)
    policies.of(policies.Making(), checkpoint_policy)
    source, parent, dependency = _source(session, settings, project, template, checkpoint)
    machine = Machine(uuid=uuid4(), name="", machine_type=machine_type, project_uuid=project.uuid)
    machine.name = machine_asks.name(session, project, name, machine.uuid)
    machine.original_prompt = ask.prompt
    machine.assignment = {"command": ask.command, "files": ask.files, "model": ask.model, "limits": ask.limits}
    if checkpoint_policy:
        machine.assignment = {**machine.assignment, "checkpoints": checkpoint_policy}
    machine.resource_constraints = {"cores": settings.default_cores, "memory": settings.default_memory, **ask.limits}
    machine.parent_checkpoint_uuid = parent.uuid
    depth = checkpoints.clone_depth(session, parent) + 1
    if depth > settings.clone_depth_most:
        # Each linked clone's disk stands on its template's: a full clone stands on nothing.
        depth, source["full"] = 0, True
    machine.metadata_ = {"clone_depth": depth}
    machine.max_cad = max_cad
    machine.vm_id = machine_vms.next_vm_id(session, settings)
    session.add(machine)
    session.flush()
    machine.network_slot = slots.acquire(session, settings, machine.uuid).slot
    metering.open_meter(session, settings, machine)
    operations.enqueue(
        session,
        "spawn",
        machine_uuid=machine.uuid,
        project_uuid=project.uuid,
        params={"identity": True, "vars": machine_vms.spawn_variables(session, settings, machine, source)},
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
    machine = locked(session, machine.uuid)
    machine_vms.no_hub(machine)
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
        machine.manifest = manifest
    return end(session, machine, "none" if is_empty(machine) else "auto")


def is_empty(machine: Machine) -> bool:
    """Whether its VM holds nothing worth keeping: its agent never came up, and no checkpoint stands on it."""
    return machine.enrolled_at is None and machine.checkpoint_count == 0


def end(session: Session, machine: Machine, kind: str) -> Operation:
    """Queue a terminate operation: `auto` keeps the stopped VM as the final checkpoint, `none` destroys it."""
    final = {"kind": kind}
    checkpoint = None
    if kind != "none":
        checkpoint = checkpoints.start(session, machine, "final", manifest=machine.manifest)
        final |= checkpoints.variables(checkpoint)
    return operations.enqueue(
        session,
        "terminate",
        machine_uuid=machine.uuid,
        project_uuid=machine.project_uuid,
        checkpoint_uuid=checkpoint.uuid if checkpoint else None,
        params={"vars": {**machine_vms.variables(machine), "machine_final": final}},
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
) -> tuple[Checkpoint, Operation]:
    """Ask for a checkpoint of a machine that lives: a snapshot with the guest's file systems frozen.

    It falls between two messages: a model call that is under way is waited for, a little, and the next one waits for it
    (`gateway/holding.py`). One that is queued and has not begun is as good, and becomes what is asked for.
    """
    _living(session, machine)
    if queued := _queued_checkpoint(session, machine):
        made = checkpoints.take_over(session, queued, checkpoint_type, description, context, manifest)
        return made, queued
    made = checkpoints.start(
        session, machine, checkpoint_type, description=description, context=context, manifest=manifest
    )
    policies.noted(machine)
    if machine.status in ("active", "working"):
        machine.metadata_ = {**machine.metadata_, "status_before": machine.status}
        machine.status = "checkpointing"
    request = {**checkpoints.variables(made), "freeze": True, "ram": False}
    operation = operations.enqueue(
        session,
        "checkpoint",
        machine_uuid=machine.uuid,
        project_uuid=machine.project_uuid,
        checkpoint_uuid=made.uuid,
        params={"vars": {**machine_vms.variables(machine), "machine_checkpoint": request}},
        not_before=_end_of_call(session, machine),
    )
    return made, operation


def _queued_checkpoint(session: Session, machine: Machine) -> Operation | None:
    """The machine's checkpoint that no run has begun, held for this transaction."""
    query = select(Operation).where(
        Operation.machine_uuid == machine.uuid, Operation.kind == "checkpoint", Operation.status == "queued"
    )
    return session.scalars(query.order_by(Operation.seq).limit(1).with_for_update(skip_locked=True)).first()


def _end_of_call(session: Session, machine: Machine) -> datetime | None:
    """Until when a checkpoint waits for the machine's model call to end; None when there is none under way."""
    if not budgets.has_call(session, machine.uuid):
        return None
    return datetime.now(UTC) + timedelta(seconds=policies.making(session, machine).hold_seconds)


def restore(session: Session, settings: Settings, machine: Machine, checkpoint: Checkpoint) -> Operation:
    """Ask that a living machine go back to one of its own checkpoints. Its tokens so far end with this transaction."""
    _living(session, machine)
    if checkpoint.carrier != "snapshot" or checkpoint.vm_id != machine.vm_id:
        raise Invalid(
            f"Checkpoint {checkpoint.uuid} is not a snapshot of machine {machine.name}",
            "Start a new machine from it: `autovibe machine spawn --from`.",
        )
    machine = locked(session, machine.uuid)
    next_generation(machine)
    machine.last_checkpoint_uuid = checkpoint.uuid
    variables_ = machine_vms.spawn_variables(session, settings, machine, None)
    variables_["machine_checkpoint"] = {"name": checkpoint.proxmox_snapshot_id}
    return operations.enqueue(
        session,
        "restore",
        machine_uuid=machine.uuid,
        project_uuid=machine.project_uuid,
        checkpoint_uuid=checkpoint.uuid,
        params={"identity": True, "vars": variables_},
    )


def pause(
    session: Session, settings: Settings, machine: Machine, *, reason: str = "person", short_of_money: bool = True
) -> Operation:
    """Ask that a machine be stopped and snapshotted, to go on from there later. Asking again is the same operation.

    reason: person, budget or circuit_breaker; it is kept. One that was `short_of_money` goes on by itself only when
    there is more than now.
    """
    machine = locked(session, machine.uuid)
    if under_way := operations.pending(session, machine.uuid, "pause"):
        return under_way[0]
    if machine.status == "paused" and not operations.pending(session, machine.uuid, "resume"):
        raise MachinePaused(f"Machine {machine.name} is paused already ({machine.pause_reason})")
    _living(session, machine)
    made = checkpoints.start(session, machine, "automatic", description=f"paused: {reason}")
    operation = operations.enqueue(
        session,
        "pause",
        machine_uuid=machine.uuid,
        project_uuid=machine.project_uuid,
        checkpoint_uuid=made.uuid,
        params={"vars": {**machine_vms.variables(machine), "machine_checkpoint": checkpoints.variables(made)}},
    )
    machine.pause_reason = reason
    left = budgets.available(session, machine.project_uuid) if short_of_money else 0
    machine.metadata_ = machine.metadata_ | {"available_when_paused_cad": str(left)}
    say(session, machine.uuid, f"It is being paused ({reason})")
    session.flush()
    return operation


def resume(session: Session, settings: Settings, machine: Machine, *, max_cad: Decimal | None = None) -> Operation:
    """Ask that a paused machine be started again, under its next identity; its first minutes are reserved.

    Raises BudgetExhausted when these are not there, or its own limit, which `max_cad` raises, is reached. Asking again
    is the same operation.
    """
    machine = locked(session, machine.uuid)
    machine_vms.no_hub(machine)
    if under_way := operations.pending(session, machine.uuid, "resume"):
        return under_way[0]
    if machine.status != "paused":
        raise NotPaused(f"Machine {machine.name} is not paused, it is {machine.status}")
    _living(session, machine, paused=True)
    project = session.get_one(Project, machine.project_uuid)
    if project.status != "active":
        raise ProjectNotActive(f"Project {project.name} is {project.status}", "Only an active one's machines run.")
    machine_limits.go_on(session, settings, machine, max_cad)
    metering.reopen(session, settings, machine.vm_id)
    operation = operations.enqueue(
        session,
        "resume",
        machine_uuid=machine.uuid,
        project_uuid=machine.project_uuid,
        params={"identity": True, "vars": machine_vms.variables(machine)},
    )
    next_generation(machine)
    machine.pause_reason = machine.paused_at = None
    say(session, machine.uuid, "It is being resumed")
    session.flush()
    return operation


def next_generation(machine: Machine) -> None:
    """Its tokens so far end with this transaction; the VM gets a new identity."""
    machine.generation += 1
    machine.enrolled_nonce = None
    machine.status = "spawning"


def locked(session: Session, machine_uuid: UUID) -> Machine:
    """The machine as it is now, held for this transaction. Its key is not: ledger lines may refer to it meanwhile."""
    return session.get_one(Machine, machine_uuid, with_for_update={"key_share": True}, populate_existing=True)


def say(session: Session, machine_uuid: UUID, message: str, kind: str = "system") -> None:
    """Add a line to the machine's log."""
    session.add(MachineEvent(machine_uuid=machine_uuid, kind=kind, text=message))


def _living(session: Session, machine: Machine, *, paused: bool = False) -> None:
    machine_vms.no_hub(machine)
    if machine.status == "terminated" or operations.pending(session, machine.uuid, "terminate"):
        raise MachineEnded(f"Machine {machine.name} has ended, or is about to", "")
    if machine.status == "paused" and not paused:
        raise MachinePaused(f"Machine {machine.name} is paused ({machine.pause_reason})")


def _may_spawn(session: Session, settings: Settings, project: Project) -> None:
    if project.status != "active":
        raise ProjectNotActive(f"Project {project.name} is {project.status}", "Only an active one gets machines.")
    available = budgets.available(session, project.uuid)
    if available < settings.min_spawn_cad:
        shown, least = (format(amount.normalize(), "f") for amount in (available, settings.min_spawn_cad))
        raise BudgetTooSmall(f"Project {project.name} has CAD {shown} left; a machine needs at least {least}")
    throttle.check(session, settings, project)


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
    vm_id, promotion = checkpoints.clonable(session, checkpoint, lambda: machine_vms.next_vm_id(session, settings))
    return {"vm_id": vm_id}, checkpoint, promotion
