"""Live events by SSE: what a machine says and becomes, as it happens. Postgres notifies, the tables are read."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any
from uuid import UUID

from anyio import to_thread
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from autovibe import db, jsonform, views
from autovibe.access import Caller, Level
from autovibe.api.v1.calls import ApiRoute, Call, doc
from autovibe.api.v1.doors import TooManyRequests
from autovibe.api.v1.routes import PREFIX
from autovibe.errors import AutovibeError, DatabaseUnreachable
from autovibe.models import Machine, MachineEvent, Operation

router = APIRouter(prefix=PREFIX, tags=["events"], route_class=ApiRoute)

MOST_STREAMS, MOST_OF_ONE = 500, 50
#: A sign of life for proxies; whether the caller may still listen is looked up as often, and when rights change.
_ALIVE = b": alive\n\n"
ALIVE_SECONDS = 15.0
#: What happens within such a moment is told together.
GATHER_SECONDS = 0.05
LINES = 500
#: A line has its id before its transaction ends: one with a smaller id may come so much later, among the last lines.
LATE_SECONDS, LATE_LINES = 30.0, 500
_STREAM = {
    200: {"description": "Server-sent events, until the machine has ended.", "content": {"text/event-stream": {}}}
}

Event = tuple[str, int | None, Any]


def streams(level: Level) -> Any:
    """A path that asks for `level` but holds no transaction while it streams."""

    def mark(function: Any) -> Any:
        function.level = level
        return function

    return mark


@dataclass
class OneMachine:
    """What a follower of one machine has been told."""

    uuid: UUID
    #: Up to here it has been told of all lines; beyond it, of these, since when.
    after: int = 0
    told: dict[int, float] = field(default_factory=dict)
    status: tuple[str, str | None] | None = None
    operations: dict[UUID, str] = field(default_factory=dict)
    #: There are more lines than one look takes.
    more: bool = False
    ended: bool = False

    def news(self, call: Call) -> list[Event]:
        """What is new: lines of its log, its status, its operations; at last `end` with the machine in full."""
        session = call.session
        machine = call.machine(self.uuid)
        now = (machine.status, machine.outcome)
        lines = self._lines(session)
        # Who comes again goes on after the last id that it has heard, which a late line's is not.
        newest = max(self.told, default=self.after)
        found: list[Event] = [("log", line.id if line.id > newest else None, views.event(line)) for line in lines]
        self.more = len(lines) == LINES
        self._note(lines)
        if now != self.status:
            self.status = now
            found.append(("status", None, views.machine(session, machine)))
        for row in session.scalars(
            select(Operation).where(Operation.machine_uuid == self.uuid).order_by(Operation.seq)
        ):
            if self.operations.get(row.uuid) != row.status:
                self.operations[row.uuid] = row.status
                found.append(("operation", None, views.operation(row)))
        if machine.status == "terminated" and not self.more:
            self.ended = True
            found.append(("end", None, views.machine_in_full(session, machine)))
        return found

    def _lines(self, session: Session) -> Sequence[MachineEvent]:
        """What it has not been told of the machine's log."""
        mine = MachineEvent.machine_uuid == self.uuid, MachineEvent.id > self.after
        query = select(MachineEvent).where(*mine, MachineEvent.id.not_in(list(self.told)))
        return session.scalars(query.order_by(MachineEvent.id).limit(LINES)).all()

    def _note(self, lines: Sequence[MachineEvent]) -> None:
        """It has been told of these; none comes any more before the oldest of them."""
        now = time.monotonic()
        self.told |= dict.fromkeys((line.id for line in lines), now)
        for number in sorted(self.told):
            if len(self.told) <= LATE_LINES and now - self.told[number] < LATE_SECONDS:
                break
            self.after = number
            del self.told[number]


@dataclass
class AllMachines:
    """What a follower of all the machines that it can see has been told: their status."""

    known: dict[UUID, tuple[str, str | None]] | None = None
    more: bool = False
    ended: bool = False

    def news(self, call: Call) -> list[Event]:
        """The machines whose status is new; at first those that have not ended."""
        columns = (Machine.uuid, Machine.status, Machine.outcome)
        query = select(*columns).where(call.caller.visible(Machine.project_uuid))
        if self.known is None:
            query = query.where(Machine.status != "terminated")
        else:
            query = query.where((Machine.status != "terminated") | Machine.uuid.in_(list(self.known)))
        now = {uuid: (status, outcome) for uuid, status, outcome in call.session.execute(query)}
        changed = [uuid for uuid, state in now.items() if (self.known or {}).get(uuid) != state]
        self.known = {uuid: state for uuid, state in now.items() if state[0] != "terminated"}
        return [("status", None, views.machine(call.session, call.session.get_one(Machine, uuid))) for uuid in changed]


