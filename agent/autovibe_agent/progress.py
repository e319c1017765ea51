"""Tells the hub what happens: messages in batches, cut to size, never in the way of the work."""

import threading
import time
from collections import deque
from datetime import datetime, timezone

from autovibe_agent.base import Message
from autovibe_agent.hub import Hub, HubRefused, HubUnreachable

#: Not datetime.UTC: Ubuntu 22.04, which machines are made of, has Python 3.10.
UTC = timezone.utc  # noqa: UP017
BATCH = 100
BATCH_CHARS = 200_000
TEXT_CHARS = 4000
QUEUED = 1000
TOTAL = 20_000
FLUSH_SECONDS = 1.0
#: Between two tries when the hub is away and this is to end.
RETRY_SECONDS = 0.2


class Progress:
    """A queue of messages and the thread that sends it. When it is full the oldest are dropped, and it is said so."""

    def __init__(self, hub: Hub, flush_seconds: float = FLUSH_SECONDS):
        self.latest: str | None = None
        self._hub = hub
        self._flush_seconds = flush_seconds
        self._queue: deque[dict] = deque()
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._deadline = 0.0
        self._taken = self._dropped = 0
        self._thread = threading.Thread(target=self._send_all, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, message: Message) -> None:
        text = message.text.strip().replace("\0", "\ufffd")
        if len(text) > TEXT_CHARS:
            text = f"{text[:TEXT_CHARS]} … ({len(text) - TEXT_CHARS} more characters)"
        with self._lock:
            self._taken += 1
            if self._taken == TOTAL:
                text = f"{TOTAL} messages: what follows is not kept"
            elif self._taken > TOTAL:
                return
            if len(self._queue) >= QUEUED:
                self._queue.popleft()
                self._dropped += 1
            self.latest = text[:200]
            self._queue.append({"at": datetime.now(UTC).isoformat(), "kind": message.kind, "text": text})

    def close(self, seconds: float) -> None:
        """Sends what is left, for at most that long; what cannot be sent by then is let go."""
        self._deadline = time.monotonic() + seconds
        self._end.set()
        self._thread.join(seconds)

    def _send_all(self) -> None:
        batch: list[dict] = []
        while True:
            ending = self._end.wait(self._flush_seconds)
            while batch := batch or self._take():
                try:
                    self._hub.call("POST", "/agent/v1/progress", {"messages": batch})
                except HubUnreachable:
                    break  # kept, and sent with the next flush
                except HubRefused:
                    pass  # not wanted; the next may be
                batch = []
            if ending:
                if not batch or time.monotonic() >= self._deadline:
                    return
                time.sleep(min(self._flush_seconds, RETRY_SECONDS))

    def _take(self) -> list[dict]:
        with self._lock:
            batch, chars = [], 0
            if self._dropped:
                note = f"{self._dropped} messages were dropped: the hub could not keep up"
                batch.append({"at": datetime.now(UTC).isoformat(), "kind": "system", "text": note})
                self._dropped = 0
            while self._queue and len(batch) < BATCH and chars < BATCH_CHARS:
                batch.append(self._queue.popleft())
                chars += len(batch[-1]["text"])
            return batch
