"""What the end of an operation means: for its machine, its checkpoint, its project, its template.

`end` is the one way in; it ends the operation and records the rest in the same transaction, once.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from autovibe import (
    checkpoints,
    crosscheck,
    hubs,
    machine_vms,
    machines,
    metering,
    operations,
    pruning,
    revival,
    slots,
    templates,
    verification,
)
from autovibe.models import Checkpoint, Machine, Operation, Project
from autovibe.settings import Settings

#: A VM id that is taken by a VM which is not ours: the next one of the range is tried.
_OTHER_VM = "IdentityError"
_SPAWN_TRIES = 5
_FILES = "machine_verify_files"


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
    "pause": ("checkpoint", "checkpoint"),
    "resume": ("machine", "machine"),
    "verify": ("machine_info", "machines"),
    "prune": ("checkpoint", "checkpoints"),
    "adopt": ("machine", "machine"),
    "hub_checkpoint": ("checkpoint", "checkpoint"),
}


def awaited(operation: Operation) -> tuple[str, str]:
    """The module of the last task of this operation's entry point, and the fact that it returns."""
    if operation.kind == "terminate" and operation.params["vars"]["machine_final"]["kind"] == "none":
        return "machine", "machine"
    if operation.kind == "verify" and verification.is_trial(operation):
        return "", "exec"  # its last task removes what was made for it
    if operation.kind == "prune" and operation.params["vars"]["machine_prune_vm"]:
        return "machine", "machine"
    return _AWAITED[operation.kind]


def _unusable(operation: Operation, result: dict[str, Any] | None) -> str | None:
    """Why a success is none: the playbook did not say what it made."""
    fact = awaited(operation)[1]
    if operation.checkpoint_uuid is None and operation.kind == "terminate":
        return None
    if operation.kind == "verify" and fact in (result or {}):
        return verification.unusable(operation, result)
    if operation.kind == "verify" and verification.is_trial(operation) and not operation.params["vars"][_FILES]:
        return None
    return None if (result or {}).get(fact) else f"The {operation.kind} playbook ended without a result `{fact}`"


def _machine(session: Session, operation: Operation) -> Machine:
    return machines.locked(session, operation.machine_uuid)


def _seen_at(operation: Operation) -> datetime:
    """When the run saw the VM started or stopped; now, when it has not said."""
    now = datetime.now(UTC)
    try:
        return min(now, datetime.fromisoformat((operation.result or {})["machine_at"]).astimezone(UTC))
    except (KeyError, TypeError, ValueError):
        return now


def _spawned(session: Session, settings: Settings, operation: Operation) -> None:
    machine = _machine(session, operation)
    made = operation.result["machine"]
    machine.node = made.get("node") or machine.node
    verb = {"restore": "restored", "resume": "resumed"}.get(operation.kind, "started")
    machines.say(session, machine.uuid, f"VM {machine.vm_id} {verb}; waiting for its agent")
    metering.started(session, settings, machine.vm_id, _seen_at(operation))


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
        metering.stopped(session, settings, machine.vm_id, state="ended")


def _spawn_elsewhere(session: Session, settings: Settings, machine: Machine, operation: Operation, tries: int) -> None:
    machines.say(session, machine.uuid, f"VM id {machine.vm_id} is taken by another VM; trying the next one")
    taken, machine.vm_id = machine.vm_id, machine_vms.next_vm_id(session, settings)
    metering.renumber(session, taken, machine.vm_id)
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
    metering.store(session, settings, checkpoint.template_vm_id, session.get_one(Machine, operation.machine_uuid))