class Streams:
    """How many there are, of whom."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()

    def take(self, caller: Caller) -> None:
        # Who owns the hub may follow each machine of a large batch.
        most = MOST_STREAMS if caller.is_local else MOST_OF_ONE
        if self.of.total() >= MOST_STREAMS or self.of[_person(caller)] >= most:
            raise TooManyRequests("Too many streams are open", "Close some.", retry_after=30)
        self.of[_person(caller)] += 1

    def give_back(self, caller: Caller) -> None:
        self.of[_person(caller)] -= 1


def _person(caller: Caller) -> str:
    """Not the key: one makes as many of these as one likes."""
    return str(caller.user_uuid or caller.name)


@router.get("/machines/{machine}/events", response_class=StreamingResponse, **doc(404, more=_STREAM))
@streams(Level.READ)
async def follow_machine(
    request: Request,
    machine: str,
    after: Annotated[int | None, Query(ge=0, lt=2**63, description="Only log lines after this one's id.")] = None,
    last_event_id: Annotated[str | None, Header(max_length=20)] = None,
) -> StreamingResponse:
    """Follow a machine: `log`, `status`, `operation`, and `end` with the machine in full.

    A log line's event id is its own: a client that reconnects goes on where it was (`Last-Event-ID`).
    """
    seen = after if after is not None else int(last_event_id) if (last_event_id or "").isdecimal() else 0
    uuid = await to_thread.run_sync(_with_call, request, lambda call: call.machine(machine).uuid)
    return _stream(request, OneMachine(uuid, min(seen, 2**63 - 1)), str(uuid))


@router.get("/events", response_class=StreamingResponse, **doc(more=_STREAM))
@streams(Level.READ)
async def follow_all(request: Request) -> StreamingResponse:
    """Follow the status of all the machines that you can see; at first those that have not ended are told."""
    return _stream(request, AllMachines(), None)


def _stream(request: Request, told: OneMachine | AllMachines, machine: str | None) -> StreamingResponse:
    caller = request.state.caller
    request.app.state.streams.take(caller)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(request, told, machine, caller), headers=headers, media_type="text/event-stream")


async def _events(
    request: Request, told: OneMachine | AllMachines, machine: str | None, caller: Caller
) -> AsyncIterator[bytes]:
    doors, is_new = request.app.state.doors, True
    notifications, changes, looked = doors.notifications, doors.changes, time.monotonic()
    try:
        with notifications.following(machine) as woken:
            while not notifications.stopping:
                woken.clear()
                news = await to_thread.run_sync(_with_call, request, told.news)
                for event in news:
                    yield _encoded(event)
                if is_new and not news:
                    # A proxy may keep the answer's head until something follows it.
                    yield _ALIVE
                is_new = False
                if told.ended:
                    return
                if not told.more and not await _wait(woken):
                    yield _ALIVE
                # Also of one that is never silent.
                if doors.changes != changes or time.monotonic() - looked > ALIVE_SECONDS:
                    changes, looked = doors.changes, time.monotonic()
                    request.state.caller = await doors.caller(request)
                    request.state.caller.require(Level.READ)
                await asyncio.sleep(GATHER_SECONDS)
    except AutovibeError as error:
        # Its right has ended, or the database is away: the client comes again and is told.
        yield _encoded(("error", None, {"code": error.code, "message": error.message}))
    except DBAPIError:
        away = DatabaseUnreachable("The hub's database does not answer")
        yield _encoded(("error", None, {"code": away.code, "message": away.message}))
    finally:
        request.app.state.streams.give_back(caller)


async def _wait(woken: asyncio.Event) -> bool:
    try:
        await asyncio.wait_for(woken.wait(), ALIVE_SECONDS)
    except TimeoutError:
        return False
    return True


def _with_call(request: Request, do: Any) -> Any:
    settings = request.app.state.settings
    with db.session_scope(settings) as session:
        return do(Call(request, session, settings, request.state.caller, Level.READ))


def _encoded(event: Event) -> bytes:
    kind, number, data = event
    lines = [f"event: {kind}".encode(), b"data: " + jsonform.dumps(data)]
    if number is not None:
        lines.insert(0, f"id: {number}".encode())
    return b"\n".join(lines) + b"\n\n"
