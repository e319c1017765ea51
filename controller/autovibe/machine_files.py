"""What machines leave behind: their workspaces, kept by content in the state folder; patches of them.

    <state>/files/<machine>/<sha256>             what is kept of a machine: its last one, and the one before
    <state>/files/incoming/<machine>/<name>      what is being sent, by its SHA-256 or a name of the machine's

The archives come from guests: nothing in them is trusted. None is shared: a machine that knows a hash has not the file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from autovibe import workspaces
from autovibe.errors import AutovibeError, Conflict, Invalid
from autovibe.models import Checkpoint, Machine, MachineFile
from autovibe.settings import Settings

WORKSPACE = "workspace.tar.gz"
#: Packed.
LIMIT_BYTES = 512 * 2**20
PATCH_SECONDS = 60
#: Patches that a process makes at once, and what is unpacked on the hub's disk for each side of one.
PATCHES = 2
PATCH_BYTES = 2**30


class NoFiles(Conflict):
    """The hub has no files of this machine."""

    code = "no_files"


class TooManyPatches(AutovibeError):
    """The hub is making other patches now."""

    code = "too_many_requests"
    http_status = 429
    default_hint = "Try again in a minute, or copy the files instead."


_patches = threading.BoundedSemaphore(PATCHES)


def receive(settings: Settings, machine: Machine, name: str, offset: int, part: bytes) -> int:
    """Takes a part of a file; returns how much of it is here. A part that is here already changes nothing.

    Its name is its SHA-256 or, of one that is sent while it is made, 64 digits of the machine's choice.

    Conflict when a part before it is missing. A machine sends one file at a time: another one takes its place.
    """
    path = _incoming(settings, machine) / name
    if (kept := _kept(settings, machine.uuid, name)).exists():
        return kept.stat().st_size
    if not path.exists():
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir(mode=0o700, parents=True)
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
        have = file.seek(0, os.SEEK_END)
        if offset > have:
            raise Conflict(f"The part at {offset} came before the one at {have}")
        if offset + len(part) > LIMIT_BYTES:
            raise Invalid(f"A file of a machine may have {LIMIT_BYTES // 2**20} MiB")
        if offset + len(part) <= have:
            return have
        file.seek(offset)
        file.write(part)
        return offset + len(part)


def keep(
    session: Session,
    settings: Settings,
    machine: Machine,
    *,
    kind: str,
    name: str,
    sha256: str,
    upload: str | None = None,
) -> None:
    """Keeps a file that has come whole, as `name` of the machine; Invalid when it is not what its hash says.

    `upload`: what it was called while it came, if not by its hash.
    """
    kept = _kept(settings, machine.uuid, sha256)
    _remove_older(session, kept)
    if not kept.exists():
        came = _incoming(settings, machine) / (upload or sha256)
        if not came.exists() or _sha256(came) != sha256:
            shutil.rmtree(came.parent, ignore_errors=True)
            raise Invalid("The file did not come whole; send it again")
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        came.rename(kept)
    shutil.rmtree(_incoming(settings, machine), ignore_errors=True)
    values = {"sha256": sha256, "size_bytes": kept.stat().st_size}
    session.execute(
        insert(MachineFile)
        .values(machine_uuid=machine.uuid, kind=kind, name=name, **values)
        .on_conflict_do_update(index_elements=["machine_uuid", "kind", "name"], set_=values)
    )


def workspace(session: Session, settings: Settings, machine: Machine) -> Path:
    """The archive of the machine's workspace as it was at its end; NoFiles when it has left none."""
    found = session.get(MachineFile, (machine.uuid, "workspace", WORKSPACE))
    if found is None or not _kept(settings, machine.uuid, found.sha256).exists():
        raise NoFiles(
            f"The hub has no files of machine {machine.name}",
            "It has them of a machine whose work has ended, with files in its workspace; else its log says why not.",
        )
    return _kept(settings, machine.uuid, found.sha256)


