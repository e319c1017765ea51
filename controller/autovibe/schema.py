"""`python -m autovibe.schema`: write `schema/schema.sql`, the schema that the migrations make, for people to read.

With `--check` nothing is written, and a stale file is an error.
"""

from __future__ import annotations

import difflib
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from autovibe import backup, db, postgres
from autovibe.settings import Settings

HEADER = "-- Generated from the migrations in versions/ by `make schema` (PostgreSQL 18). Do not edit.\n\n"


def dump(settings: Settings) -> str:
    """The schema of a migrated database, without what differs from one dump to the next.

    The ledger's months are left out: `ensure_usage_partitions` makes them as time goes by.
    """
    with backup.client(settings) as (programs, dsn, environment):
        flags = ["--schema-only", "--no-owner", "--no-privileges", "--exclude-table=resource_usage_2*"]
        command = [programs / "pg_dump", *flags, f"--dbname={dsn}"]
        text = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    noise = r"^(?:SET .*|SELECT pg_catalog\.set_config.*|\\(?:un)?restrict .*|--.*)\n"
    text = re.sub(noise, "", text, flags=re.MULTILINE)
    return HEADER + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def generate() -> str:
    """Migrate a database on a server of its own, and dump it."""
    base = Path(tempfile.mkdtemp(prefix="autovibe-schema-"))
    base.chmod(0o711)
    account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    server = postgres.Server(base, postgres.find_programs(Settings()), account, "fsync = off\n")
    try:
        settings = Settings(database_url=server.start())
        engine = db.make_engine(db.url(settings))
        with engine.begin() as connection:
            db.migrate(connection, settings)
        engine.dispose()
        return dump(settings)
    finally:
        server.stop()
        shutil.rmtree(base)


def main(arguments: list[str]) -> int:
    file = Settings().schema_dir / "schema.sql"
    new = generate()
    old = file.read_text(encoding="utf-8") if file.exists() else ""
    if arguments == ["--check"]:
        sys.stdout.writelines(
            difflib.unified_diff(old.splitlines(True), new.splitlines(True), "schema.sql", "migrations")
        )
        return int(old != new)
    file.write_text(new, encoding="utf-8")
    print(f"{file}: {'changed' if old != new else 'unchanged'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
