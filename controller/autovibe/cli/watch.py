"""Live progress: follow a machine or an operation until it has ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import click

from autovibe.api.v1 import schemas
from autovibe.cli.common import console, plain
from autovibe.client import Client
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
    """Wait until the operation has ended; OperationFailed when it failed."""
    pause = _POLL_FIRST
    with progress(what, quiet):
        while True:
            shown = hub.get(f"/operations/{operation_uuid}", schemas.OperationInFull)
            if shown["status"] == "failed":
                raise OperationFailed(f"{what} failed: {shown['error']}", _log_hint(shown))
            if shown["status"] == "succeeded":
                return shown
            time.sleep(pause)
            pause = min(pause * 1.5, _POLL_MOST)


def machine(
    hub: Client,
    machine_uuid: UUID,
    *,
    show: Callable[[str, str, str], None] | None = None,
    stages: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Follow a machine until it is terminated or paused; returns its view in full.

    `show(kind, at, text)` gets each line of its log; `stages` is filled with seconds from now to each status.
    """
    began, status = time.monotonic(), None
    for kind, data in hub.follow(f"/machines/{machine_uuid}/events"):
        if kind == "log" and show:
            show(*as_line(schemas.LogLine.model_validate(data).model_dump()))
        elif kind == "status" and data["status"] != status:
            status = data["status"]
            if stages is not None:
                stages.setdefault(status, time.monotonic() - began)
            if show and status != "terminated":
                show("status", "", status)
            if status == "paused":
                return hub.get(f"/machines/{machine_uuid}", schemas.MachineInFull)
        elif kind == "end":
            return schemas.MachineInFull.model_validate(data).model_dump()
    raise OperationFailed("The machine can be followed no more")


def as_line(event: dict[str, Any]) -> tuple[str, str, str]:
    """(kind, local time, text) of a log line."""
    return event["kind"], event["at"].astimezone().strftime("%H:%M:%S"), event["text"]


def printer() -> Callable[[str, str, str], None]:
    """Prints log lines with colours on a terminal, plain elsewhere."""
    from rich.text import Text

    out = console()

    def show(kind: str, at: str, text: str) -> None:
        if kind == "status":
            out.print(Text(f"── {text}", style="bold"))
            return
        out.print(Text.assemble((f"{at} ", "dim"), (f"{kind:<6} ", _STYLES.get(kind, "")), plain(text.rstrip())))

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
    return f"See run {shown['run']}." if shown["run"] else ""
