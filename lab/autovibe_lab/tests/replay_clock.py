"""A clock for the replay: time passes only while the lab works, and then at once.

How long a call or a task takes is then what the lab's latency says, and never how busy the machine is on which the
replay runs: the same calls meet the same locks each time.
"""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

#: How long an event loop that may not go on looks at its sockets before it asks again, in real seconds.
LOOK = 0.002
#: A timer that is further away than this (seconds of this clock) is none of the lab's work: a connection's, say.
FAR = 300


class ReplayLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer when all that it could do is to wait for it.

    It does so while every call that was sent is being executed, or until a condition holds that the replay waits for.
    """

    def __init__(self) -> None:
        self._now = 0.0
        #: All calls that the lab has had so far: one that it is executing has no `status` yet.
        self.calls: deque[dict] = deque()
        self._group = self._sent = 0
        self._counting = threading.Lock()
        #: While it is set, time stands still whatever is under way.
        self.stands = False
        self._condition: Callable[[], bool] | None = None
        self._end = 0.0
        self._then: Callable[[], None] | None = None
        self._met = threading.Event()
        self._elsewhere = 0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self._now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        """What another thread does takes no time."""
        self._elsewhere += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(lambda _: setattr(self, "_elsewhere", self._elsewhere - 1))
        return future

    def begin(self, calls: int) -> None:
        """So many calls are about to be sent; none before them is still under way."""
        self._group = self._sent = calls

    def answered(self) -> None:
        """One of them is answered."""
        with self._counting:
            self._sent -= 1

    def arrived(self) -> int:
        """How many of them are answered or being executed."""
        return self._group - self._sent + self._executing()

    def all_answered(self) -> bool:
        return self._executing() == 0

    def _executing(self) -> int:
        return sum(call["status"] is None for call in islice(reversed(self.calls), self._group))

    def until(self, condition: Callable[[], bool], seconds: float, then: Callable[[], None] | None = None) -> None:
        """Let time pass until the condition holds, for so many seconds of this clock at most. From another thread.

        `then` is done by the loop at that very moment.
        """
        self._met.clear()
        self._end, self._then = self._now + seconds, then
        self._condition = condition
        self.stands = False
        self.call_soon_threadsafe(lambda: None)
        self._met.wait()

    def run_on(self) -> None:
        """From now on time passes as it likes."""
        self._end = float("inf")
        self._condition = lambda: False
        self.call_soon_threadsafe(lambda: None)

    def wait(self, timeout: float | None, look: Callable[[float | None], list]) -> list:
        """In place of the selector's own wait for a timer."""
        if self._condition is not None and (self._now >= self._end or self._condition()):
            self._condition = None
            if self._then is not None:
                self._then()
            self._met.set()
            return []
        if self._condition is not None:
            timeout = min(self._end - self._now, 1.0 if timeout is None else timeout)
        elif not 0 < self._sent == self._executing() or (timeout or 0) > FAR:
            timeout = None
        if timeout is None or self.stands or self._elsewhere:
            return look(LOOK)
        events = look(0)
        if not events:
            self._now += timeout
        return events


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: ReplayLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        return self._loop.wait(timeout, super().select)
