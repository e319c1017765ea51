"""What the end of an operation means: for its machine, its checkpoint, its project, its template.

`end` is the one way in; it ends the operation and records the rest in the same transaction, once.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from autovibe import checkpoints, machines, operations, slots, templates
from autovibe.models import Checkpoint, Machine, Operation, Project
from autovibe.settings import Settings

#: A VM id that is taken by a VM which is not ours: the next one of the range is tried.
_OTHER_VM = "IdentityError"
_SPAWN_TRIES = 5


def end(
    session: Session,
    settings: Settings,
    operation_uuid: UUID,
    *,
    run_uuid: UUID | None = None,
    result: dict[str, Any] | None = None,
    error: str | None = None,
    error_class: str | None = None,
) -> Operation | None:
    """End the operation and record what follows; None when it has ended before, or another run holds it."""
    if error is None:
        operation = operations.get(session, operation_uuid)
        error = _unusable(operation, result)
        error_class = "ResultError" if error else None
    operation = operations.finish(
        session, operation_uuid, run_uuid=run_uuid, result=result, error=error, error_class=error_class
    )
    if operation is not None:
        follow(session, settings, operation)
    return operation


def follow(session: Session, settings: Settings, operation: Operation) -> None:
    """What an operation's end means. The operation has ended in this transaction."""
    table = _SUCCEEDED if operation.status == "succeeded" else _FAILED
    if handler := table.get(operation.kind):
        handler(session, settings, operation)
    session.flush()


def begin(session: Session, operation: Operation) -> None:
    """A run takes the operation in hand: a machine whose checkpoint is being made says so."""
    if operation.kind == "checkpoint":
        machine = _machine(session, operation)
        if machine.status in ("active", "working"):
            machine.metadata_ = {**machine.metadata_, "status_before": machine.status}
            machine.status = "checkpointing"


_AWAITED = {
    "spawn": ("machine", "machine"),
    "restore": ("machine", "machine"),
    "checkpoint": ("checkpoint", "checkpoint"),
    "promote": ("checkpoint", "checkpoint"),
    "terminate": ("checkpoint", "checkpoint"),
    "template": ("template", "template"),
}


def awaited(operation: Operation) -> tuple[str, str]:
    """The module of the last task of this operation's entry point, and the fact that it returns."""
    if operation.kind == "terminate" and operation.params["vars"]["machine_final"]["kind"] == "none":
        return "machine", "machine"
    return _AWAITED[operation.kind]


def _unusable(operation: Operation, result: dict[str, Any] | None) -> str | None:
    """Why a success is none: the playbook did not say what it made."""
    fact = awaited(operation)[1]
    if operation.checkpoint_uuid is None and operation.kind == "terminate":
        return None
    return None if (result or {}).get(fact) else f"The {operation.kind} playbook ended without a result `{fact}`"


def _machine(session: Session, operation: Operation) -> Machine:
    return session.get_one(Machine, operation.machine_uuid, with_for_update=True, populate_existing=True)


def _spawned(session: Session, settings: Settings, operation: Operation) -> None:
    machine = _machine(session, operation)
    made = operation.result["machine"]
    machine.node = made.get("node") or machine.node
    verb = "restored" if operation.kind == "restore" else "started"
    machines.say(session, machine.uuid, f"VM {machine.vm_id} {verb}; waiting for its agent")


def _spawn_failed(session: Session, settings: Settings, operation: Operation) -> None:
    machine = _machine(session, operation)
    tries = operation.params.get("tries", 1)
    if operation.error_class == _OTHER_VM and operation.run_uuid and tries < _SPAWN_TRIES:
        _spawn_elsewhere(session, settings, machine, operation, tries)
        return
    _failed(session, machine, f"The spawn failed: {operation.error}")
    if operation.error_class != _OTHER_VM and operation.run_uuid is not None:
        machines.end(session, machine, "none")
    else:
        # Nothing was made, or what has the VM id is not ours: there is nothing to clean up.
        slots.release(session, machine.uuid)


def _spawn_elsewhere(session: Session, settings: Settings, machine: Machine, operation: Operation, tries: int) -> None:
    machines.say(session, machine.uuid, f"VM id {machine.vm_id} is taken by another VM; trying the next one")
    machine.vm_id = machines.next_vm_id(session, settings)
    params = {**operation.params, "tries": tries + 1}
    params["vars"] = {**params["vars"], "machine_vm_id": machine.vm_id}
    operations.enqueue(session, "spawn", machine_uuid=machine.uuid, project_uuid=machine.project_uuid, params=params)


