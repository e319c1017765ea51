"""What the agent in a machine may ask of its hub, and what that changes.

Functions take a session and change only the machine that they are given (its token says which). They do not commit.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from autovibe import allocations, identity, machines, operations, tokens
from autovibe.errors import AutovibeError, NotFound
from autovibe.models import Checkpoint, Machine, MachineEvent
from autovibe.settings import Settings

WALL_SECONDS = 3600
MAX_TURNS = 50
CHECKPOINT_EVERY_SECONDS = 300
CHECKPOINT_EVERY_CALLS = 5
#: An agent ends its CLI at the wall limit itself; the hub says so when it has not.
WALL_GRACE = timedelta(seconds=60)
#: Messages kept of one machine; later ones are accepted and dropped.
MAX_EVENTS = 50_000


class Superseded(AutovibeError):
    """This identity is of no more use: the machine has ended or has a newer one."""

    code = "superseded"
    http_status = 409


class AlreadyEnrolled(AutovibeError):
    """This identity is in use by another boot of the machine, or by a copy of it."""

    code = "already_enrolled"
    http_status = 409


class Stopping(AutovibeError):
    """The machine is being stopped."""

    code = "stopping"
    http_status = 409


@dataclass(frozen=True)
class Enrolment:
    """A machine's request to be let in."""

    machine: UUID
    generation: int
    token: str
    nonce: str
    agent_sha256: str = ""


def enrol(session: Session, settings: Settings, request: Enrolment) -> tuple[str, datetime]:
    """Lets a machine in, once for each generation: a machine token and when it ends.

    The same nonce may ask again (its answer was lost). BadToken, Superseded, AlreadyEnrolled.
    """
    if not identity.is_enrol_token(settings, request.machine, request.generation, request.token):
        raise tokens.BadToken("The enrolment token is not valid")
    machine = session.get(Machine, request.machine, with_for_update=True, populate_existing=True)
    if machine is None or machine.status == "terminated" or machine.generation != request.generation:
        raise Superseded()
    if machine.enrolled_generation == machine.generation:
        if machine.enrolled_nonce != request.nonce:
            raise AlreadyEnrolled()
    else:
        machine.enrolled_generation = machine.generation
        machine.enrolled_nonce = request.nonce
        machine.enrolled_at = machine.last_heartbeat_at = _now()
        machine.metadata_ = {**machine.metadata_, "agent_sha256": request.agent_sha256}
        if machine.status in ("spawning", "working"):
            machine.status = "active"
    return tokens.issue(machine, settings)


def assignment(session: Session, settings: Settings, machine: Machine) -> dict[str, Any]:
    """What the machine is to do; the machine works from here on. Stopping when it is to do nothing any more."""
    machine = _locked(session, machine)
    if machine.stop_requested_at is not None or machine.result:
        raise Stopping()
    _works(session, machine)
    given = machine.assignment or {}
    return {
        "machine": str(machine.uuid),
        "project": str(machine.project_uuid),
        "name": machine.name,
        "agent_type": machine.machine_type,
        "prompt": machine.original_prompt or "",
        "command": given.get("command"),
        "files": given.get("files") or [],
        "limits": {"wall_seconds": wall_seconds(machine), "max_turns": _limit(machine, "max_turns", MAX_TURNS)},
        "checkpoint": {
            "every_seconds": _limit(machine, "checkpoint_seconds", CHECKPOINT_EVERY_SECONDS),
            "every_calls": _limit(machine, "checkpoint_calls", CHECKPOINT_EVERY_CALLS),
        },
        "gateway_url": settings.hub_url_for_guests,
        "model": given.get("model") or settings.default_model,
    }


def wall_seconds(machine: Machine) -> float:
    """How long the machine may work, from its enrolment on."""
    return _limit(machine, "wall_seconds", WALL_SECONDS)


def heartbeat(session: Session, settings: Settings, who: tokens.Authenticated, progress: str | None) -> dict[str, Any]:
    """Notes that the machine lives; says whether it is to go on, and renews an old token."""
    machine = _locked(session, who.machine)
    machine.last_heartbeat_at = _now()
    if progress is not None:
        machine.current_progress = progress
    _works(session, machine)
    fraction = budget_fraction(session, machine.project_uuid)
    reason = _stop_reason(machine, fraction)
    token, expires_at = tokens.issue(machine, settings) if who.is_old else (who.token, who.expires_at)
    return {
        "token": token,
        "expires_at": expires_at.isoformat(),
        "directive": "stop" if reason else "continue",
        "reason": reason,
        "api_calls": machine.api_calls,
        "budget_fraction": None if fraction is None else float(fraction),
    }


