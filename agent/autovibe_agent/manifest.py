"""The manifest: what regular files stand in the workspace, so that two checkpoints can be compared without a mount."""

import hashlib
import json.encoder
import os
import stat
import time
from pathlib import Path

from autovibe_agent.ignore import Ignore

MAX_FILES = 20_000
MAX_PATH = 1024
# The whole manifest as JSON: with a result around it, less than the hub takes of one request (8 MiB).
MAX_BYTES = 6 << 20
MAX_HASHED_FILE = 64 << 20
MAX_HASHED_TOTAL = 512 << 20
# What stands around a path: its size, hash, mode and the keys.
_ENTRY_BYTES = 150
# A file may change again within one tick of its file system's clock; what is as young as this is read again.
_SETTLED_NS = 2_000_000_000


class Manifest:
    """Lists the workspace's regular files. Keeps hashes: a file of the same size and times is not read again."""

    def __init__(self, workspace: Path):
        self.workspace = workspace
        self._hashes: dict[str, tuple[tuple[int, ...], str]] = {}

    def take(self) -> dict:
        """{"files": [{"path", "size", "sha256" (null when too large to read), "mode"}], "truncated": bool}.

        Without what `ignore` leaves out. Truncated: there are more files than it may list.
        """
        walk = _Walk(self._hashes)
        try:
            descriptor = os.open(self.workspace, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return {"files": [], "truncated": False}
        try:
            walk.ignore = Ignore.of(descriptor)
            walk.folder(descriptor, "")
        except _Full:
            walk.truncated = True
        finally:
            os.close(descriptor)
        self._hashes = walk.hashes
        return {"files": walk.files, "truncated": walk.truncated}


class _Full(Exception):
    """The manifest lists as much as it may."""


class _Walk:
    """One walk through the workspace; goes down by open folders, so that no link that appears meanwhile is followed."""

    ignore: Ignore

    def __init__(self, known: dict[str, tuple[tuple[int, ...], str]]):
        self._known = known
        self.hashes: dict[str, tuple[tuple[int, ...], str]] = {}
        self.files: list[dict] = []
        self.truncated = False
        self._bytes = 0
        self._hashed = 0
        self._now = time.time_ns()

    def folder(self, descriptor: int, below: str) -> None:
        """Its files, then its folders, each in the order of their names."""
        folders = []
        with os.scandir(descriptor) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            path = below + entry.name
            try:
                is_folder = entry.is_dir(follow_symlinks=False)
                if self.ignore.matches(path, is_folder):
                    continue
                if len(path) > MAX_PATH:
                    self.truncated = True
                elif is_folder:
                    folders.append(entry.name)
                elif entry.is_file(follow_symlinks=False):
                    self._file(descriptor, entry, path)
            except OSError:  # gone while we looked
                continue
        for name in folders:
            try:
                opened = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            except OSError:
                continue
            try:
                self.folder(opened, f"{below}{name}/")
            finally:
                os.close(opened)

    def _file(self, folder: int, entry: os.DirEntry, path: str) -> None:
        st = entry.stat(follow_symlinks=False)
        text = _text(path)
        self._bytes += len(json.encoder.encode_basestring(text).encode()) + _ENTRY_BYTES
        if len(self.files) >= MAX_FILES or self._bytes > MAX_BYTES:
            raise _Full
        sha256 = self._hash(path, entry.name, folder, st)
        self.files.append(
            {"path": text, "size": st.st_size, "sha256": sha256, "mode": f"{stat.S_IMODE(st.st_mode):04o}"}
        )

    def _hash(self, path: str, name: str, folder: int, st: os.stat_result) -> str | None:
        stamp = (st.st_mtime_ns, st.st_ctime_ns, st.st_size, st.st_ino)
        kept = self._known.get(path)
        if kept is None or kept[0] != stamp:
            if st.st_size > MAX_HASHED_FILE or self._hashed + st.st_size > MAX_HASHED_TOTAL:
                return None
            self._hashed += st.st_size
            kept = (stamp, _read(name, folder))
        if abs(self._now - max(st.st_mtime_ns, st.st_ctime_ns)) > _SETTLED_NS:
            self.hashes[path] = kept
        return kept[1]


def _read(name: str, folder: int) -> str:
    """The hash of a file's content; OSError when it is no regular file any more."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("not a regular file any more")
        # Not hashlib.file_digest: Ubuntu 22.04 has Python 3.10.
        digest = hashlib.sha256()
        while chunk := os.read(descriptor, 1 << 18):
            digest.update(chunk)
        return digest.hexdigest()
    finally:
        os.close(descriptor)


def _text(path: str) -> str:
    """A path as valid Unicode: file names are bytes."""
    return path if path.isascii() else os.fsencode(path).decode("utf-8", "replace")