def patch(session: Session, settings: Settings, machine: Machine) -> bytes:
    """What the machine has changed of what it started from, as `git apply` takes it.

    Conflict when that is not kept, TooMuchInIt, TooManyPatches: guests say how much is unpacked and compared for it.
    """
    if not _patches.acquire(blocking=False):
        raise TooManyPatches()
    try:
        return _patch(session, settings, machine)
    finally:
        _patches.release()


def _patch(session: Session, settings: Settings, machine: Machine) -> bytes:
    after = workspace(session, settings, machine)
    before = _base(session, settings, machine)
    with tempfile.TemporaryDirectory(prefix="autovibe-patch-") as scratch:
        folder = Path(scratch)
        (folder / "a").mkdir()
        if before is not None:
            workspaces.extract(before, folder / "a", most_bytes=PATCH_BYTES)
        workspaces.extract(after, folder / "b", most_bytes=PATCH_BYTES)
        command = ["git", "-c", "core.quotePath=false", "diff", "--no-index", "--binary", "--no-ext-diff"]
        command += ["--no-textconv", "--src-prefix=", "--dst-prefix=", "a", "b"]
        clean = {
            "PATH": os.environ["PATH"],
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "HOME": scratch,
        }
        return _said_by(command, folder, clean)


def _said_by(command: list[str], folder: Path, environment: dict[str, str]) -> bytes:
    """What git prints of files that a guest chose: for so long, and so much of it."""
    streams = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with tempfile.TemporaryFile(dir=folder) as out:
        try:
            done = subprocess.run(command, cwd=folder, env=environment, stdout=out, timeout=PATCH_SECONDS, **streams)
        except FileNotFoundError:
            raise Conflict("git is not installed here", "apt-get install git") from None
        except subprocess.TimeoutExpired:
            raise Conflict(f"git has not compared them within {PATCH_SECONDS} s", "Copy the files instead.") from None
        if done.returncode not in (0, 1):
            raise Conflict(f"git cannot compare them: {done.stderr.decode(errors='replace').strip()[-200:]}")
        if out.seek(0, os.SEEK_END) > workspaces.SHOWN_BYTES:
            raise Conflict(f"The patch is larger than {workspaces.SHOWN_BYTES // 2**20} MiB", "Copy the files instead.")
        out.seek(0)
        return out.read()


def _base(session: Session, settings: Settings, machine: Machine) -> Path | None:
    """The archive of what the machine started from; None for an empty workspace."""
    parent = session.get(Checkpoint, machine.parent_checkpoint_uuid) if machine.parent_checkpoint_uuid else None
    if parent is None or parent.creating_machine_uuid is None:
        return None
    if parent.checkpoint_type != "final":
        raise Conflict(
            f"Machine {machine.name} started in the middle of another's work, whose files the hub does not have",
            "Compare their checkpoints: `autovibe checkpoint diff`.",
        )
    return workspace(session, settings, session.get_one(Machine, parent.creating_machine_uuid))


def _remove_older(session: Session, kept: Path) -> None:
    """Remove what a machine sent before the file that is recorded: it may send another one again and again."""
    query = select(MachineFile.sha256).where(MachineFile.machine_uuid == UUID(kept.parent.name))
    known = {kept.name, *session.scalars(query)}
    for path in kept.parent.glob("*"):
        if path.name not in known:
            path.unlink(missing_ok=True)


def folder_of(settings: Settings, machine_uuid: UUID) -> Path:
    """Where all that is kept of a machine is."""
    return settings.state_dir / "files" / str(machine_uuid)


def incoming_folder_of(settings: Settings, machine_uuid: UUID) -> Path:
    """Where what a machine is sending is."""
    return settings.state_dir / "files" / "incoming" / str(machine_uuid)


def incoming(settings: Settings) -> list[UUID]:
    """The machines of which there is something that has not come whole."""
    return [UUID(path.name) for path in (settings.state_dir / "files" / "incoming").glob("????????-*")]


def _kept(settings: Settings, machine_uuid: UUID, sha256: str) -> Path:
    return folder_of(settings, machine_uuid) / sha256


def _incoming(settings: Settings, machine: Machine) -> Path:
    return incoming_folder_of(settings, machine.uuid)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
