"""`autovibe checkpoint`: when they are made, how long they are kept, whether they are there, and their removal."""

from __future__ import annotations

from typing import Any

import click

from autovibe.cli.checkpoint import checkpoint
from autovibe.cli.common import console, hub, json_option, named, output, table
from autovibe.cli.policies import KEEPING, making_of, making_options, policy_options


@checkpoint.command()
@click.argument("project")
@making_options("--")
@policy_options("--", KEEPING)
@click.option("--parents/--no-parents", default=None, help="Keep each one that another goes on from, too.")
@json_option
def policy(project: str, as_json: bool, **given: Any) -> None:
    """Show, or change, when PROJECT's machines are checkpointed and how long that is kept."""
    from autovibe.api.v1 import schemas

    made, words = making_of(given, "")
    kept = {name: value for name, value in words.items() if value is not None}
    with hub() as here:
        path = f"/projects/{named(project)}/policy"
        if made or kept:
            body = {"made": made, "kept": kept}
            shown = here.ask("PATCH", path, schemas.Policy, body=body)
        else:
            shown = here.get(path, schemas.Policy)
    output(shown, as_json, _policy)


def _policy(shown: dict[str, Any]) -> str:
    made, kept = shown["made"], shown["kept"]
    when = [
        f"every {made['seconds']} s" if made["seconds"] else "",
        f"after {made['calls']} model calls" if made["calls"] else "",
        f"after {made['budget_percent']} % of the budget" if made["budget_percent"] else "",
    ]
    lines = [
        f"made: {', '.join(filter(None, when)) or 'only when asked for'}, and at the end",
        *([f"before a risky command, which waits up to {made['risky_seconds']} s"] if made["risky_seconds"] else []),
        f"at least {made['floor_seconds']} s apart; a model call waits up to {made['hold_seconds']} s for one",
        f"kept: all for {kept['days']} days, daily for {kept['daily']} days, weekly for {kept['weekly']} weeks"
        + (", and what another goes on from" if kept["parents"] else ""),
        "kept for ever: milestones, what is branched from, what is in use",
    ]
    return "\n".join(lines)


@checkpoint.command()
@click.argument("checkpoint_", metavar="CHECKPOINT", required=False)
@click.option("--project", help="All of this project.")
@click.option(
    "--restore", is_flag=True, help="Start a machine from it, compare its files, and remove the machine again."
)
@click.option("--wait/--no-wait", default=True, help="Return when Proxmox has been asked (default).")
@json_option
def verify(checkpoint_: str | None, project: str | None, restore: bool, wait: bool, as_json: bool) -> None:
    """Ask Proxmox whether CHECKPOINT, or all that are called verified, still exist; fails when one is missing."""
    from autovibe.api.v1 import schemas
    from autovibe.cli import watch

    if restore and not checkpoint_:
        raise click.UsageError("Say which checkpoint --restore is to try")
    if checkpoint_ and project:
        raise click.UsageError("Give a checkpoint or --project, not both")
    with hub() as here:
        path = _looked_for(here, checkpoint_, project)
        asked = here.post(path, schemas.Started, {"trial": True} if restore else None)["operation"]["uuid"]
        watch.hint_when_down(here)
        if not wait:
            output({"operation": asked}, as_json, lambda data: "Proxmox is going to be asked.")
            return
        found = watch.operation(here, asked, "Verification", quiet=as_json)["verification"]
        if restore:
            _tried(found, as_json)
            return
        missing = [here.get(f"/checkpoints/{uuid}", schemas.CheckpointInFull) for uuid in found["missing"]]
        found["status"] = None if not checkpoint_ else _one(here, checkpoint_)["status"]
    lines = [f"Checkpoint {one['uuid']} ({one['type']}) is missing." for one in missing]
    lines += [f"Checkpoint {uuid} is there again." for uuid in found["found_again"]]
    lines.append(f"{found['checked']} checked, {len(found['missing'])} newly missing.")
    output(found, as_json, lambda data: "\n".join(lines))
    if found["missing"] or found["status"] == "missing":
        raise SystemExit(1)


def _looked_for(here: Any, checkpoint_: str | None, project: str | None) -> str:

    if checkpoint_:
        return f"/checkpoints/{named(checkpoint_)}/verify"
    return f"/projects/{named(project)}/verify" if project else "/hub/verify"


