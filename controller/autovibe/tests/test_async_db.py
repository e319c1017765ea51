"""The event loop's connections: what is slow, what is wrong and what is gone are three different things."""

import asyncio
import contextlib

import asyncpg
import pytest
import sqlalchemy as sa
from autovibe import async_db, db
from autovibe.async_db import Pool, Statement
from autovibe.errors import DatabaseBusy

BACKEND = Statement(sa.select(sa.func.pg_backend_pid()))
#: It never ends, and says how often it was begun.
ENDLESS = Statement(sa.select(sa.func.nextval("begun"), sa.func.pg_sleep(3600)))


@contextlib.asynccontextmanager
async def opened(settings):
    """A pool of one connection."""
    with db.session_scope(settings) as session:
        session.execute(sa.text("CREATE SEQUENCE begun"))
    pool = Pool(settings, "test", connections=1)
    try:
        yield pool
    finally:
        await pool.close()
        db.dispose(settings)


def begun(settings):
    with db.session_scope(settings) as session:
        return session.scalar(sa.text("SELECT last_value FROM begun WHERE is_called"))


async def until_begun(settings):
    async with asyncio.timeout(30):
        while not begun(settings):
            await asyncio.sleep(0.01)


def test_a_slow_statement_is_not_begun_twice_and_leaves_its_connection(settings, monkeypatch):
    async def ask():
        async with opened(settings) as pool:
            ((before,),) = await pool.rows(BACKEND)
            monkeypatch.setattr(async_db, "STATEMENT_SECONDS", 0.2)
            with pytest.raises(DatabaseBusy, match="too busy") as refused:
                await pool.rows(ENDLESS)
            assert (refused.value.http_status, refused.value.code) == (503, "busy")
            assert refused.value.details["retry_after"] > 0
            assert begun(settings) == 1
            monkeypatch.setattr(async_db, "STATEMENT_SECONDS", 30)
            assert await pool.rows(BACKEND) == [(before,)]

    asyncio.run(ask())


def test_who_gets_no_connection_does_not_wait_for_ever(settings, monkeypatch):
    async def ask():
        async with opened(settings) as pool:
            ((before,),) = await pool.rows(BACKEND)
            endless = asyncio.create_task(pool.rows(ENDLESS))
            await until_begun(settings)
            monkeypatch.setattr(async_db, "CONNECTION_SECONDS", 0.2)
            with pytest.raises(DatabaseBusy):
                await pool.rows(BACKEND)
            assert begun(settings) == 1
            endless.cancel()
            await asyncio.wait([endless])
            monkeypatch.setattr(async_db, "CONNECTION_SECONDS", 30)
            assert await pool.rows(BACKEND) == [(before,)]

    asyncio.run(ask())


def test_a_value_that_does_not_fit_is_no_lost_connection(settings):
    async def ask():
        async with opened(settings) as pool:
            ((before,),) = await pool.rows(BACKEND)
            with pytest.raises(asyncpg.DataError):
                await pool.fetch("SELECT $1::integer", "no number")
            assert await pool.rows(BACKEND) == [(before,)]

    asyncio.run(ask())