def budget_fraction(session: Session, project_uuid: UUID) -> Decimal | None:
    """The used part (0–1, more after an overrun) of the project's fullest present money budget; None without one."""
    rows = [row for row in allocations.present(session, project_uuid) if row.resource_type == "money"]
    parts = [row.used_amount / row.allocated_amount if row.allocated_amount else Decimal(1) for row in rows]
    return max(parts, default=None)


def record_progress(session: Session, machine: Machine, messages: list[dict[str, Any]]) -> None:
    """Keeps what the agent says: {"at", "kind", "text"} each."""
    kept = select(MachineEvent.id).where(MachineEvent.machine_uuid == machine.uuid).offset(MAX_EVENTS).limit(1)
    if not messages or session.scalar(kept) is not None:
        return
    now = _now()
    rows = [
        {
            "machine_uuid": machine.uuid,
            "at": _plausible(message["at"], now),
            "kind": message["kind"],
            "text": message["text"],
        }
        for message in messages
    ]
    session.execute(insert(MachineEvent), rows)


def request_checkpoint(session: Session, settings: Settings, machine: Machine, **what: Any) -> tuple[UUID, UUID]:
    """Asks for a checkpoint: (checkpoint, operation). One that is under way already is the answer to both.

    Stopping once the machine is to end: its final checkpoint follows anyway.
    """
    machine = _locked(session, machine)
    if machine.stop_requested_at is not None or machine.result:
        raise Stopping()
    for operation in operations.pending(session, machine.uuid, "checkpoint"):
        if operation.checkpoint_uuid is not None:
            return operation.checkpoint_uuid, operation.uuid
    checkpoint, operation = machines.checkpoint(session, settings, machine, **what)
    _works(session, machine)
    return checkpoint.uuid, operation.uuid


def checkpoint_status(session: Session, machine: Machine, checkpoint_uuid: UUID) -> str:
    """pending, verified or failed, of a checkpoint that this machine has made; NotFound for any other."""
    checkpoint = session.get(Checkpoint, checkpoint_uuid, populate_existing=True)
    if checkpoint is None or checkpoint.creating_machine_uuid != machine.uuid:
        raise NotFound(f"This machine has no checkpoint {checkpoint_uuid}")
    status = checkpoint.verification_status
    return "verified" if status == "pruned" else status


def record_result(session: Session, settings: Settings, machine: Machine, result: dict[str, Any]) -> None:
    """Keeps how the work ended and asks for the machine's end with a final checkpoint. The first result counts.

    `result`: {"outcome", "summary", "exit_code", "manifest", "details"}.
    """
    machine = _locked(session, machine)
    if machine.result:
        return
    manifest = result["manifest"]
    machine.result = {key: result[key] for key in ("outcome", "summary", "exit_code", "details")}
    machine.result["reported_at"] = _now().isoformat()
    machine.current_progress = result["summary"][:500]
    if result["outcome"] == "failed":
        machine.error_message = result["summary"]
    session.flush()
    end = machines.terminate(
        session, settings, machine, outcome=result["outcome"], reason="finished", manifest=manifest
    )
    # Somebody else may have asked for the end before, without a manifest.
    final = session.get(Checkpoint, end.checkpoint_uuid) if end.checkpoint_uuid else None
    if final is not None and not final.file_manifest:
        final.file_manifest = manifest


def _stop_reason(machine: Machine, fraction: Decimal | None) -> str | None:
    """Why the machine is to stop now: its stop_reason, `budget`, `wall_limit`; None when it is to go on."""
    if machine.stop_requested_at is not None:
        return machine.stop_reason or "terminate"
    if fraction is not None and fraction >= 1:
        return "budget"
    if machine.enrolled_at is not None:
        end = machine.enrolled_at + timedelta(seconds=wall_seconds(machine)) + WALL_GRACE
        if _now() > end:
            return "wall_limit"
    return None


def _works(session: Session, machine: Machine) -> None:
    """The status that fits a living agent: `checkpointing` while a checkpoint is under way, else `working`."""
    if machine.status != "terminated":
        under_way = operations.pending(session, machine.uuid, "checkpoint")
        machine.status = "checkpointing" if under_way else "working"


def _limit(machine: Machine, name: str, default: float) -> float:
    for source in ((machine.assignment or {}).get("limits"), machine.resource_constraints):
        value = (source or {}).get(name)
        if isinstance(value, int | float) and value > 0:
            return value
    return default


def _locked(session: Session, machine: Machine) -> Machine:
    """The machine as it is now, held for this transaction."""
    return session.get_one(Machine, machine.uuid, with_for_update=True, populate_existing=True)


def _plausible(at: datetime, now: datetime) -> datetime:
    """A guest's clock may be anything: what lies further off than an hour is dated by the hub."""
    return at if abs(at - now) < timedelta(hours=1) else now


def _now() -> datetime:
    return datetime.now(UTC)