def _one(here: Any, checkpoint_: str) -> dict[str, Any]:
    """A checkpoint as a list shows it."""
    from autovibe.api.v1 import schemas

    full = here.get(f"/checkpoints/{named(checkpoint_)}", schemas.CheckpointInFull)
    return {name: full[name] for name in schemas.Checkpoint.model_fields}


def _tried(found: dict[str, Any], as_json: bool) -> None:
    lines = [f"{path} is not as the manifest says." for path in found["different"]]
    lines.append(f"A machine started from it; {found['compared']} files compared, {len(found['different'])} different.")
    output(found, as_json, lambda data: "\n".join(lines))
    if found["different"]:
        raise SystemExit(1)


@checkpoint.command()
@click.argument("project")
@click.option("--yes", is_flag=True, help="Remove them. Without it, nothing is changed.")
@json_option
def prune(project: str, yes: bool, as_json: bool) -> None:
    """Show, or with --yes remove, the checkpoints that PROJECT's policy does not keep."""
    from autovibe.api.v1 import schemas
    from autovibe.cli import watch

    with hub() as here:
        path = f"/projects/{named(project)}/prune"
        rows = here.pages(path, schemas.Verdict)
        gone = [row for row in rows if row["reason"] is None]
        removing = False
        if yes and gone:
            removed = set(here.post(path, schemas.Pruning)["checkpoints"])
            gone = [row for row in gone if row["uuid"] in removed]
            removing = bool(removed)
            watch.hint_when_down(here)
    shown = {"remove": gone, "keep": [row for row in rows if row["reason"] is not None], "removing": removing}
    output(shown, as_json, _pruned)


def _pruned(shown: dict[str, Any]) -> Any:
    if not shown["remove"]:
        return f"Nothing to remove; {len(shown['keep'])} checkpoints are kept."
    columns = ("checkpoint", "type", "machine", "created at", "")
    rows = [
        [str(row["uuid"])[:8], row["type"], row["machine"], row["created_at"], row["reason"] or "REMOVE"]
        for row in shown["remove"] + shown["keep"]
    ]
    console().print(table(columns, rows))
    verb = "are being removed" if shown["removing"] else "would be removed; --yes does it"
    return f"{len(shown['remove'])} checkpoints {verb}, {len(shown['keep'])} are kept."


@checkpoint.command()
@click.argument("checkpoint_", metavar="CHECKPOINT")
@click.option("--wait/--no-wait", default=True, help="Return when it is removed (default).")
@json_option
def delete(checkpoint_: str, wait: bool, as_json: bool) -> None:
    """Remove CHECKPOINT; refused while something stands on it, or needs it."""
    from autovibe.api.v1 import schemas
    from autovibe.cli import watch

    with hub() as here:
        asked = here.ask("DELETE", f"/checkpoints/{named(checkpoint_)}", schemas.CheckpointStarted)
        uuid = asked["checkpoint"]["uuid"]
        watch.hint_when_down(here)
        if wait:
            watch.operation(here, asked["operation"]["uuid"], f"Removal of {uuid}", quiet=as_json)
        shown = _one(here, str(uuid))
    output(shown, as_json, lambda data: f"Checkpoint {data['uuid']} is {data['status']}.")


@checkpoint.command()
@click.argument("checkpoint_", metavar="CHECKPOINT")
@click.argument("tags", nargs=-1)
@click.option("--remove", multiple=True, metavar="TAG", help="Take this tag away.")
@json_option
def tag(checkpoint_: str, tags: tuple[str, ...], remove: tuple[str, ...], as_json: bool) -> None:
    """Give CHECKPOINT the TAGS."""
    shown = _changed(checkpoint_, {"add_tags": tags, "remove_tags": remove})
    output(shown, as_json, lambda data: f"Checkpoint {data['uuid']}: {' '.join(data['tags']) or 'no tags'}.")


@checkpoint.command()
@click.argument("checkpoint_", metavar="CHECKPOINT")
@click.option("--off", is_flag=True, help="It is one like others again.")
@json_option
def milestone(checkpoint_: str, off: bool, as_json: bool) -> None:
    """Keep CHECKPOINT for ever."""
    shown = _changed(checkpoint_, {"milestone": not off})
    kept = "is kept for ever" if not off else "is kept as long as others"
    output(shown, as_json, lambda data: f"Checkpoint {data['uuid']} {kept}.")


def _changed(checkpoint_: str, body: dict[str, Any]) -> dict[str, Any]:
    from autovibe.api.v1 import schemas

    with hub() as here:
        return here.ask("PATCH", f"/checkpoints/{named(checkpoint_)}", schemas.Checkpoint, body=body)
