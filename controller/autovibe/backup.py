"""Back up and restore the database by PostgreSQL's own pg_dump, pg_restore and psql."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from psycopg2.extensions import make_dsn
from sqlalchemy.exc import OperationalError

from autovibe import db, postgres
from autovibe.errors import DatabaseError
from autovibe.settings import Settings

#: A restore begins with an empty schema, as PostgreSQL 15 and newer make it.
EMPTY = """
DROP SCHEMA public CASCADE;
CREATE SCHEMA public AUTHORIZATION pg_database_owner;
GRANT USAGE ON SCHEMA public TO PUBLIC;
"""
#: Newer pg_dumps set what older servers do not know.
UNKNOWN_TO_OLD = ("SET transaction_timeout = 0;",)


class BackupFailed(DatabaseError):
    """The backup failed."""

    code = "backup_failed"


class RestoreFailed(DatabaseError):
    """The restore failed, and nothing was changed."""

    code = "restore_failed"


def backup(settings: Settings, file: Path) -> int:
    """Write the database to a new 0600 file in pg_dump's custom format; returns its size in bytes."""
    if file.exists():
        raise BackupFailed(f"{file} exists already", "Choose another name.")
    if not file.parent.is_dir():
        raise BackupFailed(f"There is no folder {file.parent}", "")
    half = file.with_name(f".{file.name}.{os.getpid()}")
    with client(settings) as (programs, dsn, environment):
        # pg_dump writes what it is given: the file is made by us, readable by its owner only.
        with open(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            command = [programs / "pg_dump", "--format=custom", "--no-owner", "--no-privileges", f"--dbname={dsn}"]
            done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, env=environment)
        if done.returncode != 0:
            half.unlink()
            raise BackupFailed(f"The backup failed: {_last_line(done.stderr)}", "")
    half.rename(file)
    return file.stat().st_size


def restore(settings: Settings, file: Path, *, force: bool = False) -> str | None:
    """Replace the database's content by a backup's, in one transaction; returns the schema's revision.

    Refuses a database that has tables, unless `force`.
    """
    if not file.is_file():
        raise RestoreFailed(f"There is no file {file}", "")
    some_engine = db.make_engine(db.url(settings))
    try:
        with some_engine.connect() as connection:
            if not force and not db.is_empty(connection):
                message = f"Database {some_engine.url.database!r} is not empty"
                raise RestoreFailed(message, "With --force its content is replaced.")
            version = connection.dialect.server_version_info[0]
        _load(settings, file, version)
        with some_engine.connect() as connection:
            return db.revision(connection)
    except OperationalError as error:
        raise db.unreachable(error, some_engine.url) from None
    finally:
        some_engine.dispose()


def _load(settings: Settings, file: Path, version: int) -> None:
    with client(settings) as (programs, dsn, environment), tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "restore.sql"
        command = [programs / "pg_restore", "--no-owner", "--no-privileges", f"--file={script}", file]
        read = subprocess.run(command, capture_output=True, text=True, env=environment)
        if read.returncode != 0:
            raise RestoreFailed(f"{file} is not a backup: {_last_line(read.stderr)}", "")
        known = script if version >= 17 else _without_unknown(script)
        flags = ["--no-psqlrc", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1", f"--dbname={dsn}"]
        command = [programs / "psql", *flags, f"--command={EMPTY}", f"--file={known}"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            reason = next((line for line in done.stderr.splitlines() if "ERROR" in line), _last_line(done.stderr))
            raise RestoreFailed(f"The restore failed and nothing was changed: {reason.strip()}", "")


def _without_unknown(script: Path) -> Path:
    known = script.with_name("known.sql")
    with open(script, encoding="utf-8") as lines, open(known, "w", encoding="utf-8") as out:
        out.writelines(line for number, line in enumerate(lines) if number > 50 or line.strip() not in UNKNOWN_TO_OLD)
    return known


@contextlib.contextmanager
def client(settings: Settings) -> Iterator[tuple[Path, str, dict[str, str]]]:
    """The programs' folder, a DSN without its password, and an environment that names a 0600 file with it."""
    where = sa.make_url(db.url(settings))
    parts = {"host": where.host, "port": where.port, "user": where.username, "dbname": where.database, **where.query}
    dsn = make_dsn(**{name: str(value) for name, value in parts.items() if value is not None})
    with tempfile.NamedTemporaryFile("w", prefix="autovibe-") as passfile:
        passfile.write(f"*:*:*:*:{_escaped(str(where.password or ''))}\n")
        passfile.flush()
        environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "PGTZ": "UTC"}
        yield postgres.find_programs(settings), dsn, environment | {"PGPASSFILE": passfile.name, "HOME": "/nonexistent"}


def _escaped(password: str) -> str:
    return password.replace("\\", "\\\\").replace(":", "\\:")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
