"""Removing checkpoints: what retention no longer keeps, or what a person deletes. Never one that something stands on.

`pruning` from the question until Proxmox has removed it, so that nothing starts from it meanwhile; then `pruned`, with
its place in the tree and without its manifest. What could not be removed is `verified` again, and looked for.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from autovibe import operations, policies, retention, verification
from autovibe.errors import Conflict
from autovibe.models import HUB, Checkpoint, Machine, MachineEvent, Operation, Project

log = logging.getLogger(__name__)

_THERE = ("pending", "verified", "missing", "pruning")
#: Checkpoints in one operation: between two, other things may be done to the machine.
BATCH = 20


class NotDeletable(Conflict):
    """That checkpoint is kept."""

    code = "checkpoint_in_use"


@dataclass(frozen=True)
class Verdict:
    """One checkpoint and why it is kept; None: it goes."""

    checkpoint: Checkpoint
    reason: str | None


def plan(session: Session, project: Project, now: datetime | None = None) -> list[Verdict]:
    """What the project's policy says of each of its checkpoints that are there, newest first."""
    rows = _there(session, project.uuid)
    reasons = retention.sorted_out(_nodes(session, project, rows), policies.keeping(project), now or datetime.now(UTC))
    by_uuid = {row.uuid: row for row in rows}
    return [Verdict(by_uuid[uuid], reason) for uuid, reason in reasons.items()]


def prune(session: Session, project: Project, now: datetime | None = None) -> list[Operation]:
    """Queue the removal of all that the policy does not keep."""
    session.get_one(Project, project.uuid, with_for_update=True, populate_existing=True)
    return remove(session, [one.checkpoint for one in plan(session, project, now) if one.reason is None])


def delete(session: Session, checkpoint: Checkpoint) -> Operation:
    """Queue the removal of one checkpoint whatever its age; NotDeletable with what keeps it."""
    project = session.get_one(Project, checkpoint.project_uuid, with_for_update=True, populate_existing=True)
    checkpoint = session.get_one(Checkpoint, checkpoint.uuid, with_for_update=True, populate_existing=True)
    if checkpoint.verification_status not in ("verified", "missing"):
        raise NotDeletable(f"Checkpoint {checkpoint.uuid} is {checkpoint.verification_status}")
    nobody = policies.Keeping(days=0, daily=0, weekly=0)
    nodes = _nodes(session, project, _there(session, project.uuid))
    reason = retention.sorted_out(nodes, nobody, datetime.now(UTC))[checkpoint.uuid]
    if reason == "fork":
        reason = None  # its children become its parent's
    if reason is not None:
        hint = "`autovibe checkpoint milestone --off` makes it one like others." if reason == "milestone" else ""
        raise NotDeletable(f"Checkpoint {checkpoint.uuid} is kept: {reason}", hint)
    return remove(session, [checkpoint])[0]


def remove(session: Session, checkpoints: Iterable[Checkpoint]) -> list[Operation]:
    """Queue the removal of these, which have been found to be of no use: some at a time of each machine."""
    by_machine: dict[UUID, list[Checkpoint]] = defaultdict(list)
    for checkpoint in checkpoints:
        checkpoint.verification_status = "pruning"
        by_machine[checkpoint.creating_machine_uuid].append(checkpoint)
    session.flush()
    queued = []
    for machine_uuid, rows in by_machine.items():
        machine = session.get_one(Machine, machine_uuid)
        rows.sort(key=lambda row: row.created_at)
        for first in range(0, len(rows), BATCH):
            queued.append(_enqueue(session, machine, rows[first : first + BATCH]))
    return queued


def gone(result: dict[str, Any] | None) -> set[tuple[int | None, str]]:
    """(VM id, name) of what a prune operation has removed, or found removed."""
    made = (result or {}).get("checkpoints") or []
    return {(one.get("vm_id"), one["name"]) for one in made if one.get("exists") is False}


def record(session: Session, operation: Operation) -> None:
    """What became of each checkpoint; what is left is verified again and looked for.

    A machine that has ended and has no checkpoint left loses its VM, by an operation of its own.
    """
    removed = gone(operation.result) if operation.status == "failed" else None
    left = []
    for row in _of(session, operation):
        items = [item for item in operation.params["vars"]["machine_prune"] if item["name"] == _name(row)]
        if removed is None or all((item["vm_id"], item["name"]) in removed for item in items):
            row.verification_status, row.file_manifest = "pruned", None
        else:
            row.verification_status = "verified"
            left.append(row)
    session.flush()
    _say(session, operation, len(operation.params["checkpoints"]) - len(left))
    machine = session.get_one(Machine, operation.machine_uuid)
    if left:
        verification.ask(session)
    elif operation.params["checkpoints"] and _is_over(session, machine):
        _enqueue(session, machine, [])


def _there(session: Session, project_uuid: UUID) -> list[Checkpoint]:
    mine = (Checkpoint.project_uuid == project_uuid, Checkpoint.verification_status.in_(_THERE))
    return list(session.scalars(select(Checkpoint).where(*mine)))


