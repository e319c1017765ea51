"""`autovibe machine`: spawn, list, show, logs, checkpoint, terminate."""

from __future__ import annotations

import base64
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from autovibe.cli.common import EXIT_FAILED, cell_text, json_option, output, settings, table

_FILES_MOST = 8 * 1024 * 1024


@click.group()
def machine() -> None:
    """Machines: one VM, one agent, one prompt."""


def _file(_context: Any, _parameter: Any, values: tuple[str, ...]) -> list[dict[str, Any]]:
    """`SRC:DEST` as the agent takes files; DEST defaults to the file's name, in the workspace."""
    found, total = [], 0
    for value in values:
        source, _, target = value.partition(":")
        path = Path(source)
        if not path.is_file():
            raise click.BadParameter(f"there is no file {source}")
        content = path.read_bytes()
        total += len(content)
        if total > _FILES_MOST:
            raise click.BadParameter(f"the files are larger than {_FILES_MOST // 2**20} MiB together")
        found.append(
            {
                "path": target or path.name,
                "content_base64": base64.b64encode(content).decode(),
                "mode": format(path.stat().st_mode & 0o777, "04o"),
            }
        )
    return found


@machine.command()
@click.argument("project")
@click.option("--prompt", help="What the machine is to do.")
@click.option("--prompt-file", type=click.File("r"), help="Read the prompt from a file; - is standard input.")
@click.option("--type", "machine_type", default=None, help="claude_code (default), aider, qwen_coder or command.")
@click.option("--from", "checkpoint", metavar="CHECKPOINT", help="Start from this checkpoint.")
@click.option("--template", help="Start from this template's newest version.")
@click.option("--command", help="The program to run, for machines of type command; one shell-quoted string.")
@click.option("--file", "files", multiple=True, metavar="SRC:DEST", callback=_file, help="Put a file in its workspace.")
@click.option("--name", help="Its name; default: made from the project's.")
@click.option("--model", help="The model that its agent asks for.")
@click.option("--wall-seconds", type=click.FloatRange(min=1), help="How long it may work.")
@click.option("--max-turns", type=click.IntRange(min=1), help="How many turns its agent may take.")
@click.option("--cores", type=click.IntRange(min=1), help="CPU cores.")
@click.option("--memory", type=click.IntRange(min=64), help="Memory in MiB.")
@click.option("--key", "idempotency_key", help="Asking again with the same key gives the same machine.")
@click.option("--wait/--no-wait", default=True, help="Follow it until it has ended (default).")
@json_option
def spawn(project: str, prompt: str | None, prompt_file: Any, wait: bool, as_json: bool, **asked: Any) -> None:
    """Start a machine for PROJECT and follow it; fails when the machine does."""
    from autovibe import checkpoints, db, lookup, machines, views
    from autovibe.cli import watch
    from autovibe.models import Project

    if prompt is not None and prompt_file is not None:
        raise click.UsageError("Give --prompt or --prompt-file, not both")
    text = prompt_file.read() if prompt_file is not None else (prompt or "")
    command = shlex.split(asked.pop("command") or "") or None
    machine_type = asked.pop("machine_type") or ("command" if command else "claude_code")
    names = ("wall_seconds", "max_turns", "cores", "memory")
    limits = {name: value for name in names if (value := asked.pop(name)) is not None}
    parent = asked.pop("checkpoint")
    config = settings()
    with db.session_scope(config) as session:
        owner = lookup.find(session, Project, project, "project")
        made = machines.spawn(
            session,
            config,
            project=owner,
            prompt=text,
            machine_type=machine_type,
            command=command,
            limits=limits,
            checkpoint=checkpoints.find(session, parent, owner) if parent else None,
            **asked,
        )
        shown = views.machine(session, made)
    if not wait:
        watch.hint_when_down(config)
        output(shown, as_json, lambda data: f"Machine {data['name']} ({data['uuid']}) is spawning.")
        return
    _follow(config, shown, as_json)


def _follow(config: Any, shown: dict[str, Any], as_json: bool) -> None:
    from autovibe.cli import watch

    watch.hint_when_down(config)
    if not as_json:
        click.echo(f"Machine {shown['name']} ({shown['uuid']})")
    stages: dict[str, float] = {}
    try:
        full = watch.machine(config, shown["uuid"], show=None if as_json else watch.printer(), stages=stages)
    except KeyboardInterrupt:
        click.echo(
            f"Machine {shown['name']} goes on; end it with `autovibe machine terminate {shown['name']}`.", err=True
        )
        raise
    full["stages"] = {name: round(value, 3) for name, value in stages.items()}
    output(full, as_json, _ended)
    if full["outcome"] != "succeeded":
        sys.exit(EXIT_FAILED)


def _ended(data: dict[str, Any]) -> str:
    lines = [f"Outcome: {data['outcome']}" + (f" ({data['error']})" if data["error"] else "")]
    summary = (data["result"] or {}).get("summary")
    if summary:
        lines.append(f"Summary: {summary}")
    if data["last_checkpoint"]:
        lines.append(f"Checkpoint: {data['last_checkpoint']}")
    return "\n".join(lines)


