"""`autovibe db`: upgrade, status, backup, restore."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from autovibe.cli.common import json_option, output, settings

FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def db() -> None:
    """The database: migrate, back up, restore."""


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
