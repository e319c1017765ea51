"""The database: engines, transactions, migrations."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from autovibe.errors import DatabaseError, DatabaseNotMigrated, DatabaseUnreachable
from autovibe.settings import Settings, load_settings

log = logging.getLogger(__name__)

#: The migration that this code is written for: the newest in `schema/versions` (a test compares them).
SCHEMA_REVISION = "0021"

#: Postgres undid a transaction that stood in the way of others (deadlock_detected, serialization_failure).
UNDONE = ("40P01", "40001")
TRIES = 6
P = ParamSpec("P")
T = TypeVar("T")

_engines: dict[tuple[str, bool], sa.Engine] = {}
_lock = threading.Lock()


def url(settings: Settings) -> str:
    """Where the database is; the embedded server is started when it is not running."""
    if settings.database_url is not None:
        return normal_url(settings.database_url.get_secret_value())
    from autovibe import postgres

    return normal_url(postgres.ensure_running(settings))


def normal_url(text: str) -> str:
    """`postgres://` and `postgresql://` as SQLAlchemy wants them."""
    try:
        parsed = sa.make_url(text)
    except sa.exc.ArgumentError:
        raise DatabaseError(
            "AUTOVIBE_DATABASE_URL is not a database URL", "Example: postgresql://user@host/name."
        ) from None
    if parsed.get_backend_name() not in ("postgresql", "postgres"):
        raise DatabaseError(
            f"AUTOVIBE_DATABASE_URL is for {parsed.get_backend_name()}; only PostgreSQL is supported", ""
        )
    return parsed.set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)


def engine(settings: Settings, *, check: bool = True) -> sa.Engine:
    """This process's engine for these settings.

    With `check` (the default) it has connected and found the expected schema, else it raises `DatabaseUnreachable`
    or `DatabaseNotMigrated`.
    """
    key = (_place(settings), check)
    with _lock:
        found = _engines.get(key)
        if found is None:
            found = make_engine(url(settings))
            if check:
                check_schema(found)
            _engines[key] = found
        return found


def _place(settings: Settings) -> str:
    return settings.database_url.get_secret_value() if settings.database_url else str(settings.state_dir)


def make_engine(database_url: str, **options: object) -> sa.Engine:
    """An engine with this project's options: UTC, READ COMMITTED, connections checked before use."""
    return sa.create_engine(
        database_url,
        connect_args={"connect_timeout": 10, "options": "-c timezone=UTC", "application_name": "autovibe"},
        **{"pool_pre_ping": True, **options},
    )


def dispose(settings: Settings | None = None) -> None:
    """Close the pooled connections: of these settings' engines, or all of this process."""
    with _lock:
        for key in list(_engines):
            wanted = settings is None or key[0] in (
                str(settings.state_dir),
                settings.database_url.get_secret_value() if settings.database_url else None,
            )
            if wanted:
                _engines.pop(key).dispose()


def _forget_after_fork() -> None:
    # A connection must not be shared with the parent; it must not be closed either, for the parent uses it.
    global _lock
    _lock = threading.Lock()
    for found in _engines.values():
        found.dispose(close=False)


os.register_at_fork(after_in_child=_forget_after_fork)


@contextlib.contextmanager
def session_scope(settings: Settings | None = None) -> Iterator[Session]:
    """One transaction: committed at the end, rolled back on an exception. Objects stay usable afterwards."""
    with Session(engine(settings or load_settings()), expire_on_commit=False) as session, session.begin():
        yield session


def again(function: Callable[P, T]) -> Callable[P, T]:
    """A function that is one transaction, done again from its beginning when Postgres undid it for the sake of others.

    Nothing of it was done then. What it does outside of the database is done again, too.
    """

    @functools.wraps(function)
    def repeated(*args: P.args, **values: P.kwargs) -> T:
        for tried in range(1, TRIES):
            try:
                return function(*args, **values)
            except DBAPIError as error:
                if getattr(error.orig, "pgcode", None) not in UNDONE:
                    raise
                log.info("Postgres undid a transaction for the sake of others; it is done again: %s", error.orig)
            time.sleep(pause(tried))
        return function(*args, **values)

    return repeated


def transact(settings: Settings, work: Callable[[Session], T]) -> T:
    """What `work` returns, in a transaction of its own; `again` where that was undone."""

    @again
    def once() -> T:
        with session_scope(settings) as session:
            return work(session)

    return once()


def pause(tried: int) -> float:
    """Seconds before a transaction that was undone so often is tried again; not the same for everybody."""
    return random.uniform(0, 0.02) * 2**tried


