"""`autovibe vibe`: a machine's whole life, from nothing, on this computer.

It runs the commands that a person would type, and shows them. What it makes stands in a state folder of its own,
`vibe/` in the state folder, so that it meets nothing of the installation beside it. Unless `--keep` is given, nothing
of it is left at the end, also after an error or Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import click

from autovibe.cli.common import console, settings
from autovibe.errors import AutovibeError

FIRST_PROMPT = "Write a small program with a test: count the words of a text. Run the test."
SECOND_PROMPT = "Extend the program that is here with a command-line option, and extend its test. Run the test."


class VibeFailed(AutovibeError):
    """The demonstration did not come to its end."""

    code = "vibe_failed"


@dataclass
class Show:
    """What is printed, and the seconds that each stage took."""

    out: Any = field(default_factory=console)
    stages: list[tuple[str, float]] = field(default_factory=list)

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[None]:
        self.out.print(f"\n▸ {title}", style="bold", markup=False)
        begun = time.monotonic()
        yield
        self.stages.append((title, time.monotonic() - begun))

    def run(self, *arguments: str) -> None:
        """Run `autovibe …` in this process, shown as a person types it."""
        from autovibe.cli import cli

        self.out.print(f"  $ autovibe {shlex.join(arguments)}", style="cyan", markup=False)
        try:
            cli.main(list(arguments), prog_name="autovibe", standalone_mode=False)
        except SystemExit as ended:
            if ended.code:
                raise VibeFailed(f"`autovibe {' '.join(arguments[:2])}` failed", "What it said stands above.") from None


@click.command()
@click.option("--keep", is_flag=True, help="Leave everything up at the end, and say how to go on.")
@click.option("--budget", type=click.FloatRange(min=0, min_open=True), default=5, help="CAD for the project.")
@click.option("--prompt", default=FIRST_PROMPT, show_default=True, help="What the first machine is to do.")
@click.option("--follow-up", default=SECOND_PROMPT, show_default=True, help="What the second machine is to do.")
def vibe(keep: bool, budget: float, prompt: str, follow_up: str) -> None:
    """Show a whole machine's life, from nothing, on this computer."""
    if not prompt.strip() or not follow_up.strip():
        raise click.UsageError("The prompt is empty: say what the machine is to do")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # told to end, it cleans up as after Ctrl-C
    _own_state()
    show, done = Show(), False
    try:
        _live(show, budget, prompt, follow_up)
        done = True
    finally:
        if not (keep and done):
            _stop(show)
    _summary(show, keep)


def _own_state() -> None:
    """Point the settings at this demonstration's own state folder, and at ports that are free."""
    from autovibe import supervise

    outer = settings()
    os.environ["AUTOVIBE_STATE_DIR"] = str(outer.state_dir / "vibe")
    for name in ("AUTOVIBE_DATABASE_URL", "AUTOVIBE_DATABASE_URL_FILE", "AUTOVIBE_INVENTORY", "AUTOVIBE_API_BIND"):
        os.environ.pop(name, None)
    if supervise.status(settings()):
        held = os.environ["AUTOVIBE_STATE_DIR"]
        raise VibeFailed(
            "An earlier one is still up",
            f"Stop it: `export AUTOVIBE_STATE_DIR={held}; autovibe down; autovibe lab down`.",
        )
    # What an interrupted one has left belongs to machines that are gone.
    _forget()
    os.environ["AUTOVIBE_HUB_PORT"] = str(_free_port(outer.hub_port))


def _free_port(wanted: int) -> int:
    """`wanted` if nothing listens there, else one that the system picks."""
    for port in (wanted, 0):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return probe.getsockname()[1]
    return wanted


def _live(show: Show, budget: float, prompt: str, follow_up: str) -> None:
    with show.stage("The lab: an embedded Proxmox node with real QEMU guests"):
        show.run("lab", "up", "--port", str(_free_port(18006)), "--hub-port", os.environ["AUTOVIBE_HUB_PORT"])
    with show.stage("The hub: database, API, AI gateway, worker, scheduler"):
        show.run("up", "--detach")
    with show.stage("The template that machines are cloned from"):
        show.run("template", "build")
    show.out.print(f"\nThe model is {_model()}.", markup=False)
    show.run("project", "create", "demo", "--budget", f"{budget:g}")
    with show.stage("A machine: Claude Code in a VM of its own"):
        show.run("machine", "spawn", "demo", "--name", "first", "--prompt", prompt)
        show.run("machine", "show", "first")
    with show.stage("A second machine, from what the first one left"):
        show.run("machine", "spawn", "demo", "--name", "second", "--prompt", follow_up, "--from", _last_of("first"))
        show.run("machine", "show", "second")
    with show.stage("What there is now, and what it cost"):
        show.run("checkpoint", "tree", "demo")
        show.run("usage", "demo")


def _model() -> str:
    config = settings()
    if config.anthropic_api_key:
        return f"Anthropic's {config.default_model}: this costs real money, up to the budget"
    return "the demo model, which plays Anthropic's API from a script (set ANTHROPIC_API_KEY for the real one)"


def _last_of(name: str) -> str:
    from autovibe import db, machines

    with db.session_scope(settings()) as session:
        return str(machines.find(session, name).last_checkpoint_uuid)


def _stop(show: Show) -> None:
    with show.stage("Stop everything"):
        try:
            show.run("down")
        finally:
            try:
                show.run("lab", "down")
            finally:
                _forget()


def _forget() -> None:
    from autovibe import db, postgres

    config = settings()
    db.dispose()
    postgres.remove(config)
    shutil.rmtree(config.state_dir, ignore_errors=True)


def _summary(show: Show, keep: bool) -> None:
    show.out.print("\nSeconds", style="bold")
    for title, taken in [*show.stages, ("all", sum(taken for _, taken in show.stages))]:
        show.out.print(f"  {taken:6.1f}  {title}", markup=False)
    if not keep:
        show.out.print("\nAll is stopped. `make vibe KEEP=1` leaves it up and says how to go on.", markup=False)
        return
    state, port = os.environ["AUTOVIBE_STATE_DIR"], os.environ["AUTOVIBE_HUB_PORT"]
    show.out.print(
        f"\nAll is left up. To go on:\n  export AUTOVIBE_STATE_DIR={state} AUTOVIBE_HUB_PORT={port}\n"
        "  . .venv/bin/activate\n  autovibe machine list --all\n"
        '  autovibe machine spawn demo --prompt "…" --from CHECKPOINT\n'
        "To stop:\n  autovibe down; autovibe lab down",
        markup=False,
    )
