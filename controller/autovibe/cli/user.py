"""`autovibe user`: create, list, show, change, grant, withdraw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from autovibe.cli.common import cell_text, hub, json_option, named, output, secret_from, table

# Those of `autovibe.access`, which is slow to load for --help.
ROLES, GRANTS = ("admin", "operator", "viewer"), ("operator", "viewer")


@click.group()
def user() -> None:
    """Users: who may do what at this hub."""


def asked_password(path: Path | None, ask: bool) -> str | None:
    """A password from a file or from the keyboard, never from the command line."""
    if path is not None:
        return secret_from(path, "The password file")
    return click.prompt("Password", hide_input=True, confirmation_prompt=True) if ask else None


def _password(command: Any) -> Any:
    file = click.Path(exists=True, dir_okay=False, path_type=Path, allow_dash=False)
    from_file = click.option("--password-file", type=file, help="Read the password from this file.")
    return from_file(click.option("--password", "ask", is_flag=True, help="Ask for a password.")(command))


@user.command()
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), required=True, help="An admin may do everything.")
@_password
@json_option
def create(name: str, role: str, password_file: Path | None, ask: bool, as_json: bool) -> None:
    """Make the user NAME. Without a password there is no login, but there can be keys.

    An operator or a viewer sees nothing before `autovibe user grant`.
    """
    from autovibe.api.v1 import schemas

    body = {"name": name, "role": role, "password": asked_password(password_file, ask)}
    with hub() as here:
        made = here.post("/users", schemas.User, body)
    output(made, as_json, lambda data: f"User {data['name']} ({data['uuid']}) is {data['role']}.")


@user.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the users and what they are granted."""
    from autovibe.api.v1 import schemas

    with hub() as here:
        rows = here.pages("/users", schemas.User)
    output(rows, as_json, _listed)


def _listed(rows: list[dict[str, Any]]) -> Any:
    if not rows:
        return "No users. Make one with `autovibe user create NAME --role admin`."
    columns = ("name", "role", "projects", "keys", "has_password", "last_login_at", "disabled_at")
    shown = [{**row, "projects": ", ".join(one["project"] for one in row["grants"])} for row in rows]
    return table([name.replace("_", " ") for name in columns], [[row[name] for name in columns] for row in shown])


@user.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show the user NAME."""
    from autovibe.api.v1 import schemas

    with hub() as here:
        found = here.get(f"/users/{named(name)}", schemas.User)
    output(found, as_json, _shown)


def _shown(data: dict[str, Any]) -> str:
    lines = [f"{key.replace('_', ' ')}: {cell_text(value)}" for key, value in data.items() if key != "grants"]
    return "\n".join(lines + [f"grant: {one['role']} in {one['project']}" for one in data["grants"]])


@user.command()
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), help="Another role.")
@click.option("--disable/--enable", default=None, help="Let them in no more, and end their logins; or again.")
@_password
@json_option
def change(
    name: str, role: str | None, disable: bool | None, password_file: Path | None, ask: bool, as_json: bool
) -> None:
    """Change the user NAME: role, password, whether they are let in."""
    from autovibe.api.v1 import schemas

    wanted = {"role": role, "disabled": disable, "password": asked_password(password_file, ask)}
    body = {key: value for key, value in wanted.items() if value is not None}
    if not body:
        raise click.UsageError("Say what to change: --role, --disable, --enable or --password")
    with hub() as here:
        changed = here.ask("PATCH", f"/users/{named(name)}", schemas.User, body=body)
    output(changed, as_json, _shown)


@user.command()
@click.argument("name")
@click.argument("project")
@click.option("--role", type=click.Choice(GRANTS), default="viewer", show_default=True, help="What they may do there.")
@json_option
def grant(name: str, project: str, role: str, as_json: bool) -> None:
    """Let the user NAME see PROJECT (viewer), or also work in it (operator)."""
    from autovibe.api.v1 import schemas

    with hub() as here:
        path = f"/projects/{named(project)}/grants/{named(name)}"
        made = here.ask("PUT", path, schemas.GrantOf, body={"role": role})
    output(made, as_json, lambda data: f"{data['user']} is {data['role']} in {project}.")


@user.command()
@click.argument("name")
@click.argument("project")
@json_option
def withdraw(name: str, project: str, as_json: bool) -> None:
    """Let the user NAME into PROJECT no more."""

    with hub() as here:
        here.ask("DELETE", f"/projects/{named(project)}/grants/{named(name)}")
    output({"withdrawn": True}, as_json, lambda _: f"{name} has no grant in {project}.")
