"""`autovibe template`: build, import, list."""

from __future__ import annotations

from typing import Any

import click

from autovibe.cli.common import hub, json_option, output, table


@click.group()
def template() -> None:
    """Templates: what the first machine is cloned from."""


@template.command()
@click.argument("name", required=False)
@click.option("--null", is_flag=True, help="A template whose guests are only records: for tests and benchmarks.")
@click.option("--disk", help="The disk image, as Proxmox names it; default: local:import/autovibe-guest.qcow2.")
@click.option("--storage", help="Where its disk is kept; default: the inventory's.")
@click.option("--bridge", help="The bridge of its network card; default: the inventory's.")
@click.option("--wait/--no-wait", default=True, help="Return when it is built (default).")
@json_option
def build(
    name: str | None, null: bool, disk: str | None, storage: str | None, bridge: str | None, wait: bool, as_json: bool
) -> None:
    """Build the template NAME on Proxmox, or find that it stands already."""
    from autovibe.api.v1 import schemas
    from autovibe.cli import watch

    asked = {"name": name, "null": null, "disk": disk, "storage": storage, "bridge": bridge}
    with hub() as here:
        operation = here.post("/templates", schemas.Started, asked)["operation"]
        watch.hint_when_down(here)
        if not wait:
            output(operation, as_json, lambda data: f"Operation {data['uuid']} is {data['status']}.")
            return
        shown = _recorded(here, operation, "Building the template", as_json)
    output(shown, as_json, _made)


@template.command("import")
@click.argument("name", required=False)
@json_option
def import_(name: str | None, as_json: bool) -> None:
    """Take in the template NAME that playbooks/templates.yml, site.yml or a person has made on Proxmox.

    `machine spawn` does so by itself for a template that it does not know.
    """
    from autovibe.api.v1 import schemas
    from autovibe.cli import watch

    with hub() as here:
        operation = here.post("/templates/import", schemas.Started, {"name": name})["operation"]
        watch.hint_when_down(here)
        shown = _recorded(here, operation, f"Looking for the template {name or ''}".strip(), as_json)
    output(shown, as_json, _made)


def _recorded(here: Any, operation: dict[str, Any], what: str, quiet: bool) -> dict[str, Any]:
    from autovibe.api.v1 import schemas
    from autovibe.cli import watch

    made = watch.operation(here, operation["uuid"], what, quiet=quiet)["template"]
    rows = here.pages("/templates", schemas.Template)
    return next(row for row in rows if (row["name"], row["vm_id"]) == (made["name"], made["vm_id"]))


def _made(data: dict[str, Any]) -> str:
    return f"Template {data['name']} is VM {data['vm_id']} on {data['node']}."


@template.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the templates and their versions."""
    from autovibe.api.v1 import schemas

    with hub() as here:
        rows = here.pages("/templates", schemas.Template)
    output(sorted(rows, key=lambda row: row["name"]), as_json, _listed)


def _listed(rows: list[dict[str, Any]]) -> Any:
    if not rows:
        return "No templates. Build one with `autovibe template build`, or take one in with `autovibe template import`."
    columns = ("name", "status", "vm_id", "node", "inputs", "created_at")
    return table([name.replace("_", " ") for name in columns], [[row[name] for name in columns] for row in rows])
