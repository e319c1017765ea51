"""The coding CLI's process: its own group, its own user, bounded lines, an end that is sure to come."""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from autovibe_agent.paths import User

LINE_LIMIT = 8 << 20
GRACE_SECONDS = 10.0
DRAIN_SECONDS = 5.0


class CliProcess:
    """Runs an argv as the user, feeds its input, hands on its lines; `ended` is set when it is over."""

    def __init__(self, argv: list[str], environment: dict[str, str], cwd: Path, user: User):
        as_user = {"user": user.uid, "group": user.gid, "extra_groups": []} if os.geteuid() == 0 else {}
        self._process = subprocess.Popen(
            argv,
            cwd=cwd,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            **as_user,
        )
        self.pid = self._process.pid
        self.exit_code: int | None = None
        self.ended = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, stdin: bytes, on_output: Callable[[str], None], on_error: Callable[[str], None]) -> None:
        """Begins to feed and to read; the callbacks come from threads of their own."""
        self._spawn(self._feed, stdin)
        readers = [self._spawn(_read_lines, self._process.stdout, on_output)]
        readers.append(self._spawn(_read_lines, self._process.stderr, on_error))
        self._spawn(self._wait, readers)

    def stop(self) -> None:
        """SIGTERM to the whole group, SIGKILL when that is not enough; returns when it is over."""
        signal_group(self.pid, signal.SIGTERM)
        if not self.ended.wait(GRACE_SECONDS):
            signal_group(self.pid, signal.SIGKILL)
            self.ended.wait(GRACE_SECONDS)

    def _spawn(self, target, *args) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, daemon=True)
        thread.start()
        return thread

    def _feed(self, content: bytes) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.write(content)
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _wait(self, readers: list[threading.Thread]) -> None:
        code = self._process.wait()
        # What it left running in its group would hold its output open for ever.
        signal_group(self.pid, signal.SIGKILL)
        end = time.monotonic() + DRAIN_SECONDS
        for reader in readers:
            reader.join(max(0.0, end - time.monotonic()))
        self.exit_code = code
        self.ended.set()


def _read_lines(stream, handle: Callable[[str], None]) -> None:
    """Hands on line after line; what exceeds the limit of one line is dropped."""
    while line := stream.readline(LINE_LIMIT):
        rest = line
        while not rest.endswith(b"\n") and rest:
            rest = stream.readline(LINE_LIMIT)
        handle(line.decode("utf-8", "replace"))


def signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


class WorkState:
    """What this boot knows of this identity's work: `started` (with the CLI's process) or `finished`.

    It is why a prompt is never given twice: an agent that finds its work started does not start it again.
    """

    def __init__(self, path: Path, machine: str, generation: int):
        self._path = path
        self._owner = {"machine": machine, "generation": generation}

    def read(self) -> dict | None:
        """The kept state, or None when nothing had begun for this identity."""
        try:
            value = json.loads(self._path.read_text(encoding="utf-8"))
            return value if {key: value[key] for key in self._owner} == self._owner else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, phase: str, **more) -> None:
        temporary = self._path.with_name(f".{self._path.name}.new")
        temporary.write_text(json.dumps({**self._owner, "phase": phase, **more}), encoding="utf-8")
        os.replace(temporary, self._path)


def start_time(pid: int) -> str | None:
    """When a process began (kernel ticks): with the pid it names one process for certain."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def end_leftover(state: dict) -> None:
    """Kills the CLI that an agent which died has left behind."""
    pid = state.get("pid")
    if isinstance(pid, int) and pid > 1 and state.get("pid_start") and start_time(pid) == state["pid_start"]:
        signal_group(pid, signal.SIGKILL)
