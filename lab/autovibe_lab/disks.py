"""Disk images: qcow2 files, made and changed by `qemu-img` in processes of their own.

Backing files are named relative to the file that needs them, as Proxmox does, so that a state folder can be moved.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path


class DiskError(Exception):
    """A disk image could not be made, read or changed."""


@dataclass(frozen=True)
class DiskInfo:
    """What `qemu-img info` says of an image. Sizes in bytes; `used` is what it takes on the host's disk."""

    format: str
    size: int
    used: int
    backing: Path | None
    snapshots: tuple[str, ...]


async def create(path: Path, size: int | str) -> None:
    """An empty qcow2 image of `size` bytes, or a text such as `4G`."""
    await _make(path, "create", "-q", "-f", "qcow2", "{target}", str(size))


async def linked_clone(base: Path, target: Path, format: str | None = None) -> None:
    """An image that holds only what differs from `base`, which must not change any more."""
    if not base.exists():
        raise DiskError(f"{base} does not exist")
    backing = os.path.relpath(base, target.parent)
    options = ("-F", format or file_format(base), "-b", backing)
    await _make(target, "create", "-q", "-f", "qcow2", *options, "{target}")


async def full_copy(source: Path, target: Path, snapshot: str | None = None, *, compress: bool = False) -> None:
    """An image of its own with the content of `source`, or of one of its snapshots."""
    options = ("-l", f"snapshot.name={snapshot}") if snapshot else ()
    options += ("-c",) if compress else ()
    # -U: a running guest holds the lock of its disk.
    await _make(target, "convert", "-q", "-U", "-O", "qcow2", *options, str(source), "{target}")


async def convert_import(source: Path, target: Path) -> None:
    """A guest's disk from an image of the `import` folder: an overlay on it, made in milliseconds.

    A symbolic link is followed first, so the overlay names the very version of the image that it was made from.
    """
    await linked_clone(source.resolve(), target)


async def snapshot_create(path: Path, name: str) -> None:
    """Snapshot the image of a stopped guest."""
    await _qemu_img("snapshot", "-q", "-c", name, str(path))


async def snapshot_apply(path: Path, name: str) -> None:
    """Bring the image of a stopped guest back to its snapshot."""
    await _qemu_img("snapshot", "-q", "-a", name, str(path))


async def snapshot_delete(path: Path, name: str) -> None:
    """Delete the snapshot from the image of a stopped guest; one that is not there is fine."""
    if name in (await info(path)).snapshots:
        await _qemu_img("snapshot", "-q", "-d", name, str(path))


async def resize(path: Path, size: int | str) -> None:
    """Grow the image of a stopped guest to `size` bytes or a text such as `8G`, or by one such as `+2G`."""
    await _qemu_img("resize", "-q", str(path), str(size))


async def info(path: Path) -> DiskInfo:
    """What the image is; a guest may be using it."""
    found = json.loads(await _qemu_img("info", "-U", "--output=json", str(path)))
    backing = found.get("full-backing-filename") or found.get("backing-filename")
    return DiskInfo(
        format=found["format"],
        size=found["virtual-size"],
        used=found.get("actual-size", 0),
        backing=Path(backing) if backing else None,
        snapshots=tuple(snapshot["name"] for snapshot in found.get("snapshots", ())),
    )


def file_format(path: Path) -> str:
    """`qcow2` or `raw`, by the first bytes of the file."""
    with path.open("rb") as file:
        return "qcow2" if file.read(4) == b"QFI\xfb" else "raw"


async def _make(target: Path, *arguments: str) -> None:
    """Run qemu-img for a new file, which has its name only once it is whole."""
    if target.exists():
        raise DiskError(f"{target} already exists")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    try:
        await _qemu_img(*(str(part) if argument == "{target}" else argument for argument in arguments))
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)


async def _qemu_img(*arguments: str) -> bytes:
    try:
        process = await asyncio.create_subprocess_exec(
            "qemu-img",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError:
        raise DiskError("qemu-img is missing: install the package qemu-utils") from None
    try:
        output, errors = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        said = errors.decode(errors="replace").strip() or f"exit code {process.returncode}"
        raise DiskError(f"qemu-img {arguments[0]}: {said.removeprefix('qemu-img: ')}")
    return output