def _nodes(session: Session, project: Project, rows: Sequence[Checkpoint]) -> list[retention.Node]:
    """The project's checkpoints as retention sees them; a parent that is gone is left out of the line."""
    parents = select(Checkpoint.uuid, Checkpoint.parent_checkpoint_uuid).where(Checkpoint.project_uuid == project.uuid)
    everything = {row.uuid: row.parent_checkpoint_uuid for row in session.execute(parents)}
    there = {row.uuid for row in rows}
    machines = list(session.scalars(select(Machine).where(Machine.project_uuid == project.uuid)))
    have_left = {row.creating_machine_uuid for row in rows}
    branches: dict[UUID | None, int] = defaultdict(int)
    for machine in machines:
        if machine.status != "terminated" or machine.uuid in have_left:
            branches[_nearest(machine.parent_checkpoint_uuid, everything, there)] += 1
    pins = _pins(session, project, machines)
    return [
        retention.Node(
            row.uuid,
            _nearest(row.parent_checkpoint_uuid, everything, there),
            row.creating_machine_uuid,
            row.created_at,
            _pin(row, pins),
            branches[row.uuid],
        )
        for row in rows
    ]


def _nearest(uuid: UUID | None, parents: dict[UUID, UUID | None], there: set[UUID]) -> UUID | None:
    """The nearest ancestor that is there, the checkpoint itself first."""
    while uuid is not None and uuid not in there:
        uuid = parents.get(uuid)
    return uuid


def _pins(session: Session, project: Project, machines: list[Machine]) -> dict[UUID, str]:
    """Checkpoints in use, with the use."""
    found: dict[UUID, str] = {}
    for machine in machines:
        if machine.status != "terminated" and machine.last_checkpoint_uuid:
            found[machine.last_checkpoint_uuid] = "in use: a living machine goes on from it"
    for uuid in (project.initial_checkpoint_uuid, project.current_checkpoint_uuid):
        if uuid is not None:
            found[uuid] = "current"
    under_way = select(Operation.checkpoint_uuid).where(
        Operation.project_uuid == project.uuid,
        Operation.status.in_(("queued", "running")),
        Operation.checkpoint_uuid.is_not(None),
    )
    return found | dict.fromkeys(session.scalars(under_way), "in use: something is being done with it")


def _pin(row: Checkpoint, pins: dict[UUID, str]) -> str | None:
    if row.verification_status in ("pending", "pruning"):
        return row.verification_status
    if row.milestone:
        return "milestone"
    if row.checkpoint_type == "genesis":
        return "genesis"
    return pins.get(row.uuid)


def _name(row: Checkpoint) -> str:
    """Its name on Proxmox, of a snapshot and of a template alike."""
    return row.proxmox_snapshot_id or f"av-{row.uuid.hex}"


def _carriers(row: Checkpoint) -> list[dict[str, Any]]:
    """What is to be removed of it: the template that was made of it before the snapshot."""
    found = [{"vm_id": row.template_vm_id, "name": _name(row), "carrier": "template"}] if row.template_vm_id else []
    return [*found, {"vm_id": row.vm_id, "name": _name(row), "carrier": row.carrier}]


def _enqueue(session: Session, machine: Machine, rows: list[Checkpoint]) -> Operation:
    """The removal of these checkpoints, or, without any, of the machine's VM."""
    return operations.enqueue(
        session,
        "prune",
        machine_uuid=machine.uuid,
        project_uuid=machine.project_uuid,
        params={
            "checkpoints": [str(row.uuid) for row in rows],
            "vars": {
                "machine_vm_id": machine.vm_id,
                "machine_name": machine.name,
                "machine_uuid": str(machine.uuid),
                "machine_prune": [item for row in rows for item in _carriers(row)],
                "machine_prune_vm": not rows,
                # A hub's own VM is on whatever node it has moved to.
                **({"proxmox_node": ""} if machine.machine_type == HUB else {}),
            },
        },
    )


def _is_over(session: Session, machine: Machine) -> bool:
    """Whether the machine has ended and its VM, which is no template, carries nothing any more."""
    on_it = (Checkpoint.vm_id == machine.vm_id, Checkpoint.creating_machine_uuid == machine.uuid)
    left = select(Checkpoint.uuid).where(
        *on_it, or_(Checkpoint.verification_status.in_(_THERE), Checkpoint.carrier == "template")
    )
    return machine.status == "terminated" and session.scalar(left.limit(1)) is None


def _of(session: Session, operation: Operation) -> list[Checkpoint]:
    uuids = [UUID(text) for text in operation.params["checkpoints"]]
    query = select(Checkpoint).where(Checkpoint.uuid.in_(uuids), Checkpoint.verification_status == "pruning")
    return list(session.scalars(query.order_by(Checkpoint.uuid).with_for_update()))


def _say(session: Session, operation: Operation, done: int) -> None:
    text = f"{done} checkpoints removed"
    if not operation.params["checkpoints"]:
        text = "The VM is removed: nothing stands on it any more"
    if operation.status == "failed":
        text = f"{done} checkpoints removed, then: {operation.error}"
    kind = "error" if operation.status == "failed" else "system"
    session.add(MachineEvent(machine_uuid=operation.machine_uuid, kind=kind, text=text))
