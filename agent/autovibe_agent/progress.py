"""Tells the hub what happens: messages in batches, cut to size, never in the way of the work."""

import logging
import threading
import time
from datetime import datetime, timezone

from autovibe_agent.base import Message
from autovibe_agent.hub import BACKOFF_SECONDS, Hub, HubRefused, HubUnreachable
from autovibe_agent.spool import Spool

#: Not datetime.UTC: Ubuntu 22.04, which machines are made of, has Python 3.10.
UTC = timezone.utc  # noqa: UP017
TEXT_CHARS = 4000
TOTAL = 20_000
FLUSH_SECONDS = 1.0

log = logging.getLogger(__name__)


class Progress:
    """Puts messages into the spool, and has a thread that sends what is in it, also what an earlier agent has left."""

    def __init__(self, hub: Hub, spool: Spool, flush_seconds: float = FLUSH_SECONDS):
        self.latest: str | None = None
        self._hub, self._spool = hub, spool
        self._flush_seconds = flush_seconds
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._deadline: float | None = None
        self._taken = 0
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
            self.latest = text[:200]
        try:
            self._spool.add({"at": datetime.now(UTC).isoformat(), "kind": message.kind, "text": text})
        except OSError as error:  # a full disk is no reason to stop
            log.warning("a message is lost: %s", error)

    def close(self, seconds: float | None) -> None:
        """Sends what is left, for at most that long (None: until the hub has it); the rest stays in the spool."""
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _send_all(self) -> None:
        delay = BACKOFF_SECONDS[0]
        while True:
            ending = self._end.wait(self._flush_seconds)
            try:
                heard = self._send_spool()
            except HubRefused as error:
                log.warning("messages are kept: %s", error)
                return
            if not ending:
                continue
            if heard or (self._deadline is not None and time.monotonic() >= self._deadline):
                return
            time.sleep(min(delay, self._flush_seconds))
            delay = min(delay * 2, BACKOFF_SECONDS[1])

    def _send_spool(self) -> bool:
        """Whether the hub has all; HubRefused when it hears nothing more from this identity."""
        try:
            while (batch := self._spool.take()) is not None:
                try:
                    self._hub.call("POST", "/agent/v1/progress", {"spool": batch.name, "messages": batch.messages})
                except HubRefused as error:
                    if error.identity_is_over:
                        raise
                    log.warning("messages were refused: %s", error)  # not wanted; the next may be
                self._spool.done(batch)
        except HubUnreachable:
            return False
        except OSError as error:
            log.warning("the spool cannot be read: %s", error)
        return True
