"""What the agent in a machine may ask of its hub, and what that changes.

Functions take a session and change only the machine that they are given (its token says which). They do not commit.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from autovibe import alerts, identity, machines, operations, policies, revival, tokens
from autovibe.errors import AutovibeError, NotFound
from autovibe.models import HUB, Checkpoint, Machine, MachineEvent, Project
from autovibe.settings import Settings

WALL_SECONDS = 3600
MAX_TURNS = 50
#: How often interrupted work is gone on with, in a row and without anything new; 0: never.
MAX_RESUMES = 10
#: Without output, model calls or changed files for so long, the CLI hangs: it is ended and its work gone on with.
IDLE_SECONDS = 1800
OUTPUT_BYTES = 256 * 2**20
#: An agent ends its CLI at the wall limit itself; the hub says so when it has not.
WALL_GRACE = timedelta(seconds=60)
#: Messages kept of one machine; later ones are accepted and dropped.
MAX_EVENTS = 50_000
#: Of a machine that has said so much already, a message is kept to its first characters.
LONG_EVENTS, LATER_CHARACTERS = 5_000, 1_000


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
    is_agents = machine is not None and machine.machine_type != HUB
    if not is_agents or machine.status == "terminated" or machine.generation != request.generation:
        raise Superseded()
    if machine.enrolled_generation == machine.generation:
        if machine.enrolled_nonce != request.nonce:
            raise AlreadyEnrolled()
    else:
        machine.enrolled_generation = machine.generation
        machine.enrolled_nonce = request.nonce
        machine.last_heartbeat_at = _now()
        machine.enrolled_at = revival.began(machine, machine.last_heartbeat_at)
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
    policy = policies.making(session, machine)
    return {
        "machine": str(machine.uuid),
        "project": str(machine.project_uuid),
        "name": machine.name,
        "agent_type": machine.machine_type,
        "prompt": machine.original_prompt or "",
        "command": given.get("command"),
        "files": given.get("files") or [],
        "limits": {
            "wall_seconds": wall_seconds(given.get("limits"), machine.resource_constraints),
            "max_turns": _limit(machine, "max_turns", MAX_TURNS),
            "max_resumes": _limit(machine, "max_resumes", MAX_RESUMES, least=0),
            "idle_seconds": _limit(machine, "idle_seconds", IDLE_SECONDS),
            "output_bytes": _limit(machine, "output_bytes", OUTPUT_BYTES),
        },
        "checkpoints": {
            "risky": policy.risky_patterns,
            "risky_seconds": policy.risky_seconds,
            "turns": policy.turns,
        },
        "gateway_url": settings.hub_url_for_guests,
        "model": given.get("model") or settings.default_model,
    }


def wall_seconds(*limits: dict[str, Any] | None) -> float:
    """How long a machine with these limits, the first that has one, may work from its enrolment on."""
    return _first("wall_seconds", WALL_SECONDS, *limits)


def record_progress(
    session: Session, machine: Machine, messages: list[dict[str, Any]], spool: str | None = None
) -> None:
    """Keeps what the agent says: {"at", "kind", "text", "seq"} each. What it has of this spool already it leaves."""
    if not messages or _has_said(session, machine, MAX_EVENTS):
        return
    most = LATER_CHARACTERS if _has_said(session, machine, LONG_EVENTS) else None
    now = _now()
    rows = [
        {
            "machine_uuid": machine.uuid,
            "at": _plausible(message["at"], now),
            "kind": message["kind"],
            "text": message["text"][:most],
            "spool": spool if message.get("seq") is not None else None,
            "spool_seq": message.get("seq") if spool else None,
        }
        for message in messages
    ]
    session.execute(insert(MachineEvent).on_conflict_do_nothing(), rows)


def _has_said(session: Session, machine: Machine, messages: int) -> bool:
    query = select(MachineEvent.id).where(MachineEvent.machine_uuid == machine.uuid).offset(messages).limit(1)
    return session.scalar(query) is not None


def request_checkpoint(
    session: Session, settings: Settings, machine: Machine, *, standing: bool = False, **what: Any
) -> tuple[UUID, UUID]:
    """Asks for a checkpoint: (checkpoint, operation). One that is under way, or has just been made, is the answer, too.

    `standing`: the CLI waits for it; no model call is to be waited for, there may be none before it is made. Stopping
    once the machine is to end: its final checkpoint follows anyway.
    """
    machine = _locked(session, machine)
    if machine.stop_requested_at is not None or machine.result:
        raise Stopping()
    # Whatever type it names: only people, who ask elsewhere, may have one at once.
    too_soon = policies.is_too_soon(session, machine)
    found = operations.pending(session, machine.uuid, "checkpoint")
    if standing and not too_soon:
        # One that is being made may be of a state before what the CLI did last.
        found = [one for one in found if one.status == "queued"]
    if not found and too_soon:
        found = [one for one in operations.last(session, machine.uuid, "checkpoint") if one.status != "failed"]
    if found:
        operation = found[0]
    else:
        _, operation = machines.checkpoint(session, settings, machine, **what)
    if standing and operation.status == "queued":
        operation.not_before = None
    return operation.checkpoint_uuid, operation.uuid


def checkpoint_status(session: Session, machine: Machine, checkpoint_uuid: UUID) -> str:
    """pending, verified or failed, of a checkpoint that this machine has made; NotFound for any other."""
    checkpoint = session.get(Checkpoint, checkpoint_uuid, populate_existing=True)
    if checkpoint is None or checkpoint.creating_machine_uuid != machine.uuid:
        raise NotFound(f"This machine has no checkpoint {checkpoint_uuid}")
    status = checkpoint.verification_status
    return "verified" if status == "pruned" else status


def record_result(session: Session, settings: Settings, machine: Machine, result: dict[str, Any]) -> bool:
    """Keeps how the work ended and asks for the machine's end with a final checkpoint. The first result counts.

    `result`: {"outcome", "summary", "exit_code", "manifest", "details"}. Returns whether that was the end: a machine
    that is out of budget may be paused instead, and goes on with its work later.
    """
    machine = _locked(session, machine)
    if machine.result:
        return True
    if machine.stop_requested_at is None and result["outcome"] == "out_of_budget":
        alerts.used_up(session, machine, "what is left does not pay for its next call")
    if machine.stop_requested_at is None and result["outcome"] != "succeeded":
        if operations.pending(session, machine.uuid, "pause"):
            return False
        if result["outcome"] == "out_of_budget" and _is_paused_when_exhausted(session, machine):
            machines.pause(session, settings, machine, reason="budget")
            return False
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
    return True


def _is_paused_when_exhausted(session: Session, machine: Machine) -> bool:
    return session.get_one(Project, machine.project_uuid).when_exhausted == "pause"


def _works(session: Session, machine: Machine) -> None:
    """The status that fits a living agent: `checkpointing` while a checkpoint is under way, else `working`."""
    if machine.status not in ("terminated", "paused"):
        under_way = operations.pending(session, machine.uuid, "checkpoint")
        machine.status = "checkpointing" if under_way else "working"


def _limit(machine: Machine, name: str, default: float, *, least: float = 1e-9) -> float:
    """The assignment's limit, else the machine's, else the default."""
    return _first(name, default, (machine.assignment or {}).get("limits"), machine.resource_constraints, least=least)


def _first(name: str, default: float, *limits: dict[str, Any] | None, least: float = 1e-9) -> float:
    """The first of the limits; what is no number of at least `least` is none."""
    for source in limits:
        value = (source or {}).get(name)
        if isinstance(value, int | float) and value >= least:
            return value
    return default


def _locked(session: Session, machine: Machine) -> Machine:
    """The machine as it is now, held for this transaction."""
    return machines.locked(session, machine.uuid)


def _plausible(at: datetime, now: datetime) -> datetime:
    """A guest's clock may be anything: what lies further off than an hour is dated by the hub."""
    return at if abs(at - now) < timedelta(hours=1) else now


def _now() -> datetime:
    return datetime.now(UTC)