def _terminated(session: Session, settings: Settings, operation: Operation) -> None:
    machine = _machine(session, operation)
    machine.status = "terminated"
    machine.terminated_at = machine.terminated_at or datetime.now(UTC)
    machine.outcome = machine.outcome or "stopped"
    if wrong := crosscheck.compare(session, machine):
        machines.say(session, machine.uuid, wrong, "error")
    slots.release(session, machine.uuid)
    if operation.checkpoint_uuid is None:
        metering.stopped(session, settings, machine.vm_id, _seen_at(operation), state="ended")
        return
    checkpoint = _verified(session, machine, operation)
    project = session.get_one(Project, machine.project_uuid, with_for_update={"key_share": True})
    project.current_checkpoint_uuid = checkpoint.uuid
    if checkpoint.carrier == "snapshot":
        checkpoints.promote(session, checkpoint, lambda: machine_vms.next_vm_id(session, settings))
    size = checkpoint.size_bytes if checkpoint.carrier == "template" else None
    metering.stopped(session, settings, machine.vm_id, _seen_at(operation), state="stored", size_bytes=size)


def _paused(session: Session, settings: Settings, operation: Operation) -> None:
    machine = _machine(session, operation)
    _verified(session, machine, operation)
    machine.status, machine.paused_at = "paused", datetime.now(UTC)
    machines.say(session, machine.uuid, f"VM {machine.vm_id} stopped; the machine is paused ({machine.pause_reason})")
    metering.stopped(session, settings, machine.vm_id, _seen_at(operation))


def _pause_failed(session: Session, settings: Settings, operation: Operation) -> None:
    machine = _machine(session, operation)
    session.get_one(Checkpoint, operation.checkpoint_uuid).verification_status = "failed"
    machines.say(session, machine.uuid, f"The pause failed: {operation.error}", "error")


def _resume_failed(session: Session, settings: Settings, operation: Operation) -> None:
    machine = _machine(session, operation)
    if machine.status == "terminated":
        return
    if revival.is_one(operation):
        revival.failed(session, settings, machine, operation)
        return
    # Not by itself again: a person has to look.
    machine.status, machine.pause_reason, machine.paused_at = "paused", "circuit_breaker", datetime.now(UTC)
    machines.say(session, machine.uuid, f"The resume failed: {operation.error}", "error")
    metering.stopped(session, settings, machine.vm_id)


def _terminate_failed(session: Session, settings: Settings, operation: Operation) -> None:
    machine = _machine(session, operation)
    message = f"The end failed: {operation.error}"
    machine.error_message = machine.error_message or message
    machines.say(session, machine.uuid, message, "error")
    if operation.checkpoint_uuid is not None:
        session.get_one(Checkpoint, operation.checkpoint_uuid).verification_status = "failed"


def _looked(session: Session, settings: Settings, operation: Operation) -> None:
    if verification.is_trial(operation):
        verification.record_trial(session, operation)
    else:
        verification.record(session, operation)


def _pruned(session: Session, settings: Settings, operation: Operation) -> None:
    pruning.record(session, operation)
    variables, failed = operation.params["vars"], operation.status == "failed"
    removed = pruning.gone(operation.result)
    for item in variables["machine_prune"]:
        if item["carrier"] == "template" and (not failed or (item["vm_id"], item["name"]) in removed):
            metering.stopped(session, settings, item["vm_id"], state="ended")
    if variables["machine_prune_vm"] and not failed:
        metering.stopped(session, settings, variables["machine_vm_id"], state="ended")


def _adopted(session: Session, settings: Settings, operation: Operation) -> None:
    hubs.adopted(session, settings, operation)


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
    "pause": _paused,
    "resume": _spawned,
    "verify": _looked,
    "prune": _pruned,
    "adopt": _adopted,
    "hub_checkpoint": _checkpointed,
}
_FAILED: dict[str, Callable[[Session, Settings, Operation], None]] = {
    "spawn": _spawn_failed,
    "restore": _restore_failed,
    "checkpoint": _checkpoint_failed,
    "terminate": _terminate_failed,
    "pause": _pause_failed,
    "resume": _resume_failed,
    "prune": _pruned,
    "hub_checkpoint": _checkpoint_failed,
}
