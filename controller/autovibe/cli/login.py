"""`autovibe login`, `logout` and `audit`: which hub commands go to, and who has changed what there."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import click

from autovibe.cli.common import hub as connected
from autovibe.cli.common import json_option, output, secret_from, settings, table


@click.command()
@click.argument("url")
@click.option("--name", help="Your user name; the password is asked for. Default: a key is asked for.")
@click.option("--key-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Read the key from it.")
@click.option("--password-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="With --name.")
@click.option("--fingerprint", help="SHA-256 of the hub's CA, as `autovibe hub` there shows it.")
@click.option("--days", type=click.IntRange(min=1), default=90, show_default=True, help="With --name: until when.")
@json_option
def login(
    url: str,
    name: str | None,
    key_file: Path | None,
    password_file: Path | None,
    fingerprint: str | None,
    days: int,
    as_json: bool,
) -> None:
    """Have the commands of this computer go to the hub at URL, such as https://hub.example:18001."""
    from autovibe import logging_in

    config = settings()
    url, ca = logging_in.trusted(url, fingerprint, lambda found: click.confirm(_question(found), abort=True))
    if name is not None:
        password = secret_from(password_file, "The password file") if password_file else _asked("Password")
        key = logging_in.made_key(url, ca, name, password, label=f"login from {socket.gethostname()}"[:100], days=days)
    else:
        key = secret_from(key_file, "The key file") if key_file else _asked("Key")
    me = logging_in.log_in(config, url, ca, key)
    said = {"url": url, "name": me["name"], "level": me["level"]}
    output(said, as_json, lambda data: f"Commands go to {data['url']} as {data['name']} ({data['level']}).")


def _question(found: str) -> str:
    return f"The hub's CA is not known here. Its SHA-256 is\n  {found}\nIs that what `autovibe hub` shows there?"


def _asked(what: str) -> str:
    return click.prompt(what, hide_input=True)


@click.command()
@json_option
def logout(as_json: bool) -> None:
    """Have the commands go to this computer's own hub again, and end the key."""
    from autovibe import logging_in

    output(logging_in.log_out(settings()), as_json, _logged_out)


def _logged_out(done: dict[str, Any]) -> str:
    if not done["was_logged_in"]:
        return "There was no login."
    said = f"Logged out of {done['url']}." if done["url"] else "Logged out."
    if done["key_ended"]:
        return said
    key = done["key"] or "…"
    return f"{said} The hub could not be asked to end the key: `autovibe key revoke {key}` does it there."


@click.command()
@click.option("--project", help="Only this project's.")
@click.option("--actor", help="Only by this user.")
@click.option("--last", type=click.IntRange(min=1), default=50, show_default=True, help="How many lines to show.")
@json_option
def audit(project: str | None, actor: str | None, last: int, as_json: bool) -> None:
    """Show every change that somebody asked for, the newest first."""
    from autovibe.api.v1 import schemas

    with connected() as here:
        rows = here.pages("/audit", schemas.AuditLine, most=last, project=project, actor=actor)
    output(rows, as_json, _listed)


def _listed(rows: list[dict[str, Any]]) -> Any:
    if not rows:
        return "Nobody has changed anything yet."
    columns = ("at", "actor", "action", "object_type", "object_name", "address", "request_id")
    return table([name.replace("_", " ") for name in columns], [[row[name] for name in columns] for row in rows])
