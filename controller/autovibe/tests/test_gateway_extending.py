"""Calls that go on keep their reservations: the gateway's own task, without a server."""

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import sqlalchemy as sa
from autovibe import budgets, db, projects
from autovibe.gateway.database import Books
from autovibe.gateway.routes import Gateway
from autovibe.models import Reservation

SOON = timedelta(minutes=1)


@pytest.fixture
def held(settings):
    """Two calls' reservations, by their ids; the second stands before the first in the table."""
    with db.session_scope(settings) as session:
        project = projects.create(session, "shop", budget_cad=Decimal(5))
        wish = {"amount_cad": Decimal("0.001"), "holder": "test", "purpose": budgets.AI_CALL}
        wish |= {"project_uuid": project.uuid, "expires_at": datetime.now(UTC) + SOON}
        before, last = budgets.reserve(session, **wish).uuid, budgets.reserve(session, **wish).uuid
        while last > before:
            before, last = last, budgets.reserve(session, **wish).uuid
        return [last, before]


def expiries(settings, uuids):
    with db.session_scope(settings) as session:
        return [session.get_one(Reservation, uuid).expires_at for uuid in uuids]


@asynccontextmanager
async def books_of(settings):
    books = Books(settings)
    try:
        yield books
    finally:
        await books.close()


def test_a_call_that_cannot_say_what_it_cost_keeps_no_other_from_being_extended(settings, held, monkeypatch):
    async def main():
        gateway = Gateway(settings)
        extended, extend = asyncio.Event(), gateway.books.extend

        async def noted(calls):
            await extend(calls)
            if set(held) <= calls.keys():
                extended.set()

        monkeypatch.setattr(gateway.books, "extend", noted)
        monkeypatch.setattr("autovibe.gateway.routes.TELL_SECONDS", 0.05)
        gateway.under_way.update({held[0]: lambda: 1 // 0, held[1]: lambda: None})
        try:
            await asyncio.wait_for(extended.wait(), 60)
        finally:
            gateway.under_way.clear()
            await gateway.close()

    before = expiries(settings, held)
    settings = settings.model_copy(update={"call_hold_seconds": 300})
    monkeypatch.setattr("autovibe.gateway.routes.EXTENSIONS", 3000)
    asyncio.run(main())
    assert all(now > then for now, then in zip(expiries(settings, held), before, strict=True))


def test_extending_waits_for_who_ends_calls_before_it_holds_any_of_them(settings, held):
    """Whoever ends them takes them by their ids: nobody may have a later one and wait for an earlier one."""

    async def main():
        async with books_of(settings) as books:
            with db.engine(settings).connect() as other:
                lock = sa.text("SELECT FROM reservations WHERE uuid = :uuid FOR UPDATE")
                other.execute(lock, {"uuid": held[0]})
                extending = asyncio.create_task(books.extend({held[1]: None, held[0]: None}))
                await asyncio.to_thread(waits, settings)
                other.execute(sa.text("SET LOCAL lock_timeout = '3s'"))
                other.execute(lock, {"uuid": held[1]})
                other.commit()
            await asyncio.wait_for(extending, 60)

    asyncio.run(main())


def waits(settings):
    """Until somebody waits for a lock."""
    somebody = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = :name")
    mine = {"name": db.engine(settings).url.database}
    with db.engine(settings).connect().execution_options(isolation_level="AUTOCOMMIT") as watching:
        deadline = datetime.now(UTC) + timedelta(seconds=60)
        while not watching.scalar(somebody, mine):
            assert datetime.now(UTC) < deadline, "nobody waits"