@machine.command("list")
@click.option("--project", help="Only this project's.")
@click.option("--all", "everything", is_flag=True, help="Also those that have ended.")
@json_option
def list_(project: str | None, everything: bool, as_json: bool) -> None:
    """List the machines, newest first."""
    from autovibe import db, lookup, machines, views
    from autovibe.models import Project

    with db.session_scope(settings()) as session:
        owner = lookup.find(session, Project, project, "project") if project else None
        found = machines.listed(session, project=owner, everything=everything)
        rows = [views.machine(session, row) for row in found]
    columns = ("uuid", "name", "project", "type", "status", "outcome", "vm_id", "checkpoint_count", "spawned_at")
    output(rows, as_json, lambda data: _machines_table(data, columns))


def _machines_table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> Any:
    if not rows:
        return "No machines."
    shown = [[str(row[name])[:8] if name == "uuid" else row[name] for name in columns] for row in rows]
    return table([name.replace("_", " ") for name in columns], shown)


@machine.command()
@click.argument("machine_")
@json_option
def show(machine_: str, as_json: bool) -> None:
    """Show MACHINE: its prompt, state, result, files and operations."""
    from autovibe import db, machines, views

    with db.session_scope(settings()) as session:
        full = views.machine_in_full(session, machines.find(session, machine_))
    output(full, as_json, _shown)


def _shown(data: dict[str, Any]) -> str:
    simple = {key: value for key, value in data.items() if not isinstance(value, (list, dict)) and value is not None}
    lines = [f"{key.replace('_', ' ')}: {cell_text(value)}" for key, value in simple.items()]
    summary = (data["result"] or {}).get("summary")
    if summary:
        lines.append(f"summary: {summary}")
    if data["files"]:
        lines.append("files:")
        lines += [f"  {file['size']:>10}  {file['path']}" for file in data["files"]]
    lines.append("operations:")
    for one in data["operations"]:
        took = f"{one['seconds']:.1f} s" if one["seconds"] is not None else ""
        lines.append(f"  {one['kind']:<10} {one['status']:<9} {took:>8}  {one['error'] or ''}".rstrip())
    return "\n".join(lines)


@machine.command()
@click.argument("machine_")
@click.option("-f", "--follow", is_flag=True, help="Go on until the machine has ended.")
@json_option
def logs(machine_: str, follow: bool, as_json: bool) -> None:
    """Print what MACHINE's agent has said."""
    from autovibe import db, machines, views
    from autovibe.cli import watch

    config = settings()
    with db.session_scope(config) as session:
        row = machines.find(session, machine_)
        lines = [] if follow else views.events(session, row, limit=100_000)
    if follow:
        watch.machine(config, row.uuid, show=watch.printer())
        return
    if as_json:
        output([views.event(line) for line in lines], True)
        return
    show_line = watch.printer()
    for line in lines:
        show_line(*watch.as_line(line))


@machine.command()
@click.argument("machine_")
@click.option("--description", help="What it is for.")
@click.option("--wait/--no-wait", default=True, help="Return when it is made (default).")
@json_option
def checkpoint(machine_: str, description: str | None, wait: bool, as_json: bool) -> None:
    """Make a checkpoint of MACHINE while it works."""
    from autovibe import checkpoints, db, machines, views
    from autovibe.cli import watch

    config = settings()
    with db.session_scope(config) as session:
        row = machines.find(session, machine_)
        made, operation = machines.checkpoint(session, config, row, description=description)
    watch.hint_when_down(config)
    if wait:
        watch.operation(config, operation.uuid, f"Checkpoint of {row.name}", quiet=as_json)
    with db.session_scope(config) as session:
        shown = views.checkpoint(session, checkpoints.find(session, made.uuid))
    output(shown, as_json, lambda data: f"Checkpoint {data['uuid']} is {data['status']}.")


@machine.command()
@click.argument("machine_")
@click.option("--reason", help="Why; it stands in the machine's record.")
@click.option("--wait/--no-wait", default=True, help="Return when it has ended (default).")
@json_option
def terminate(machine_: str, reason: str | None, wait: bool, as_json: bool) -> None:
    """End MACHINE: shut it down and keep it as its final checkpoint."""
    from autovibe import db, machines, views
    from autovibe.cli import watch

    config = settings()
    with db.session_scope(config) as session:
        row = machines.find(session, machine_)
        operation = machines.terminate(session, config, row, reason=reason)
    watch.hint_when_down(config)
    if wait:
        watch.operation(config, operation.uuid, f"End of {row.name}", quiet=as_json)
    with db.session_scope(config) as session:
        shown = views.machine(session, machines.find(session, row.uuid))
    output(shown, as_json, lambda data: f"Machine {data['name']} is {data['status']}.")
