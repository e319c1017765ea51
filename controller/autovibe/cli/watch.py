"""Live progress: follow a machine or an operation until it has ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import click

from autovibe import db, views
from autovibe.cli.common import console
from autovibe.errors import AutovibeError
from autovibe.models import Machine, MachineEvent, Operation
from autovibe.settings import Settings

_POLL_SECONDS = 0.25
_STYLES = {"error": "red", "system": "cyan", "tool": "dim", "text": ""}


class OperationFailed(AutovibeError):
    """The operation failed."""

    code = "operation_failed"


def hint_when_down(settings: Settings) -> None:
    """Say so when nothing here will do what was asked for."""
    from autovibe import supervise

    if supervise.status(settings) is None:
        click.echo("autovibe: the hub is not up here; it is done when `autovibe up` runs.", err=True)


def operation(settings: Settings, operation_uuid: UUID, what: str, *, quiet: bool = False) -> dict[str, Any]:
    """Wait until the operation has ended; OperationFailed when it failed."""
    with progress(what, quiet):
        while True:
            with db.session_scope(settings) as session:
                row = session.get_one(Operation, operation_uuid)
                shown = views.operation(row)
            if shown["status"] == "failed":
                raise OperationFailed(f"{what} failed: {row.error}", _log_hint(row))
            if shown["status"] == "succeeded":
                return shown
            time.sleep(_POLL_SECONDS)


def machine(
    settings: Settings,
    machine_uuid: UUID,
    *,
    show: Callable[[str, str, str], None] | None = None,
    after: int = 0,
    stages: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Follow a machine until it is terminated; returns its view in full.

    `show(kind, at, text)` gets each line of its log; `stages` is filled with seconds from now to each status.
    """
    began = time.monotonic()
    status = None
    while True:
        with db.session_scope(settings) as session:
            row = session.get_one(Machine, machine_uuid)
            lines = views.events(session, row, after=after)
            ended = row.status == "terminated" and not lines
            full = views.machine_in_full(session, row) if ended else None
        for line in lines:
            after = line.id
            if show:
                show(*as_line(line))
        if row.status != status:
            status = row.status
            if stages is not None:
                stages.setdefault(status, time.monotonic() - began)
            if show and not ended:
                show("status", "", status)
        if full is not None:
            return full
        time.sleep(_POLL_SECONDS)


def as_line(event: MachineEvent) -> tuple[str, str, str]:
    """(kind, local time, text) of a log line."""
    return event.kind, event.at.astimezone().strftime("%H:%M:%S"), event.text


def printer() -> Callable[[str, str, str], None]:
    """Prints log lines with colours on a terminal, plain elsewhere."""
    from rich.text import Text

    out = console()

    def show(kind: str, at: str, text: str) -> None:
        if kind == "status":
            out.print(Text(f"── {text}", style="bold"))
            return
        out.print(Text.assemble((f"{at} ", "dim"), (f"{kind:<6} ", _STYLES.get(kind, "")), text.rstrip()))

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


def _log_hint(row: Operation) -> str:
    task_log = (row.result or {}).get("task_log") or []
    if isinstance(task_log, list) and task_log:
        return f"Proxmox's task log ends: {task_log[-1]}"
    return f"See run {row.run_uuid}." if row.run_uuid else ""
