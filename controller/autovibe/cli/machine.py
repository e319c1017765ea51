"""`autovibe machine`: spawn, list, show, logs, checkpoint, pause, resume, restore, terminate; see `machine_files`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from autovibe.cli.common import EXIT_FAILED, Seconds, cell_text, hub, json_option, named, output, read_text, table
from autovibe.cli.policies import making_of, making_options


@click.group()
def machine() -> None:
    """Machines: one VM, one agent, one prompt."""


_TEXT_FILE = click.Path(exists=True, dir_okay=False, path_type=Path, allow_dash=True)


def _file(_context: Any, _parameter: Any, values: tuple[str, ...]) -> list[dict[str, Any]]:
    """`SRC:DEST` as the agent takes files; DEST defaults to the file's name, in the workspace."""
    from autovibe import given_files

    found = []
    for value in values:
        source, _, target = value.partition(":")
        path = Path(source)
        if not path.is_file():
            raise click.BadParameter(f"there is no file {source}")
        if path.stat().st_size > given_files.TOTAL_BYTES:
            raise click.BadParameter(f"{source} is larger than {given_files.TOTAL_BYTES // 2**20} MiB")
        name = given_files.safe_path(target or path.name)
        found.append(given_files.entry(name, path.read_bytes(), path.stat().st_mode))
    return found


def _key(_context: Any, _parameter: Any, value: str | None) -> str | None:
    if value is not None and not (0 < len(value) <= 255 and all("!" <= one <= "~" for one in value)):
        raise click.BadParameter("a key has 1 to 255 visible ASCII characters")
    return value


def _words(command: str | None) -> list[str] | None:
    try:
        return shlex.split(command or "") or None
    except ValueError as error:
        raise click.BadParameter(f"it is not quoted as a shell wants it: {error}", param_hint="'--command'") from None


