"""Files into the workspace, and the manifest of what stands in it."""

import base64
import binascii
import hashlib
import os
import secrets
import stat
from pathlib import Path, PurePosixPath

from autovibe_agent.paths import User

MAX_FILES = 5000
MAX_PATH = 1024
MAX_HASHED_FILE = 64 << 20
MAX_HASHED_TOTAL = 512 << 20
# Git's objects are many, and the commits say the same.
SKIPPED = (".git/objects",)


class UnsafePath(ValueError):
    """A given file's path does not stay in the workspace."""


def write_files(workspace: Path, files: list[dict], user: User) -> int:
    """Writes the assignment's files as the user's; returns how many. UnsafePath before anything is written."""
    planned = []
    for entry in files:
        parts = _safe_parts(entry.get("path"))
        try:
            content = base64.b64decode(entry["content_base64"], validate=True)
        except (KeyError, TypeError, binascii.Error) as error:
            raise ValueError(f"file {entry.get('path')!r} has no valid content") from error
        planned.append((parts, content, _mode(entry.get("mode"))))
    for parts, content, mode in planned:
        _write_file(workspace, parts, content, mode, user)
    return len(planned)


def _safe_parts(path) -> tuple[str, ...]:
    if not isinstance(path, str) or not path or "\0" in path or len(path) > MAX_PATH:
        raise UnsafePath(f"not a file path: {path!r}")
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or not parts or path.endswith("/"):
        raise UnsafePath(f"path does not stay in the workspace: {path!r}")
    return parts


def _mode(value) -> int:
    if value is None:
        return 0o644
    return (int(value, 8) if isinstance(value, str) else int(value)) & 0o777


def _write_file(workspace: Path, parts: tuple[str, ...], content: bytes, mode: int, user: User) -> None:
    """Goes down folder by folder without following links: an earlier agent may have planted some."""
    folder = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            try:
                os.mkdir(part, 0o755, dir_fd=folder)
                made = True
            except FileExistsError:
                made = False
            try:
                below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            except OSError as error:
                raise UnsafePath(f"{part!r} of {'/'.join(parts)!r} is not a folder") from error
            os.close(folder)
            folder = below
            if made:
                _own(folder, user)
        temporary = f".autovibe-{secrets.token_hex(8)}"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder), "wb") as file:
            file.write(content)
            _own(file.fileno(), user)
            os.fchmod(file.fileno(), mode)
        os.replace(temporary, parts[-1], src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)


def _own(descriptor: int, user: User) -> None:
    if os.geteuid() == 0:
        os.fchown(descriptor, user.uid, user.gid)


class Manifest:
    """Lists the workspace's regular files. Keeps hashes: a file of the same size and times is not read again."""

    def __init__(self, workspace: Path):
        self.workspace = workspace
        self._hashes: dict[str, tuple[tuple[int, int, int], str]] = {}

    def take(self) -> dict:
        """{"files": [{"path", "size", "sha256" (null when too large to read), "mode"}], "truncated": bool}."""
        files: list[dict] = []
        hashed = 0
        for top, folders, names, descriptor in os.fwalk(self.workspace, follow_symlinks=False):
            below = os.path.relpath(top, self.workspace)
            folders[:] = sorted(name for name in folders if _join(below, name) not in SKIPPED)
            for name in sorted(names):
                path = _join(below, name)
                try:
                    st = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    if not stat.S_ISREG(st.st_mode):
                        continue
                    if len(files) >= MAX_FILES or len(path) > MAX_PATH:
                        return {"files": files, "truncated": True}
                    readable = st.st_size <= MAX_HASHED_FILE and hashed + st.st_size <= MAX_HASHED_TOTAL
                    sha256, read = self._hash(path, name, descriptor, st) if readable else (None, 0)
                except OSError:  # gone while we looked
                    continue
                hashed += read
                mode = f"{stat.S_IMODE(st.st_mode):04o}"
                files.append({"path": _text(path), "size": st.st_size, "sha256": sha256, "mode": mode})
        return {"files": files, "truncated": False}

    def _hash(self, path: str, name: str, folder: int, st: os.stat_result) -> tuple[str, int]:
        stamp = (st.st_mtime_ns, st.st_size, st.st_ino)
        kept = self._hashes.get(path)
        if kept is not None and kept[0] == stamp:
            return kept[1], 0
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError("not a regular file any more")
            # Not hashlib.file_digest: Ubuntu 22.04 has Python 3.10.
            digest = hashlib.sha256()
            while chunk := file.read(1 << 18):
                digest.update(chunk)
        sha256 = digest.hexdigest()
        self._hashes[path] = (stamp, sha256)
        return sha256, st.st_size


def _join(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder}/{name}"


def _text(path: str) -> str:
    """A path as valid Unicode: file names are bytes."""
    return os.fsencode(path).decode("utf-8", "replace")
