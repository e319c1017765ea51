"""Live progress: follow a machine or an operation until it has ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import click

from autovibe.api.v1 import schemas
from autovibe.cli.common import console, json_text, plain
from autovibe.client import RECONNECT_SECONDS, Client, is_away
from autovibe.errors import AutovibeError

_POLL_FIRST, _POLL_MOST = 0.1, 1.0
_STYLES = {"error": "red", "system": "cyan", "tool": "dim", "text": ""}


class OperationFailed(AutovibeError):
    """The operation failed."""

    code = "operation_failed"


def hint_when_down(hub: Client) -> None:
    """Say so when nothing here will do what was asked for."""
    if hub.is_down:
        click.echo("autovibe: the hub is not up here; it is done when `autovibe up` runs.", err=True)


def operation(hub: Client, operation_uuid: UUID, what: str, *, quiet: bool = False) -> dict[str, Any]:
    """Wait until the operation has ended, also while the hub is started again; OperationFailed when it failed."""
    pause = _POLL_FIRST
    with progress(what, quiet):
        while True:
            shown = _asked(hub, operation_uuid)
            if shown["status"] == "failed":
                raise OperationFailed(f"{what} failed: {shown['error']}", _log_hint(shown))
            if shown["status"] == "succeeded":
                return shown
            time.sleep(pause)
            pause = min(pause * 1.5, _POLL_MOST)


def _asked(hub: Client, operation_uuid: UUID) -> dict[str, Any]:
    """The operation as it is now; a hub that has been answering is given a minute to do so again."""
    gone_since = None
    while True:
        try:
            return hub.get(f"/operations/{operation_uuid}", schemas.OperationInFull)
        except AutovibeError as error:
            if not is_away(error) or time.monotonic() - (gone_since or time.monotonic()) > RECONNECT_SECONDS:
                raise
        if gone_since is None:
            gone_since = time.monotonic()
            _say_away()
        time.sleep(_POLL_MOST)


def _say_away() -> None:
    click.echo(f"autovibe: the hub does not answer; it is asked for {RECONNECT_SECONDS} s more.", err=True)


def machine(
    hub: Client,
    machine_uuid: UUID,
    *,
    show: Callable[[dict[str, Any]], None] | None = None,
    stages: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Follow a machine until it is terminated or paused; returns its view in full.

    `show` gets each line of its log, and its status as one of kind `status`; `stages` is filled with seconds from now
    to each status.
    """
    began, status = time.monotonic(), None
    path = f"/machines/{machine_uuid}/events"
    for kind, data in hub.follow(path, on_away=_say_away):
        if kind == "log" and show:
            show(hub.read_as(schemas.LogLine, data, f"GET {path}"))
        elif kind == "status" and (now := hub.read_as(schemas.Machine, data, f"GET {path}")["status"]) != status:
            status = now
            if stages is not None:
                stages.setdefault(status, time.monotonic() - began)
            if show and status != "terminated":
                show({"kind": "status", "at": datetime.now(UTC), "text": status})
            if status == "paused":
                return hub.get(f"/machines/{machine_uuid}", schemas.MachineInFull)
        elif kind == "end":
            return hub.read_as(schemas.MachineInFull, data, f"GET {path}")
    raise OperationFailed("The machine can be followed no more")


def printer() -> Callable[[dict[str, Any]], None]:
    """Prints log lines with colours on a terminal, plain elsewhere."""
    from rich.text import Text

    out = console()

    def show(line: dict[str, Any]) -> None:
        kind, at, text = line["kind"], line["at"].astimezone().strftime("%H:%M:%S"), plain(line["text"].rstrip())
        if kind == "status":
            out.print(Text(f"── {text}", style="bold"))
            return
        out.print(Text.assemble((f"{at} ", "dim"), (f"{kind:<6} ", _STYLES.get(kind, "")), text))

    return show


def json_printer() -> Callable[[dict[str, Any]], None]:
    """Prints each log line as a JSON object in a line of its own."""

    def show(line: dict[str, Any]) -> None:
        if line["kind"] != "status":
            click.echo(json_text(line, indent=None))

    return show


@contextlib.contextmanager
def progress(what: str, quiet: bool) -> Iterator[None]:
    """A spinner on a terminal; nothing elsewhere."""
    out = console(stderr=True)
    if quiet or not out.is_terminal:
        yield
        return
    with out.status(f"{what} …"):
        yield


def _log_hint(shown: dict[str, Any]) -> str:
    if shown["task_log"]:
        return f"Proxmox's task log ends: {shown['task_log'][-1]}"
    return f"What Ansible said is in runs/{shown['run']} of the hub's state folder." if shown["run"] else ""
