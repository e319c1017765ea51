"""Files into the workspace."""

import base64
import binascii
import os
import secrets
import stat
from pathlib import Path, PurePosixPath

from autovibe_agent.paths import User

MAX_PATH = 1024


class UnsafePath(ValueError):
    """A given file's path does not stay in the workspace."""


def write_files(workspace: Path, files: list[dict], user: User) -> int:
    """Writes (or, of entries with "delete", removes) the assignment's files as the user's; returns how many.

    UnsafePath before anything is written when a path leads out of the workspace.
    """
    planned = []
    for entry in files:
        parts = _safe_parts(entry.get("path"))
        if entry.get("delete"):
            planned.append((parts, None, 0))
            continue
        try:
            content = base64.b64decode(entry["content_base64"], validate=True)
        except (KeyError, TypeError, binascii.Error) as error:
            raise ValueError(f"file {entry.get('path')!r} has no valid content") from error
        planned.append((parts, content, _mode(entry.get("mode"))))
    for parts, content, mode in planned:
        if content is None:
            _delete(workspace, parts)
        else:
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


def _delete(workspace: Path, parts: tuple[str, ...]) -> None:
    """Removes a file, link or whole folder, going down as `_write_file` does; what is not there is no mistake."""
    folder = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below
        if stat.S_ISDIR(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False).st_mode):
            _delete_folder(parts[-1], folder)
        else:
            os.unlink(parts[-1], dir_fd=folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UnsafePath(f"{'/'.join(parts)!r} cannot be deleted: {error.strerror}") from error
    finally:
        os.close(folder)


def _delete_folder(name: str, parent: int) -> None:
    """Not shutil.rmtree with dir_fd: Ubuntu 22.04 has Python 3.10."""
    for _, folders, files, descriptor in os.fwalk(name, topdown=False, follow_symlinks=False, dir_fd=parent):
        for below in files:
            os.unlink(below, dir_fd=descriptor)
        for below in folders:
            is_link = stat.S_ISLNK(os.stat(below, dir_fd=descriptor, follow_symlinks=False).st_mode)
            (os.unlink if is_link else os.rmdir)(below, dir_fd=descriptor)
    os.rmdir(name, dir_fd=parent)


def _own(descriptor: int, user: User) -> None:
    if os.geteuid() == 0:
        os.fchown(descriptor, user.uid, user.gid)
