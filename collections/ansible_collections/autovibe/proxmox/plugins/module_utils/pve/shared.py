# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the processes of one play share: a few slots per node, the last look at its task list, one clone id at a time.

Ansible forks a process for each host and task, and nothing survives a task; so this stands in files of a private
folder (mode 0700, one per user), under locks that vanish with the process that holds them. It is politeness and
thrift only: without the folder, or when a slot does not come in time, everything works as well, at a higher price.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from typing import Any, TextIO

#: Heavy tasks at a time on one node. On a small node twenty spawns take as long with 4 as with 20 at once, and with
#: more of them storage locks time out.
SLOTS = 4
#: How long a turn is waited for. A slot may be held by the copy of a large disk: then we go without one.
SLOT_PATIENCE = 60.0
#: Waiters of the last seconds are still there: a poll looks as far back as they need.
WAITERS_SECONDS = 5.0


#: In memory: who waits for a snapshot of the very VM that it runs in must not wait for a disk, which is frozen then.
MEMORY = "/dev/shm"


def folder() -> str | None:
    """The private folder, in the first place that has one which can be used; None when there is none."""
    for base in (os.environ.get("XDG_RUNTIME_DIR"), MEMORY, tempfile.gettempdir()):
        if base and os.path.isdir(base):
            path = _private_folder(os.path.join(base, f"autovibe-proxmox-{os.getuid()}"))
            if path is not None:
                return path
    return None


def _private_folder(path: str) -> str | None:
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        found = os.lstat(path)
    except OSError:
        return None
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    # A file system may have become read-only since the folder was made.
    return path if private and os.access(path, os.W_OK | os.X_OK) else None


class Shared:
    """What is shared about one node of one endpoint by one user; `key` says which."""

    def __init__(self, *key: str):
        self._folder = folder()
        self._name = hashlib.sha256("\0".join(key).encode()).hexdigest()[:24]
        self._depth = 0

    @contextlib.contextmanager
    def turn(self, patience: float = SLOT_PATIENCE) -> Iterator[None]:
        """One of the node's slots, or none after `patience` seconds. A turn within a turn takes no second slot."""
        self._depth += 1
        slot = self._slot(patience) if self._depth == 1 else None
        try:
            yield
        finally:
            self._depth -= 1
            if slot is not None:
                slot.close()

    def _slot(self, patience: float) -> TextIO | None:
        deadline, pause = time.monotonic() + patience, 0.01
        while True:
            for number in range(SLOTS):
                # Each process begins elsewhere, so that they do not all queue for the first.
                file = self._locked(f"slot{(os.getpid() + number) % SLOTS}")
                if file is not None:
                    return file
            if self._folder is None or time.monotonic() >= deadline:
                return None
            time.sleep(pause)
            pause = min(pause * 1.5, 0.1)

    @property
    def home(self) -> str | None:
        """A short name of the place where this is shared, the same for all its processes until the next boot."""
        if self._folder is None:
            return None
        with contextlib.suppress(OSError):
            found = os.stat(self._folder)
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
                key = (socket.gethostname(), file.read(), found.st_dev, found.st_ino)
            return hashlib.sha256(repr(key).encode()).hexdigest()[:12]
        return None

    @contextlib.contextmanager
    def alone(self, what: str, patience: float = 5.0) -> Iterator[bool]:
        """Only one process at a time does `what`; after `patience` seconds more than one may, which get False."""
        deadline, pause = time.monotonic() + patience, 0.005
        file = self._locked(what)
        while file is None and self._folder is not None and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(pause * 1.1, 0.2)
            file = self._locked(what)
        try:
            yield file is not None
        finally:
            if file is not None:
                file.close()

    @contextlib.contextmanager
    def polling(self) -> Iterator[bool]:
        """True for the one process that may ask the node now; the others wait for what it finds."""
        file = self._locked("poll")
        try:
            yield file is not None or self._folder is None
        finally:
            if file is not None:
                file.close()

    def polled(self) -> dict[str, Any]:
        """The last poll: `began` (monotonic), `since`, and `ended`, the exit status of each ended task by UPID."""
        try:
            with open(self._path("tasks"), encoding="utf-8") as file:
                found = json.load(file)
        except (OSError, ValueError, TypeError):
            found = {}
        # A clock that is ahead of ours is one of before a reboot.
        usable = isinstance(found, dict) and 0 <= found.get("began", -1) <= time.monotonic()
        return found if usable else {"began": 0.0, "since": None, "ended": {}}

    def keep(self, found: dict[str, Any]) -> None:
        if self._folder is None:
            return
        path = self._path("tasks")
        with contextlib.suppress(OSError):
            with open(f"{path}.{os.getpid()}", "w", encoding="utf-8", opener=_opened) as file:
                json.dump(found, file)
            os.replace(file.name, path)

    def _path(self, what: str) -> str:
        return os.path.join(self._folder or "/nonexistent", f"{self._name}-{what}")

    def _locked(self, what: str) -> TextIO | None:
        """The open and locked file, None when another process holds it (or it cannot be locked)."""
        if self._folder is None:
            return None
        try:
            file = open(self._path(what), "w", encoding="utf-8", opener=_opened)  # noqa: SIM115
        except OSError:
            self._folder = None  # full, or not as it was: without it, rather than to wait for what never comes
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                self._folder = None  # a file system without locks
            return None
        return file


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
