"""`autovibe key`: create, list, revoke."""

from __future__ import annotations

from typing import Any

import click

from autovibe.cli.common import hub, json_option, named, output, table

# Those of `autovibe.access`, which is slow to load for --help.
SCOPES = ("metrics", "read", "operate", "admin")


@click.group()
def key() -> None:
    """API keys: what programs, and other computers, show to this hub."""


@key.command()
@click.argument("name")
@click.option("--user", help="Whose key it is; default: one's own.")
@click.option("--scope", type=click.Choice(SCOPES), default="operate", show_default=True, help="No more than this.")
@click.option("--project", help="Good for this project only.")
@click.option("--days", type=click.IntRange(min=1), default=90, show_default=True, help="How long it is good.")
@click.option("--forever", is_flag=True, help="It does not end by itself.")
@json_option
def create(
    name: str, user: str | None, scope: str, project: str | None, days: int, forever: bool, as_json: bool
) -> None:
    """Make a key that is known as NAME. It is shown this once."""
    from autovibe.api.v1 import schemas

    wanted = {"name": name, "scope": scope, "project": project, "user": user}
    body = {**{field: value for field, value in wanted.items() if value is not None}, "days": None if forever else days}
    with hub() as here:
        made = here.post("/keys", schemas.KeyMade, body)
    if not as_json:
        click.echo("This key is shown this once:", err=True)
    output(made, as_json, lambda data: data["key"])


@key.command("list")
@click.option("--all", "revoked", is_flag=True, help="Also those that are revoked.")
@json_option
def list_(revoked: bool, as_json: bool) -> None:
    """List the keys: an admin's list has everybody's."""
    from autovibe.api.v1 import schemas

    with hub() as here:
        rows = here.pages("/keys", schemas.Key, revoked=revoked)
    output(rows, as_json, _listed)


def _listed(rows: list[dict[str, Any]]) -> Any:
    if not rows:
        return "No keys. Make one with `autovibe key create NAME`."
    columns = ("prefix", "name", "user", "scope", "project", "expires_at", "last_used_at", "revoked_at")
    return table([name.replace("_", " ") for name in columns], [[row[name] for name in columns] for row in rows])


@key.command()
@click.argument("prefix")
@json_option
def revoke(prefix: str, as_json: bool) -> None:
    """End the key that begins with PREFIX, at once."""
    from autovibe.api.v1 import schemas

    with hub() as here:
        ended = here.ask("DELETE", f"/keys/{named(prefix)}", schemas.Key)
    output(ended, as_json, lambda data: f"Key {data['prefix']} of {data['user']} is revoked.")
