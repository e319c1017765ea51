"""The gateway's way to the database: connections of its own, and statements that many calls share.

A call's two steps are one statement each, sent by the event loop itself: no thread, no BEGIN, no COMMIT. What arrives
while a statement runs goes with the next one, so that a budget's row is locked, and the disk waited for, once for all
of them.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Generic, TypeVar
from uuid import UUID

import asyncpg

from autovibe import budgets, db
from autovibe.async_db import STATEMENT_SECONDS, UNREACHABLE, address
from autovibe.settings import Settings

log = logging.getLogger("autovibe.gateway")
Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_AT_ONCE = 64


class Link:
    """One connection, opened at its first use and again after it broke."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection: asyncpg.Connection | None = None
        self._opening = asyncio.Lock()

    async def fetch(self, query: str, *values: Any) -> list[asyncpg.Record]:
        """The rows of one statement, which is one transaction; one at a time. What Postgres undid is done again."""
        async with self._opening:
            for tried in range(1, db.TRIES):
                try:
                    return await self._fetch(query, *values)
                except asyncpg.PostgresError as error:
                    if error.sqlstate not in db.UNDONE:
                        raise
                    log.info("Postgres undid a statement for the sake of others; it is done again: %s", error)
                await asyncio.sleep(db.pause(tried))
            return await self._fetch(query, *values)

    async def _fetch(self, query: str, *values: Any) -> list[asyncpg.Record]:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._open()
        return await self._connection.fetch(query, *values, timeout=STATEMENT_SECONDS)

    async def _open(self) -> asyncpg.Connection:
        return await asyncpg.connect(**await address(self._settings, "autovibe gateway"))

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close(timeout=5)


class Batcher(Generic[Item, Result]):
    """Runs one statement at a time, with all that was waiting when it began."""

    def __init__(self, run: Callable[[list[Item]], Awaitable[Sequence[Result]]]) -> None:
        self._run = run
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, item: Item) -> asyncio.Future[Result]:
        """The item's result, in time. Cancelled before its statement began, it is left out."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        return future

    async def _drain(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
            if batch := [(item, future) for item, future in batch if not future.cancelled()]:
                await self._together(batch)

    async def _together(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = await self._run([item for item, _ in batch])
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, UNREACHABLE):
                # One of them is what the database refuses: the others are not to fail with it.
                for one in batch:
                    await self._together([one])
                return
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
                    future.exception()  # Nobody may be left to look.
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)


@dataclass(frozen=True)
class Hold:
    """What is to be held for a call."""

    reservation_uuid: UUID
    machine_uuid: UUID
    generation: int
    amount: Decimal
    holder: str
    model: str
    priced_as: str
    subtype: str
    although_checkpointing: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of it, as `reserve_calls` has it; the machine's project, where there is one.

    `models`: those that the project allows, None for all. `seconds`: when it may be tried again.
    """

    outcome: str
    project_uuid: UUID | None = None
    models: list[str] | None = None
    seconds: int | None = None


class Books:
    """Reservations made, ended and extended for the calls of this process."""

    def __init__(self, settings: Settings) -> None:
        self._hold_for = timedelta(seconds=settings.call_hold_seconds)
        self._per_minute, self._at_once = settings.machine_calls_per_minute, settings.machine_calls_at_once
        self._links = [Link(settings) for _ in range(3)]
        self._reserving, self._ending, self._asking = self._links
        self._holds: Batcher[Hold, Outcome] = Batcher(self._hold)
        self._ends: Batcher[dict[str, Any], None] = Batcher(self._end)

    def hold(self, wanted: Hold) -> asyncio.Future[Outcome]:
        return self._holds.add(wanted)

    def end(self, ended: dict[str, Any]) -> asyncio.Future[None]:
        """`ended`: from `budgets.settled` or `budgets.released`."""
        return self._ends.add(ended)

    async def extend(self, calls: Mapping[UUID, list[Any] | None]) -> None:
        """The calls go on: their reservations do not expire yet. By reservation, what is to be booked if they do."""
        known = [json.dumps({} if lines is None else {"known": lines}) for lines in calls.values()]
        await self._asking.fetch(_EXTEND, list(calls), known, datetime.now(UTC) + self._hold_for)

    async def machine(self, machine_uuid: UUID, generation: int) -> Outcome:
        """Whether a machine may still call; `held` stands for yes."""
        rows = await self._asking.fetch(_MACHINE, machine_uuid)
        if not rows or rows[0]["status"] == "terminated":
            return Outcome("ended")
        outcome = "held" if rows[0]["generation"] == generation else "old"
        return Outcome(outcome, rows[0]["project_uuid"], rows[0]["models"])

    async def close(self) -> None:
        for link in self._links:
            await link.close()

    async def _hold(self, holds: list[Hold]) -> list[Outcome]:
        rows = await self._reserving.fetch(
            _HOLD,
            [one.reservation_uuid for one in holds],
            [one.machine_uuid for one in holds],
            [one.generation for one in holds],
            [one.amount for one in holds],
            [one.holder for one in holds],
            [one.model for one in holds],
            [one.priced_as for one in holds],
            [one.subtype for one in holds],
            [one.although_checkpointing for one in holds],
            datetime.now(UTC) + self._hold_for,
            self._per_minute,
            self._at_once,
        )
        return [Outcome(row["outcome"], row["project_uuid"], row["models"], row["seconds"]) for row in rows]

    async def _end(self, ends: list[dict[str, Any]]) -> list[None]:
        for row in await self._ending.fetch(_END, json.dumps(ends)):
            budgets.note_frozen(row["reservation"], row["froze"])
        return [None] * len(ends)


_HOLD = (
    "SELECT outcome, project_uuid, models, seconds "
    "FROM reserve_calls($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
)
_END = "SELECT reservation, froze FROM end_reservations($1)"
_EXTEND = (
    # In the order in which everybody takes them.
    "WITH mine AS MATERIALIZED ("
    "SELECT uuid FROM reservations WHERE uuid = ANY ($1::UUID[]) ORDER BY uuid FOR NO KEY UPDATE) "
    "UPDATE reservations r SET expires_at = greatest(r.expires_at, $3), metadata = r.metadata || k.known "
    "FROM unnest($1::UUID[], $2::JSONB[]) AS k (uuid, known) JOIN mine USING (uuid) "
    "WHERE r.uuid = k.uuid AND r.status = 'held'"
)
_MACHINE = (
    "SELECT m.project_uuid, m.status, m.generation, p.models FROM intelligent_machines m "
    "JOIN projects p ON p.uuid = m.project_uuid WHERE m.uuid = $1"
)
