"""`autovibe machine`: files, artifacts, patch: what a machine has left with the hub."""

from __future__ import annotations

import base64
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from autovibe.cli.common import hub, json_option, named, output
from autovibe.cli.machine import machine
from autovibe.errors import NotFound

_TARGET = click.option(
    "--output", "-o", "target", type=click.Path(path_type=Path, file_okay=False), help="Copy them into this folder."
)


@machine.command()
@click.argument("machine_")
@click.argument("path", required=False)
@_TARGET
@click.option(
    "--tar", type=click.Path(path_type=Path, dir_okay=False), help="Copy all into this new file, a tar archive (gzip)."
)
@json_option
def files(machine_: str, path: str | None, target: Path | None, tar: Path | None, as_json: bool) -> None:
    """List what MACHINE has left in its workspace; print the file PATH, or copy all (below the folder PATH)."""
    if tar is None:
        _left(machine_, path or "", target, as_json, one=path)
        return
    if path or target:
        raise click.UsageError("--tar copies all, and nothing else")
    with hub() as here, _new(tar) as file:
        here.download(f"/machines/{named(machine_)}/archive", file)
    shown = {"file": str(tar), "bytes": tar.stat().st_size}
    output(shown, as_json, lambda data: f"{data['file']}: {data['bytes']} bytes.")


@machine.command()
@click.argument("machine_")
@_TARGET
@json_option
def artifacts(machine_: str, target: Path | None, as_json: bool) -> None:
    """List, or copy, what MACHINE has left in the folder artifacts/ of its workspace."""
    _left(machine_, "artifacts", target, as_json)


@contextlib.contextmanager
def _new(path: Path) -> Iterator[BinaryIO]:
    """A new file, which is there when it is whole."""
    try:
        file = path.open("xb")
    except OSError as error:
        raise click.UsageError(f"{path} cannot be made: {(error.strerror or str(error)).lower()}") from None
    try:
        with file:
            yield file
    except BaseException:
        path.unlink()
        raise


def _left(machine_: str, folder: str, target: Path | None, as_json: bool, one: str | None = None) -> None:
    from autovibe.api.v1 import schemas

    with hub() as here:
        path = f"/machines/{named(machine_)}"
        if target is not None:
            shown = {"copied": _copied(here, f"{path}/archive", target, folder), "folder": str(target)}
            output(shown, as_json, lambda data: f"{data['copied']} files copied to {target}")
            return
        found = here.get(f"{path}/files", schemas.MachineFiles, folder=folder)["items"]
        if one is not None and [row["path"] for row in found] == [one] and not as_json:
            answer = here.get(f"{path}/file", schemas.MachineFileContent, name=one)
            click.get_binary_stream("stdout").write(base64.b64decode(answer["content_base64"]))
        elif one is not None and not found:
            raise NotFound(f"There is no {one} in the workspace of {machine_}")
        else:
            output(found, as_json, _files_listed)


def _files_listed(rows: list[dict[str, Any]]) -> str:
    return "\n".join(f"{row['mode']} {row['size']:>10}  {row['path']}" for row in rows) or "No files."


def _copied(here: Any, path: str, target: Path, folder: str) -> int:
    """How many files of the archive are below `target` now."""
    from autovibe import workspaces

    with tempfile.NamedTemporaryFile(prefix="autovibe-", suffix=".tar.gz") as archive:
        here.download(path, archive)
        archive.flush()
        return workspaces.extract(Path(archive.name), target, folder)


@machine.command()
@click.argument("machine_")
@json_option
def patch(machine_: str, as_json: bool) -> None:
    """Print what MACHINE has changed of what it started from, as `git apply` takes it."""
    from autovibe.api.v1 import schemas

    with hub() as here:
        made = here.get(f"/machines/{named(machine_)}/patch", schemas.MachinePatch)
    if as_json:
        output(made, as_json)
    else:
        click.get_binary_stream("stdout").write(base64.b64decode(made["patch_base64"]))