def _given(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """All files that are asked for, in the order in which they count: repository, archive, deletions, single files."""
    from autovibe import given_files

    archive, repository, deleted = (asked.pop(name) for name in ("files_from", "git", "deleted"))
    found: list[dict[str, Any]] = []
    if repository:
        found += given_files.from_git(*repository.partition("#")[::2])
    if archive:
        found += given_files.from_tar(archive)
    found += [given_files.removal(path) for path in deleted]
    found += asked["files"]
    if given_files.total_of(found) > given_files.TOTAL_BYTES:
        raise click.UsageError(f"the files are larger than {given_files.TOTAL_BYTES // 2**20} MiB together")
    return found


@machine.command()
@click.argument("project")
@click.option("--prompt", help="What the machine is to do.")
@click.option("--prompt-file", type=_TEXT_FILE, help="Read the prompt from a file; - is standard input.")
@click.option("--type", "machine_type", default=None, help="claude_code (default), aider, qwen_coder or command.")
@click.option("--from", "checkpoint", metavar="CHECKPOINT", help="Start from this checkpoint.")
@click.option("--template", help="Start from this template's newest version.")
@click.option("--command", help="The program to run, for machines of type command; one shell-quoted string.")
@click.option("--file", "files", multiple=True, metavar="SRC:DEST", callback=_file, help="Put a file in its workspace.")
@click.option(
    "--files-from", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Unpack a tar archive there."
)
@click.option("--git", metavar="URL[#REF]", help="Put a repository's files there, as they are at a branch or tag.")
@click.option("--delete", "deleted", multiple=True, metavar="PATH", help="Remove a file or folder from its workspace.")
@click.option("--name", help="Its name; default: made from the project's.")
@click.option("--model", help="The model that its agent asks for.")
@click.option("--wall-seconds", type=Seconds(min=1), help="How long it may work.")
@click.option("--max-turns", type=click.IntRange(min=1), help="How many turns its agent may take.")
@click.option("--max-cost", "max_cad", metavar="CAD", help="What it may cost itself, besides its project's budget.")
@click.option("--cores", type=click.IntRange(min=1), help="CPU cores.")
@click.option("--memory", type=click.IntRange(min=64), help="Memory in MiB.")
@making_options("--checkpoint-")
@click.option(
    "--key", "idempotency_key", callback=_key, help="Asking again with the same key, for a day, gives the same machine."
)
@click.option("--wait/--no-wait", default=True, help="Follow it until it has ended (default).")
@json_option
def spawn(project: str, prompt: str | None, prompt_file: Any, wait: bool, as_json: bool, **asked: Any) -> None:
    """Start a machine for PROJECT and follow it; fails when the machine does."""
    from autovibe.cli import watch

    if prompt is not None and prompt_file is not None:
        raise click.UsageError("Give --prompt or --prompt-file, not both")
    asked["prompt"] = read_text(prompt_file, "The prompt file") if prompt_file is not None else (prompt or "")
    asked["command"] = _words(asked["command"])
    asked["type"] = asked.pop("machine_type") or ("command" if asked["command"] else "claude_code")
    names = ("wall_seconds", "max_turns", "cores", "memory")
    asked["limits"] = {name: value for name in names if (value := asked.pop(name)) is not None}
    own, asked = making_of(asked, "checkpoint_")
    asked["checkpoint_policy"] = own or None
    asked["files"] = _given(asked)
    key = asked.pop("idempotency_key")
    body = {name: value for name, value in asked.items() if value is not None}
    with hub() as here:
        shown = _spawned(here, {"project": project, **body}, key, as_json)
        watch.hint_when_down(here)
        if not wait:
            output(shown, as_json, lambda data: f"Machine {data['name']} ({data['uuid']}) is spawning.")
            return
        _follow(here, shown, as_json)


def _spawned(here: Any, body: dict[str, Any], key: str | None, quiet: bool) -> dict[str, Any]:
    from autovibe.api.v1 import schemas
    from autovibe.cli import watch
    from autovibe.errors import NotFound

    made = here.post("/machines", schemas.MachineAsked, body, key=key)
    if made["machine"] is None:
        # One that playbooks/templates.yml has made is looked for; without a worker nobody does.
        name = body.get("template") or here.get("/hub", schemas.Hub)["default_template"]
        if here.is_down:
            hint = "Build it with `autovibe template build`; `autovibe up` looks for one that Proxmox has."
            raise NotFound(f"There is no template {name}", hint)
        watch.operation(here, made["operation"]["uuid"], f"Looking for the template {name}", quiet=quiet)
        made = here.post("/machines", schemas.MachineStarted, body, key=key)
    return made["machine"]


def _follow(here: Any, shown: dict[str, Any], as_json: bool) -> None:
    from autovibe.cli import watch

    if not as_json:
        click.echo(f"Machine {shown['name']} ({shown['uuid']})")
    stages: dict[str, float] = {}
    try:
        full = watch.machine(here, shown["uuid"], show=None if as_json else watch.printer(), stages=stages)
    except KeyboardInterrupt:
        click.echo(
            f"Machine {shown['name']} goes on; end it with `autovibe machine terminate {shown['name']}`.", err=True
        )
        raise
    full["stages"] = {name: round(value, 3) for name, value in stages.items()}
    output(full, as_json, _ended if full["status"] == "terminated" else _paused)
    if full["outcome"] != "succeeded":
        sys.exit(EXIT_FAILED)


def _paused(data: dict[str, Any]) -> str:
    again = "autovibe machine resume " + data["name"]
    if data["pause_reason"] == "budget":
        again = f"autovibe budget top-up {data['project']} AMOUNT"
        if data["max_cad"] is not None:
            again += f", or autovibe machine resume {data['name']} --max-cost MORE where its own limit is reached"
    return f"Machine {data['name']} is paused ({data['pause_reason']}). It goes on with: {again}"


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
    from autovibe.api.v1 import schemas

    with hub() as here:
        rows = here.pages("/machines", schemas.Machine, project=project, ended=everything)
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
    from autovibe.api.v1 import schemas

    with hub() as here:
        full = here.get(f"/machines/{named(machine_)}", schemas.MachineInFull)
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
@click.option(
    "-f",
    "--follow",
    is_flag=True,
    help="Go on until the machine has ended, or is paused. With --json, an object a line.",
)
@json_option
def logs(machine_: str, follow: bool, as_json: bool) -> None:
    """Print what MACHINE's agent has said."""
    from autovibe.api.v1 import schemas
    from autovibe.cli import watch

    with hub() as here:
        if follow:
            found = here.get(f"/machines/{named(machine_)}", schemas.MachineInFull)
            watch.machine(here, found["uuid"], show=watch.json_printer() if as_json else watch.printer())
            return
        lines = here.pages(f"/machines/{named(machine_)}/logs", schemas.LogLine)
    if as_json:
        output(lines, True)
        return
    show_line = watch.printer()
    for line in lines:
        show_line(line)


@machine.command()
@click.argument("machine_")
@click.option("--description", help="What it is for.")
@click.option("--wait/--no-wait", default=True, help="Return when it is made (default).")
@json_option
def checkpoint(machine_: str, description: str | None, wait: bool, as_json: bool) -> None:
    """Make a checkpoint of MACHINE while it works."""
    from autovibe.api.v1 import schemas
    from autovibe.cli import watch

    with hub() as here:
        path = f"/machines/{named(machine_)}/checkpoints"
        asked = here.post(path, schemas.CheckpointStarted, {"description": description})
        watch.hint_when_down(here)
        if wait:
            watch.operation(here, asked["operation"]["uuid"], f"Checkpoint of {machine_}", quiet=as_json)
        full = here.get(f"/checkpoints/{asked['checkpoint']['uuid']}", schemas.CheckpointInFull)
    shown = {name: value for name, value in full.items() if name in asked["checkpoint"]}
    output(shown, as_json, lambda data: f"Checkpoint {data['uuid']} is {data['status']}.")


@machine.command()
@click.argument("machine_")
@click.option("--wait/--no-wait", default=True, help="Return when it has stopped (default).")
@json_option
def pause(machine_: str, wait: bool, as_json: bool) -> None:
    """Stop MACHINE and make a checkpoint of it, to go on from there later. Meanwhile only its disk costs."""
    _ask("pause", "Pause", machine_, wait, as_json)


@machine.command()
@click.argument("machine_")
@click.option("--max-cost", "max_cad", metavar="CAD", help="What it may cost altogether: raises its own limit.")
@click.option("--wait/--no-wait", default=True, help="Return when it runs (default).")
@json_option
def resume(machine_: str, max_cad: str | None, wait: bool, as_json: bool) -> None:
    """Start MACHINE again, which was paused: its agent goes on with its work."""
    _ask("resume", "Resume", machine_, wait, as_json, {"max_cad": max_cad} if max_cad is not None else None)


@machine.command()
@click.argument("machine_")
@click.argument("checkpoint_", metavar="CHECKPOINT")
@click.option("--wait/--no-wait", default=True, help="Return when it runs (default).")
@json_option
def restore(machine_: str, checkpoint_: str, wait: bool, as_json: bool) -> None:
    """Take MACHINE back to CHECKPOINT, one of its own: its agent goes on from there. What it did since is gone."""
    _ask("restore", "Restore", machine_, wait, as_json, {"checkpoint": checkpoint_})


def _ask(what: str, title: str, machine_: str, wait: bool, as_json: bool, body: Any = None) -> None:
    """Ask for it, wait until it is done, and say what the machine is then."""
    from autovibe.api.v1 import schemas
    from autovibe.cli import watch

    with hub() as here:
        asked = here.post(f"/machines/{named(machine_)}/{what}", schemas.MachineStarted, body)
        shown = asked["machine"]
        watch.hint_when_down(here)
        if wait:
            watch.operation(here, asked["operation"]["uuid"], f"{title} of {shown['name']}", quiet=as_json)
            full = here.get(f"/machines/{shown['uuid']}", schemas.MachineInFull)
            shown = {name: value for name, value in full.items() if name in shown}
    output(shown, as_json, lambda data: f"Machine {data['name']} is {data['status']}.")


@machine.command()
@click.argument("machine_")
@click.option("--reason", help="Why; it stands in the machine's record.")
@click.option("--wait/--no-wait", default=True, help="Return when it has ended (default).")
@json_option
def terminate(machine_: str, reason: str | None, wait: bool, as_json: bool) -> None:
    """End MACHINE: shut it down and keep it as its final checkpoint."""
    _ask("terminate", "End", machine_, wait, as_json, {"reason": reason})


from autovibe.cli import machine_files  # noqa: E402, F401  adds its commands
