"""Unix sockets by path, also by one that is longer than a socket's address can be."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

#: A socket's address holds 107 bytes on Linux.
_PATH_MOST = 100


@contextlib.contextmanager
def short(path: Path) -> Iterator[str]:
    """A name for this path that a socket address can hold, for as long as the context is open."""
    if len(os.fsencode(path)) <= _PATH_MOST:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def answers(path: Path) -> bool:
    """Whether somebody listens on this socket."""
    if not path.exists():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, short(path) as name:
        probe.settimeout(2)
        try:
            probe.connect(name)
        except OSError:
            return False
        return True
