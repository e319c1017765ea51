"""One process of the coding CLI, from its start to its end, and the bounds that it is held to."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from autovibe_agent.base import FAILED, OUT_OF_BUDGET, STOPPED, Assignment, CodingAgent, Message, Outcome
from autovibe_agent.process import CliProcess

BUDGET, WALL, IDLE, OUTPUT = "budget", "wall_limit", "idle", "output_limit"
MAX_LOOKED_AT = 50_000


class Attempt:
    """Runs the CLI of `agent` once. `stop` may be called from any thread; the first reason counts."""

    def __init__(self, agent: CodingAgent, tell: Callable[[Message], None], worked_seconds: float):
        self.agent, self._tell = agent, tell
        self.reason: str | None = None
        self._worked_before, self._turns_before = worked_seconds, agent.turns
        self._began = self._progressed = time.monotonic()
        self._ended: float | None = None
        self._ends = self._began + max(1.0, agent.assignment.wall_seconds - worked_seconds)
        self._output_bytes = self._calls = 0
        self._wake = threading.Event()
        self._process = CliProcess(agent.argv(), agent.environment(), agent.paths.workspace, agent.user)

    @property
    def worked_seconds(self) -> float:
        """How long the CLI has run so far, in all attempts."""
        return round(self._worked_before + (self._ended or time.monotonic()) - self._began, 1)

    @property
    def has_new_turns(self) -> bool:
        """Whether the model has answered since this attempt began."""
        return self.agent.turns > self._turns_before

    def run(self) -> Outcome:
        """Stays with the CLI until it ends, is told to stop, or exceeds a bound. Leaves none of it running."""
        try:
            self._process.start(self.agent.stdin(), self._output, self._error, self._wake.set)
            while not self._process.ended.is_set() and self.reason is None:
                self._wake.wait(self._patience())
                self._wake.clear()
                if (exceeded := self._exceeded()) is not None:
                    self.stop(exceeded)
        finally:
            if not self._process.ended.is_set():
                self._process.stop()
            self._ended = time.monotonic()
        return self._outcome()

    def stop(self, reason: str) -> None:
        """Has it ended, unless it has ended by itself."""
        if self.reason is None and not self._process.ended.is_set():
            self.reason = reason
        self._wake.set()

    def note_calls(self, calls: int) -> None:
        """How many model calls the hub has counted: a new one is progress."""
        if calls != self._calls:
            self._calls, self._progressed = calls, time.monotonic()

    def _output(self, line: str) -> None:
        self._count(line)
        for message in self.agent.read_output(line):
            self._tell(message)

    def _error(self, line: str) -> None:
        self._count(line)
        for message in self.agent.read_error(line):
            self._tell(message)

    def _count(self, line: str) -> None:
        self._progressed = time.monotonic()
        self._output_bytes += len(line)
        if self._output_bytes > self.agent.assignment.output_bytes:
            self.stop(OUTPUT)

    def _patience(self) -> float:
        now = time.monotonic()
        return max(0.0, min(self._ends - now, self._progressed + self.agent.assignment.idle_seconds - now))

    def _exceeded(self) -> str | None:
        now, idle = time.monotonic(), self.agent.assignment.idle_seconds
        if now >= self._ends:
            return WALL
        if now - self._progressed < idle:
            return None
        if has_changed(self.agent.paths.workspace, time.time() - idle):
            self._progressed = now
            return None
        return IDLE

    def _outcome(self) -> Outcome:
        """What a stop means, else what the CLI's own ending means."""
        code = self._process.exit_code
        own = self.agent.outcome(code if code is not None else -9)
        return own if self.reason is None else stopped(self.reason, self.agent.assignment, code, own.details)


def stopped(reason: str, limits: Assignment, exit_code: int | None = None, details: dict | None = None) -> Outcome:
    """How work ended that was stopped for a reason."""
    outcome, summary = {
        BUDGET: (OUT_OF_BUDGET, "stopped: the budget is used up"),
        WALL: (FAILED, f"stopped at its limit of {limits.wall_seconds:g} seconds"),
        OUTPUT: (FAILED, f"stopped at its limit of {limits.output_bytes} bytes of output"),
        IDLE: (FAILED, f"stopped: no output, model call or changed file for {limits.idle_seconds:g} seconds"),
    }.get(reason, (STOPPED, f"stopped: {reason}"))
    return Outcome(outcome, summary, exit_code, details or {}, passing=reason == IDLE)


def has_changed(folder: Path, since: float) -> bool:
    """Whether a file or folder below has changed after `since` (seconds of the epoch); looks at so many at most."""
    seen = 0
    for _, _, names, descriptor in os.fwalk(folder, follow_symlinks=False):
        if os.fstat(descriptor).st_mtime > since:
            return True
        for name in names:
            seen += 1
            try:
                if os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mtime > since:
                    return True
            except OSError:  # gone while we looked
                continue
        if seen > MAX_LOOKED_AT:
            return False
    return False
