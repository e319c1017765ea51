"""`autovibe template`: build, list."""

from __future__ import annotations

from typing import Any

import click

from autovibe.cli.common import json_option, output, settings, table


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
    from autovibe import db, operations, templates, views
    from autovibe.cli import watch

    config = settings()
    with db.session_scope(config) as session:
        operation = templates.ensure(session, config, name, disk_source=disk, storage=storage, bridge=bridge, null=null)
    watch.hint_when_down(config)
    if not wait:
        output(views.operation(operation), as_json, lambda data: f"Operation {data['uuid']} is {data['status']}.")
        return
    watch.operation(config, operation.uuid, "Building the template", quiet=as_json)
    with db.session_scope(config) as session:
        made = operations.get(session, operation.uuid).result["template"]
        shown = views.template(templates.ready(session, made["name"]))
    output(shown, as_json, lambda data: f"Template {data['name']} is VM {data['vm_id']} on {data['node']}.")


@template.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the templates and their versions."""
    from autovibe import db, templates, views

    with db.session_scope(settings()) as session:
        rows = [views.template(row) for row in templates.listed(session)]
    output(rows, as_json, _listed)


def _listed(rows: list[dict[str, Any]]) -> Any:
    if not rows:
        return "No templates. Build one with `autovibe template build`."
    columns = ("name", "status", "vm_id", "node", "inputs", "created_at")
    return table([name.replace("_", " ") for name in columns], [[row[name] for name in columns] for row in rows])
