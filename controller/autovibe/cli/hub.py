"""`autovibe hub`: what the hub is that commands go to, and checkpoints of the VM in which it runs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from autovibe.cli.common import cell_text, json_option, output
from autovibe.cli.common import hub as connected


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def hub(context: click.Context, as_json: bool) -> None:
    """The hub that commands go to: where it is, its CA's fingerprint, what it does now; and its own VM.

    Without a command it is `hub status`.
    """
    if context.invoked_subcommand is None:
        _show(as_json)


@hub.command()
@json_option
def status(as_json: bool) -> None:
    """Show what the hub is and does, and its own VM's last checkpoint."""
    _show(as_json)


@hub.command()
@click.argument("vm_id", type=click.IntRange(min=100, max=999_999_999), metavar="VMID")
@click.option("--node", help="Where the VM has to be; default: wherever it is.")
@click.option(
    "--project",
    help="The project that its checkpoints belong to, made if need be; it cannot be archived afterwards. Default: hub.",
)
@click.option("--wait/--no-wait", default=True, help="Return when it is done (default).")
@json_option
def adopt(vm_id: int, node: str | None, project: str | None, wait: bool, as_json: bool) -> None:
    """Register VMID as the VM in which this hub runs.

    A checkpoint of it is made each day from then on. It is marked in its notes and by tags, if its SMBIOS uuid proves
    that it is this hub's; nothing else of it changes.
    """
    from autovibe.api.v1 import schemas
    from autovibe.cli import watch

    with connected() as here:
        asked = {"vm_id": vm_id, "node": node, "project": project}
        operation = here.post("/hub/adopt", schemas.Started, asked)["operation"]
        watch.hint_when_down(here)
        if not wait:
            output(operation, as_json, lambda data: f"Operation {data['uuid']} is {data['status']}.")
            return
        watch.operation(here, operation["uuid"], f"Adopting VM {vm_id}", quiet=as_json)
        found = here.get("/hub", schemas.Hub)["vm"]
    output(found, as_json, lambda data: f"This hub runs in {_vm(data)}.")


@hub.command()
@click.option("--label", help="Why it is made.")
@click.option("--wait/--no-wait", default=True, help="Return when it is made (default).")
@json_option
def checkpoint(label: str | None, wait: bool, as_json: bool) -> None:
    """Make a checkpoint of the VM in which the hub runs.

    What the hub is asked meanwhile takes some seconds longer.
    """
    from autovibe.api.v1 import schemas
    from autovibe.cli import watch

    with connected() as here:
        asked = here.post("/hub/checkpoint", schemas.CheckpointStarted, {"label": label})
        watch.hint_when_down(here)
        if wait:
            watch.operation(here, asked["operation"]["uuid"], "Checkpoint of the hub", quiet=as_json)
        full = here.get(f"/checkpoints/{asked['checkpoint']['uuid']}", schemas.CheckpointInFull)
    shown = {name: value for name, value in full.items() if name in asked["checkpoint"]}
    output(shown, as_json, lambda data: f"Checkpoint {data['uuid']} is {data['status']}.")


def _show(as_json: bool) -> None:
    from autovibe.api.v1 import schemas

    with connected() as here:
        found = {"where": here.where, **here.get("/hub", schemas.Hub)}
    output(found, as_json, _shown)


def _shown(data: dict[str, Any]) -> str:
    lines = [f"{key}: {cell_text(value)}" for key, value in data.items() if key != "vm"]
    found = data["vm"]
    if found is None:
        return "\n".join([*lines, "vm: not adopted (`autovibe hub adopt VMID`), or in a project that you cannot see"])
    return "\n".join([*lines, f"vm: {_vm(found)}", f"last checkpoint: {_last(found)}"])


def _vm(found: dict[str, Any]) -> str:
    return f"VM {found['vm_id']} on {found['node']} (machine {found['name']} of project {found['project']})"


def _last(found: dict[str, Any]) -> str:
    late = "; LATE: one a day is to be made" if found["late"] else ""
    if found["checkpoint"] is None:
        return f"none yet{late}"
    hours = (datetime.now(UTC) - found["checkpoint_at"]).total_seconds() / 3600
    thawed = "" if found["frozen"] in (None, True) else ", its filesystems were not frozen"
    at = cell_text(found["checkpoint_at"])
    return f"{str(found['checkpoint'])[:8]} of {at}, {hours:.1f} hours old{thawed}{late}"