def revision(connection: sa.Connection) -> str | None:
    """The schema's revision, None when nothing was migrated yet."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.scalar(sa.text("SELECT version_num FROM alembic_version"))


def check_schema(some_engine: sa.Engine) -> None:
    """Raise unless the database answers and has the schema that this code expects."""
    try:
        with some_engine.connect() as connection:
            found = revision(connection)
    except OperationalError as error:
        raise unreachable(error, some_engine.url) from None
    if found is None:
        raise DatabaseNotMigrated(f"Database {some_engine.url.database!r} is not migrated")
    if found > SCHEMA_REVISION:
        message = (
            f"Database {some_engine.url.database!r} has schema {found}, newer than this autovibe's {SCHEMA_REVISION}"
        )
        raise DatabaseNotMigrated(message, "Update autovibe.")
    if found < SCHEMA_REVISION:
        message = f"Database {some_engine.url.database!r} has schema {found}, older than {SCHEMA_REVISION}"
        raise DatabaseNotMigrated(message)


def unreachable(error: DBAPIError, where: sa.URL) -> DatabaseUnreachable:
    """One line of libpq's reason, without the password."""
    lines = str(error.orig).strip().splitlines() or ["no reason given"]
    place = where.host or where.query.get("host") or "the local socket"
    reason = lines[0].rpartition(" failed: ")[2].removeprefix("FATAL:").strip()
    return DatabaseUnreachable(f"Postgres at {place} cannot be reached: {reason}")


def upgrade(settings: Settings) -> tuple[str | None, str | None]:
    """Migrate to the newest schema, make the ledger's partitions, load prices and rates; returns (before, after).

    One transaction: it is all done, or nothing. Safe to run twice and by several processes at once.
    """
    some_engine = make_engine(url(settings))
    try:
        with some_engine.begin() as connection:
            before = migrate(connection, settings)
            _prepare(connection, settings)
            return before, revision(connection)
    except OperationalError as error:
        raise unreachable(error, some_engine.url) from None
    except DBAPIError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise DatabaseError(f"The migration failed and nothing was changed: {reason}", "") from error
    finally:
        some_engine.dispose()


def migrate(connection: sa.Connection, settings: Settings) -> str | None:
    """Run the migrations that are missing, in the connection's transaction; returns the revision before."""
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    if not (settings.schema_dir / "env.py").is_file():
        raise DatabaseError(f"There are no migrations in {settings.schema_dir}", "Run autovibe in its checkout.")
    # Two upgrades at a time would both create the same tables.
    connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('autovibe upgrade'))"))
    before = revision(connection)
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(settings.schema_dir).replace("%", "%%"))
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise DatabaseNotMigrated(f"The database's schema is not known here: {error}", "Update autovibe.") from None
    return before


def _prepare(connection: sa.Connection, settings: Settings) -> None:
    """What a schema needs besides its tables."""
    from autovibe import compute, prices, rates

    connection.execute(sa.text("SELECT ensure_usage_partitions(:months)"), {"months": settings.usage_months_ahead})
    # Only ever forward: an id is never given out twice.
    raise_ids = "SELECT setval('vm_ids', :first, false) FROM vm_ids WHERE last_value < :first"
    connection.execute(sa.text(raise_ids), {"first": settings.vm_id_first})
    with Session(connection, join_transaction_mode="create_savepoint") as session, session.begin():
        prices.load(session, settings)
        rates.load(session, settings.usd_to_cad)
        compute.load(session, settings)


def status(settings: Settings) -> dict[str, Any]:
    """Where the database is (never its password), which PostgreSQL it is, its schema and its size."""
    some_engine = make_engine(url(settings))
    try:
        with some_engine.connect() as connection:
            return {
                "url": some_engine.url.render_as_string(hide_password=True),
                "embedded": settings.database_url is None,
                "version": connection.scalar(sa.text("SHOW server_version")),
                "schema": revision(connection),
                "expected_schema": SCHEMA_REVISION,
                "bytes": connection.scalar(sa.text("SELECT pg_database_size(current_database())")),
            }
    except OperationalError as error:
        raise unreachable(error, some_engine.url) from None
    finally:
        some_engine.dispose()


def is_empty(connection: sa.Connection) -> bool:
    """Whether the schema `public` has no tables."""
    return not sa.inspect(connection).get_table_names()


__all__ = [
    "SCHEMA_REVISION",
    "SQLAlchemyError",
    "Session",
    "again",
    "check_schema",
    "dispose",
    "engine",
    "make_engine",
    "migrate",
    "session_scope",
    "status",
    "transact",
    "upgrade",
    "url",
]
