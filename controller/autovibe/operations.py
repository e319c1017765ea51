"""Operations: what Ansible is to do to machines. Postgres is the queue.

queued → running → succeeded / failed. A worker claims operations (`FOR UPDATE SKIP LOCKED`), holds them
by a lease, and ends each once. What a dead worker held goes back to the queue, but only when the
processes of its run are gone: Ansible's workers outlive a killed runner.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Select, and_, exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased

from autovibe.errors import AutovibeError, NotFound
from autovibe.models import Operation, Run

#: Postgres itself notifies it whenever an operation is queued or changes its status.
CHANNEL = "autovibe_operations"
KINDS = (
    *("spawn", "checkpoint", "restore", "promote", "terminate", "template", "pause", "resume", "verify", "prune"),
    *("adopt", "hub_checkpoint"),
)
STOPS = ("terminate", "pause")
#: A stop never waits behind spawns.
LANES = {"work": tuple(kind for kind in KINDS if kind not in STOPS), "stop": STOPS}
#: The playbook of a kind, where it is not named like it.
PLAYBOOKS = {"template": "templates", "adopt": "hub"}
MAX_ATTEMPTS = 5


class LeaseLost(AutovibeError):
    """The operation is no longer held by this worker."""

    code = "lease_lost"
    http_status = 409


def enqueue(
    session: Session,
    kind: str,
    *,
    machine_uuid: UUID | None = None,
    project_uuid: UUID | None = None,
    checkpoint_uuid: UUID | None = None,
    template_uuid: UUID | None = None,
    params: dict[str, Any] | None = None,
    idempotency_key: str | None = None,
    depends_on_uuid: UUID | None = None,
    not_before: datetime | None = None,
) -> Operation:
    """Queue an operation and wake the workers at commit; with a key in use already, return that operation.

    Nobody claims it `not_before`. `params["vars"]` are the host's variables (`machine_…`, `template_…`), never secrets;
    other keys are the controller's own.
    """
    values = {
        "uuid": uuid4(),
        "kind": kind,
        "machine_uuid": machine_uuid,
        "project_uuid": project_uuid,
        "checkpoint_uuid": checkpoint_uuid,
        "template_uuid": template_uuid,
        "params": params or {},
        "idempotency_key": idempotency_key,
        "depends_on_uuid": depends_on_uuid,
        "not_before": not_before,
    }
    session.flush()
    session.execute(insert(Operation).values(values).on_conflict_do_nothing(index_elements=["idempotency_key"]))
    if idempotency_key is None:
        return session.get_one(Operation, values["uuid"])
    return session.scalars(select(Operation).where(Operation.idempotency_key == idempotency_key)).one()


def get(session: Session, operation_uuid: UUID) -> Operation:
    """The operation, or NotFound."""
    operation = session.get(Operation, operation_uuid)
    if operation is None:
        raise NotFound(f"There is no operation {operation_uuid}")
    return operation


def claimable(kinds: Sequence[str]) -> Select[tuple[Operation]]:
    """What may be claimed now, in the order of asking: no earlier one of its machine is open."""
    earlier, before = aliased(Operation), aliased(Operation)
    waits_for_machine = exists().where(
        earlier.machine_uuid == Operation.machine_uuid,
        or_(earlier.status == "running", and_(earlier.status == "queued", earlier.seq < Operation.seq)),
    )
    dependency_done = exists().where(before.uuid == Operation.depends_on_uuid, before.status == "succeeded")
    return (
        select(Operation)
        .where(Operation.status == "queued", Operation.kind.in_(kinds), ~waits_for_machine)
        .where(or_(Operation.not_before.is_(None), Operation.not_before <= func.clock_timestamp()))
        .where(or_(Operation.depends_on_uuid.is_(None), dependency_done))
        .order_by(Operation.seq)
    )


def claim(
    session: Session, worker: str, hostname: str, *, kinds: Sequence[str], limit: int, lease: timedelta
) -> Run | None:
    """Claim up to `limit` operations of one kind for a new run; None when there is nothing to do.

    The kind is that of the operation that has waited longest. Their attempts count from here.
    """
    kind = session.scalars(claimable(kinds).with_only_columns(Operation.kind).limit(1)).first()
    if kind is None:
        return None
    chosen = session.scalars(claimable([kind]).limit(limit).with_for_update(skip_locked=True, of=Operation)).all()
    if not chosen:
        return None
    run = Run(uuid=uuid4(), kind=kind, worker=worker, hostname=hostname)
    session.add(run)
    session.flush()
    now = datetime.now(UTC)
    for operation in chosen:
        operation.status = "running"
        operation.lease_owner = worker
        operation.lease_expires_at = now + lease
        operation.run_uuid = run.uuid
        operation.attempts += 1
        operation.claimed_at = now
        operation.started_at = operation.started_at or now
    session.flush()
    return run


def of_run(session: Session, run_uuid: UUID, *, unfinished: bool = False) -> list[Operation]:
    """The operations that this run serves, in the order of asking."""
    query = select(Operation).where(Operation.run_uuid == run_uuid).order_by(Operation.seq)
    if unfinished:
        query = query.where(Operation.status == "running")
    return list(session.scalars(query))


def extend(session: Session, worker: str, lease: timedelta) -> set[UUID]:
    """Extend every lease of this worker; returns the runs that it still holds operations of."""
    renewed = session.execute(
        update(Operation)
        .where(Operation.lease_owner == worker, Operation.status == "running")
        .values(lease_expires_at=func.now() + lease)
        .returning(Operation.run_uuid)
    )
    return set(renewed.scalars())


def finish(
    session: Session,
    operation_uuid: UUID,
    *,
    run_uuid: UUID | None = None,
    result: dict[str, Any] | None = None,
    error: str | None = None,
    error_class: str | None = None,
) -> Operation | None:
    """End an operation: `succeeded`, or `failed` when there is an error. Once: None when it has ended before.

    With `run_uuid`, only while that run holds it.
    """
    operation = session.get(Operation, operation_uuid, with_for_update=True, populate_existing=True)
    if operation is None or operation.status in ("succeeded", "failed"):
        return None
    if run_uuid is not None and operation.run_uuid != run_uuid:
        return None
    operation.status = "succeeded" if error is None else "failed"
    operation.result = result
    operation.error = error
    operation.error_class = error_class
    operation.lease_owner = None
    operation.lease_expires_at = None
    operation.finished_at = datetime.now(UTC)
    session.flush()
    return operation


def cancel_queued(session: Session, machine_uuid: UUID, reason: str) -> list[Operation]:
    """Fail what is queued for a machine and not begun; returns those operations."""
    queued = session.scalars(
        select(Operation)
        .where(Operation.machine_uuid == machine_uuid, Operation.status == "queued", Operation.kind != "promote")
        .order_by(Operation.seq)
        .with_for_update(skip_locked=True)
    ).all()
    for operation in queued:
        finish(session, operation.uuid, error=reason, error_class="Cancelled")
    return list(queued)


def hopeless(session: Session) -> list[tuple[Operation, str]]:
    """Queued operations that can never run: what they depend on has failed. With the reason, locked."""
    before = aliased(Operation)
    rows = session.execute(
        select(Operation, before)
        .join(before, before.uuid == Operation.depends_on_uuid)
        .where(Operation.status == "queued", before.status == "failed")
        .with_for_update(skip_locked=True, of=Operation)
    ).all()
    return [
        (row[0], f"The {row[1].kind} it depends on has failed: {row[1].error or 'no reason given'}") for row in rows
    ]


def open_runs(session: Session, hostname: str | None = None) -> list[Run]:
    """Runs that have not ended, as the database knows it."""
    query = select(Run).where(Run.status == "running")
    if hostname is not None:
        query = query.where(Run.hostname == hostname)
    return list(session.scalars(query.order_by(Run.started_at)))


def put_back(session: Session, operations: Iterable[Operation], reason: str) -> list[Operation]:
    """Queue these running operations again with the same parameters; those out of attempts are returned instead.

    Only for a run whose processes are gone.
    """
    exhausted = []
    for operation in operations:
        if operation.status != "running":
            continue
        if operation.attempts >= MAX_ATTEMPTS:
            exhausted.append(operation)
            continue
        operation.status = "queued"
        operation.lease_owner = None
        operation.lease_expires_at = None
        operation.run_uuid = None
        operation.claimed_at = None
        operation.error = reason
    session.flush()
    return exhausted


def end_run(session: Session, run_uuid: UUID, status: str, return_code: int | None = None) -> None:
    """Record that a run has ended: succeeded, failed or lost. Once."""
    session.execute(
        update(Run)
        .where(Run.uuid == run_uuid, Run.status == "running")
        .values(status=status, return_code=return_code, ended_at=func.now())
    )


def next_due(session: Session) -> float | None:
    """Seconds until the next operation may be claimed that is to wait; None when none waits."""
    wait = func.min(func.extract("epoch", Operation.not_before - func.clock_timestamp()))
    found = session.scalar(select(wait).where(Operation.status == "queued", Operation.not_before.is_not(None)))
    return None if found is None else max(0.0, float(found))


def last(session: Session, machine_uuid: UUID, kind: str) -> list[Operation]:
    """The machine's last operation of this kind, if any, as a list."""
    query = select(Operation).where(Operation.machine_uuid == machine_uuid, Operation.kind == kind)
    return list(session.scalars(query.order_by(Operation.seq.desc()).limit(1)))


def pending(session: Session, machine_uuid: UUID, kind: str | None = None) -> list[Operation]:
    """Unfinished operations of a machine, in the order of asking."""
    query = select(Operation).where(Operation.machine_uuid == machine_uuid, Operation.status.in_(("queued", "running")))
    if kind is not None:
        query = query.where(Operation.kind == kind)
    return list(session.scalars(query.order_by(Operation.seq)))
