"""Which processes belong to a run, and how to end them all.

Ansible's workers are sessions of their own and outlive a killed runner, so neither the process group
nor the parent says who belongs to a run. What they do keep is the environment they were started
with: every process of a run carries `AUTOVIBE_RUN=<run uuid>` in `/proc/<pid>/environ`.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

MARKER = "AUTOVIBE_RUN"
_PROC = Path("/proc")


def of_run(run_uuid: UUID | str) -> list[int]:
    """Pids of the living processes of this run. A zombie runs nothing and is not among them."""
    mark = f"{MARKER}={UUID(str(run_uuid))}".encode()
    return [pid for pid in _pids() if _carries(pid, mark)]


def end_run(run_uuid: UUID | str, *, grace: float = 3.0, timeout: float = 30.0) -> bool:
    """End every process of the run: SIGTERM, after `grace` seconds SIGKILL. True when all are gone.

    Only processes with exactly this run's mark are signalled, through a pidfd opened before the mark
    was read, so that a pid that is used again is never hit.
    """
    mark = f"{MARKER}={UUID(str(run_uuid))}".encode()
    started = time.monotonic()
    quiet = 0
    pause = 0.01
    while time.monotonic() - started < timeout:
        number = signal.SIGTERM if time.monotonic() - started < grace else signal.SIGKILL
        alive = [pid for pid in _pids() if _signal(pid, mark, number)]
        # A process may fork behind the scan's back: only a second empty scan is the truth.
        quiet = 0 if alive else quiet + 1
        if quiet == 2:
            return True
        time.sleep(pause)
        pause = min(pause * 1.5, 0.2)
    return False


def marked_runs() -> set[str]:
    """The uuids of all runs that have a living process on this host."""
    mark = f"{MARKER}=".encode()
    found = set()
    for pid in _pids():
        found.update(entry[len(mark) :].decode() for entry in _environment(pid) if entry.startswith(mark))
    return found


def is_alive(pid: int, started_at: float | None = None) -> bool:
    """Whether this process lives; with `started_at` (`start_time`), whether it is still the same one."""
    start = start_time(pid)
    return start is not None and (started_at is None or abs(start - started_at) < 0.02)


def start_time(pid: int) -> float | None:
    """When the process started, in seconds since boot; None when it is gone or a zombie."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    if fields[0] in "ZX":
        return None
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def host_id() -> str:
    """This boot of this host: pids of another one mean nothing here."""
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return f"{os.uname().nodename}/{boot}"


def _pids() -> Iterator[int]:
    own = os.getpid()
    for entry in os.scandir(_PROC):
        if entry.name.isdigit() and int(entry.name) != own:
            yield int(entry.name)


def _environment(pid: int) -> list[bytes]:
    try:
        return (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        # Gone in between, or another user's, which a run of ours never is.
        return []


def _carries(pid: int, mark: bytes) -> bool:
    return mark in _environment(pid)


def _signal(pid: int, mark: bytes, number: signal.Signals) -> bool:
    if not _carries(pid, mark):
        return False
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            if _carries(pid, mark):
                signal.pidfd_send_signal(handle, number)
                return True
        finally:
            os.close(handle)
    return False
