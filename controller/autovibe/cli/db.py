"""`autovibe db`: upgrade, status, backup, restore, detach-month."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from autovibe.cli.common import json_option, output, settings

FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def db() -> None:
    """The database of the hub on this computer: migrate, back up, restore. A login does not move these commands."""


@db.command()
@json_option
def upgrade(as_json: bool) -> None:
    """Bring the schema, the prices and the exchange rates up to date; start the embedded server if need be."""
    from autovibe import db as database

    before, after = database.upgrade(settings())
    output({"before": before, "after": after}, as_json, _upgraded)


def _upgraded(data: dict[str, Any]) -> str:
    if data["before"] == data["after"]:
        return f"The schema is up to date ({data['after']})."
    return f"The schema is now {data['after']}" + (f" (was {data['before']})." if data["before"] else ", made new.")


@db.command()
@json_option
def status(as_json: bool) -> None:
    """Show where the database is, its version, schema and size."""
    from autovibe import db as database

    output(database.status(settings()), as_json)


@db.command()
@click.argument("file", type=FILE)
@json_option
def backup(file: Path, as_json: bool) -> None:
    """Write the whole database to a new FILE (pg_dump's custom format)."""
    from autovibe import backup as backups

    size = backups.backup(settings(), file)
    output({"file": file, "bytes": size}, as_json, lambda data: f"{data['file']}: {data['bytes']} bytes.")


@db.command()
@click.argument("file", type=FILE)
@click.option("--force", is_flag=True, help="Replace what the database holds now.")
@json_option
def restore(file: Path, force: bool, as_json: bool) -> None:
    """Put a backup's content into the database."""
    from autovibe import backup as backups

    revision = backups.restore(settings(), file, force=force)
    output(
        {"file": file, "schema": revision}, as_json, lambda data: f"Restored {data['file']}, schema {data['schema']}."
    )


@db.command("detach-month")
@click.argument("month")
@click.option("--to", "file", type=FILE, help="Write the lines to this new file (CSV) and drop them.")
@json_option
def detach_month(month: str, file: Path | None, as_json: bool) -> None:
    """Put away the ledger's lines of MONTH (2026-01); what they add up to stays, in budgets and in reports.

    Without --to they are kept in a table of their own.
    """
    from autovibe import db as database
    from autovibe import months

    with database.session_scope(settings()) as session:
        done = months.detach(session, months.parse(month), file)
    output(done, as_json, _detached)


def _detached(data: dict[str, Any]) -> str:
    where = f"file {data['file']}" if data["file"] else f"table {data['table']}"
    return f"{data['lines']} lines of {data['month']} are in {where}; {data['balance_lines']} balance lines are left."
