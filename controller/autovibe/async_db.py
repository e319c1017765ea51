"""Postgres from an event loop: asyncpg's connections, and statements that Postgres plans once for each of them.

What comes often goes this way: no thread, no BEGIN, no COMMIT, and nothing built anew. All else goes by `autovibe.db`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql.asyncpg import dialect

from autovibe import db
from autovibe.errors import DatabaseBusy, DatabaseUnreachable
from autovibe.settings import Settings

CONNECTIONS = 4
CONNECTION_SECONDS = 10.0
STATEMENT_SECONDS = 30.0
CLOSE_SECONDS = 5.0
#: When somebody is to come again whom the database has no time for.
RETRY_SECONDS = 5
#: What the database, or the way to it, cannot do now.
UNREACHABLE = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError)
#: The same, what it says of itself when it ends, begins or has no room, and what asyncpg says when it has heard that
#: on a connection that was idle.
_AWAY = (
    *UNREACHABLE,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InternalClientError,
)
_DIALECT = dialect()


class _ConnectionLost(DatabaseUnreachable):
    """The connection does not answer any more; a new one may."""


class Statement:
    """A SELECT as asyncpg sends it. Its `bindparam`s are given by name."""

    def __init__(self, query: sa.Select[Any]) -> None:
        compiled = query.compile(dialect=_DIALECT)
        self.text = str(compiled)
        self._names = tuple(compiled.positiontup or ())
        self._constants = compiled.params

    def values(self, given: Mapping[str, Any]) -> list[Any]:
        """What is sent with the text, in its order."""
        return [given[name] if name in given else self._constants[name] for name in self._names]


class Pool:
    """Some connections of one event loop, opened by the first question."""

    def __init__(self, settings: Settings, name: str, connections: int = CONNECTIONS, **server_settings: str) -> None:
        """`server_settings`: Postgres' own, for these connections."""
        self.settings = settings
        self._name = name
        self._server_settings = server_settings
        self._connections = connections
        self._pool: asyncpg.Pool | None = None
        self._opening = asyncio.Lock()

    async def rows(self, statement: Statement, **given: Any) -> list[asyncpg.Record]:
        """The rows of a SELECT, which sees the database as it is then. DatabaseUnreachable, DatabaseBusy."""
        values = statement.values(given)
        try:
            return await self.fetch(statement.text, *values)
        except _ConnectionLost:
            # The server was restarted: a connection may die of that at its next use, and is not the only one.
            return await self.fetch(statement.text, *values)

    async def fetch(self, query: str, *values: Any) -> list[asyncpg.Record]:
        """The rows of a statement, which is a transaction. DatabaseUnreachable, DatabaseBusy.

        A connection is waited for CONNECTION_SECONDS, and the rows STATEMENT_SECONDS.
        """
        try:
            pool = self._pool or await self._open()
            async with pool.acquire(timeout=CONNECTION_SECONDS) as connection:
                return await connection.fetch(query, *values, timeout=STATEMENT_SECONDS)
        except TimeoutError:
            # Asked again it would only take as long again, and the other connections are well.
            raise DatabaseBusy(retry_after=RETRY_SECONDS) from None
        except _AWAY as error:
            if self._pool is not None:
                await self._pool.expire_connections()
            raise _ConnectionLost(f"Postgres cannot be reached: {type(error).__name__}") from None

    async def _open(self) -> asyncpg.Pool:
        async with self._opening:
            if self._pool is None:
                # Nothing is left on a connection that would have to be put back.
                options = {"min_size": 1, "max_size": self._connections, "reset": _leave}
                where = await address(self.settings, self._name)
                where["server_settings"] |= self._server_settings
                self._pool = await asyncpg.create_pool(**where, **options)
            return self._pool

    async def close(self) -> None:
        """End the connections. The next question opens new ones."""
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                await asyncio.wait_for(pool.close(), CLOSE_SECONDS)
            except TimeoutError:
                pool.terminate()


async def address(settings: Settings, name: str) -> dict[str, Any]:
    """How asyncpg connects to the database, which is there and has the right schema. `name` is what Postgres shows."""
    # It may start the embedded server, and it checks the schema.
    engine = await asyncio.to_thread(db.engine, settings)
    url = sa.make_url(engine.url).set(drivername="postgresql")
    return {
        "dsn": url.render_as_string(hide_password=False),
        "timeout": CONNECTION_SECONDS,
        "server_settings": {
            "timezone": "UTC",
            "application_name": name,
            # Planning anew for each call takes longer than running it.
            "plan_cache_mode": "force_generic_plan",
        },
    }


async def _leave(connection: asyncpg.Connection) -> None:
    """Leave a connection as it is."""
