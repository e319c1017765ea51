"""The archive of a workspace that a machine has left: what is in it, one file of it, all of it in a folder.

It comes from a guest: nothing in it is trusted. No database here: the command line unpacks one as the hub does.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from autovibe import archives
from autovibe.errors import AutovibeError, Conflict, Invalid, NotFound

#: Against archives that grow without end.
UNPACKED_BYTES = 4 * 2**30
MEMBERS = 100_000
#: The largest file that is shown by itself.
SHOWN_BYTES = 64 * 2**20


class CannotWrite(AutovibeError):
    """A file cannot be written there."""

    code = "cannot_write"


def listed(archive: Path, folder: str = "") -> list[dict[str, Any]]:
    """{"path", "size", "mode"} of the regular files, of one folder or of all."""
    with _opened(archive) as members:
        return [
            {"path": path, "size": member.size, "mode": f"{member.mode & 0o777:04o}"}
            for path, member in _files(members)
            if _is_below(path, folder)
        ]


def extract(archive: Path, target: Path, folder: str = "", most_bytes: int | None = None) -> int:
    """Writes the regular files below `target`, which is made; returns how many. Nothing is written outside of it.

    TooMuchInIt; CannotWrite.
    """
    count, left = 0, UNPACKED_BYTES if most_bytes is None else most_bytes
    _make(target)
    with _opened(archive) as members:
        for path, member in _files(members):
            if not _is_below(path, folder):
                continue
            if (left := left - member.size) < 0:
                raise archives.TooMuchInIt()
            place = _place(target, path)
            _make(place.parent)
            with members.content(member) as packed:
                _write(place, packed)
            place.chmod(member.mode & 0o755 | 0o600)
            with suppress(OSError, ValueError, OverflowError):  # a time that no file can have
                os.utime(place, (member.mtime, member.mtime))
            count += 1
    return count


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"The folder {folder} cannot be made: {error.strerror}") from None


def _write(place: Path, packed: BinaryIO) -> None:
    """What goes wrong with the archive's own bytes is raised as it is."""
    try:
        with place.open("wb") as file:
            shutil.copyfileobj(packed, file)
    except OSError as error:
        if error.errno is None:  # gzip's
            raise
        raise CannotWrite(f"{place} cannot be written: {error.strerror}") from None


def _place(target: Path, path: str) -> Path:
    """Where a member of that name is written, links followed; Invalid when that is not below `target`.

    Not by the filters of `tarfile`: Debian 12's Python has none.
    """
    place = (target / path.lstrip("/")).resolve()
    if not place.is_relative_to(target.resolve()):
        raise Invalid(f"The archive is not to be trusted: {path:.200} is outside of its folder")
    return place


def content(archive: Path, wanted: str) -> bytes:
    """One file of the archive; NotFound when it has none of that name, Conflict when it is too large to be shown."""
    with _opened(archive) as members:
        for path, member in _files(members):
            if path == wanted and member.size > SHOWN_BYTES:
                raise Conflict(f"{wanted} is larger than {SHOWN_BYTES // 2**20} MiB", "Copy the files instead.")
            if path == wanted:
                return members.content(member).read()
    raise NotFound(f"The workspace has no file {wanted}")


def contents(archive: Path, wanted: set[str], most_bytes: int) -> Iterator[bytes]:
    """The files of the archive with these paths, but not what is larger."""
    with _opened(archive) as members:
        for path, member in _files(members):
            if path in wanted and member.size <= most_bytes:
                yield members.content(member).read()


def _files(members: archives.Members) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The regular files."""
    return ((str(PurePosixPath(member.name)), member) for member in members if member.isreg())


def _opened(archive: Path) -> AbstractContextManager[archives.Members]:
    return archives.opened(archive, archives.Bounds(UNPACKED_BYTES, MEMBERS), of_guest=True)


def _is_below(path: str, folder: str) -> bool:
    return not folder or PurePosixPath(path).is_relative_to(folder)