def _restore_failed(session: Session, settings: Settings, operation: Operation) -> None:
    machine = _machine(session, operation)
    if machine.status == "terminated":
        return
    machine.error_message = f"The restore failed: {operation.error}"
    machines.say(session, machine.uuid, machine.error_message, "error")
    machines.terminate(session, settings, machine, outcome="failed", reason=machine.error_message)


def _checkpointed(session: Session, settings: Settings, operation: Operation) -> None:
    machine = _machine(session, operation)
    _working_again(machine)
    _verified(session, machine, operation)


def _checkpoint_failed(session: Session, settings: Settings, operation: Operation) -> None:
    machine = _machine(session, operation)
    _working_again(machine)
    session.get_one(Checkpoint, operation.checkpoint_uuid).verification_status = "failed"
    machines.say(session, machine.uuid, f"The checkpoint failed: {operation.error}", "error")


def _promoted(session: Session, settings: Settings, operation: Operation) -> None:
    checkpoint = session.get_one(Checkpoint, operation.checkpoint_uuid, with_for_update=True)
    made = operation.result["checkpoint"]
    checkpoint.template_vm_id = made.get("vm_id") or operation.params["vars"]["machine_promote_vm_id"]


def _terminated(session: Session, settings: Settings, operation: Operation) -> None:
    machine = _machine(session, operation)
    machine.status = "terminated"
    machine.terminated_at = machine.terminated_at or datetime.now(UTC)
    machine.outcome = machine.outcome or "stopped"
    slots.release(session, machine.uuid)
    if operation.checkpoint_uuid is None:
        return
    checkpoint = _verified(session, machine, operation)
    project = session.get_one(Project, machine.project_uuid, with_for_update=True)
    project.current_checkpoint_uuid = checkpoint.uuid
    if checkpoint.carrier == "snapshot":
        checkpoints.promote(session, checkpoint, lambda: machines.next_vm_id(session, settings))


def _terminate_failed(session: Session, settings: Settings, operation: Operation) -> None:
    machine = _machine(session, operation)
    message = f"The end failed: {operation.error}"
    machine.error_message = machine.error_message or message
    machines.say(session, machine.uuid, message, "error")
    if operation.checkpoint_uuid is not None:
        session.get_one(Checkpoint, operation.checkpoint_uuid).verification_status = "failed"


def _template_built(session: Session, settings: Settings, operation: Operation) -> None:
    operation.template_uuid = templates.record(session, operation.result["template"]).uuid


def _verified(session: Session, machine: Machine, operation: Operation) -> Checkpoint:
    checkpoint = session.get_one(Checkpoint, operation.checkpoint_uuid, with_for_update=True)
    checkpoints.verified(session, checkpoint, operation.result["checkpoint"])
    # Asked for while another was under way: the tree follows the order in which they were made.
    checkpoint.parent_checkpoint_uuid = machine.last_checkpoint_uuid or machine.parent_checkpoint_uuid
    machine.last_checkpoint_uuid = checkpoint.uuid
    machine.checkpoint_count += 1
    machines.say(session, machine.uuid, f"{checkpoint.checkpoint_type} checkpoint {checkpoint.uuid} made")
    return checkpoint


def _working_again(machine: Machine) -> None:
    if machine.status == "checkpointing":
        machine.status = machine.metadata_.get("status_before", "working")


def _failed(session: Session, machine: Machine, message: str) -> None:
    machine.status = "terminated"
    machine.outcome = "failed"
    machine.error_message = message
    machine.terminated_at = datetime.now(UTC)
    machines.say(session, machine.uuid, message, "error")


_SUCCEEDED: dict[str, Callable[[Session, Settings, Operation], None]] = {
    "spawn": _spawned,
    "restore": _spawned,
    "checkpoint": _checkpointed,
    "promote": _promoted,
    "terminate": _terminated,
    "template": _template_built,
}
_FAILED: dict[str, Callable[[Session, Settings, Operation], None]] = {
    "spawn": _spawn_failed,
    "restore": _restore_failed,
    "checkpoint": _checkpoint_failed,
    "terminate": _terminate_failed,
}
