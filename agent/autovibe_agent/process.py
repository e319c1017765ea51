"""The coding CLI's process: its own group, its own user, bounded lines, an end that is sure to come."""

import contextlib
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
# One that forks while it is looked for is found in the next round.
LEFTOVER_ROUNDS = 20


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

    def start(
        self,
        stdin: bytes,
        on_output: Callable[[str], None],
        on_error: Callable[[str], None],
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """Begins to feed and to read; the callbacks come from threads of their own."""
        self._on_end = on_end
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
        self._on_end()


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


def end_leftovers(mark: str) -> None:
    """Kills what an agent that died has left behind: every process with `mark` (NAME=value) in its environment.

    The mark finds what has left the CLI's process group too, and says for certain whose it is.
    """
    wanted = mark.encode()
    for _ in range(LEFTOVER_ROUNDS):
        found = [pid for pid in _processes() if wanted in _environment_of(pid)]
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return
        time.sleep(0.02)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid()]


def _environment_of(pid: int) -> list[bytes]:
    """A process's environment as it began; empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
