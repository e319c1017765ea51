"""The hub's own secret: machine tokens are signed with it, one-time tokens derived from it.

It lies in `<state>/hub/hub.key` (0600) and never leaves the hub.
"""

import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

KEY_BYTES = 32


def hub_dir(state_dir: Path) -> Path:
    """`<state>/hub`, made 0700 when it is not there."""
    folder = Path(state_dir) / "hub"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one process at a time makes secrets in the folder; ended by the kernel when the process dies."""
    with open(os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_secret(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replaces a file in one step; never readable by others, not even for a moment, unless `mode` says so."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def hub_key(state_dir: Path) -> bytes:
    """The hub's key, made at the first call."""
    # Every request of a machine needs it: resolving the path would take longer than all else about its token.
    return _hub_key(os.path.abspath(state_dir))


@lru_cache(maxsize=8)
def _hub_key(state_dir: str) -> bytes:
    folder = hub_dir(Path(state_dir))
    path = folder / "hub.key"
    with locked(folder):
        if not path.exists():
            write_secret(path, secrets.token_bytes(KEY_BYTES))
        return path.read_bytes()
