"""How much a guest may ask of the hub: size of a request, requests in a second."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autovibe.api.errors import error_body
from autovibe.errors import AutovibeError

BODY_BYTES = 8 << 20
ENROL_BODY_BYTES = 16 << 10
#: What is read and thrown away of a body that is too large: most clients hear an answer only after they have sent all.
DRAINED_BYTES = 64 << 20
REQUESTS_PER_SECOND = 20.0
BURST = 100.0
MACHINES_REMEMBERED = 10_000


class TooManyRequests(AutovibeError):
    """This machine asks too often; wait a second."""

    code = "too_many_requests"
    http_status = 429


class BodyLimit:
    """Reads the body of what comes under /agent/ up to a limit, before anybody else does: 413 beyond it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/agent/"):
            await self.app(scope, receive, send)
            return
        limit = ENROL_BODY_BYTES if scope["path"].endswith("/enrol") else BODY_BYTES
        body = await self._read(receive, limit)
        if body is None:
            content = error_body(scope["path"], "too_large", f"The request is larger than {limit} bytes")
            await JSONResponse(content, 413, {"Connection": "close"})(scope, receive, send)
            return
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    @staticmethod
    async def _read(receive: Receive, limit: int) -> bytes | None:
        """The body, or None when it is larger."""
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b"".join(chunks)
            chunk = message.get("body", b"")
            size += len(chunk)
            if size <= limit:
                chunks.append(chunk)
            else:
                chunks.clear()
            if size > limit + DRAINED_BYTES:
                return None
            if not message.get("more_body"):
                return b"".join(chunks) if size <= limit else None


class RateLimit:
    """A token bucket for each key, in this process; the longest unused are forgotten."""

    def __init__(self, per_second: float = REQUESTS_PER_SECOND, burst: float = BURST) -> None:
        self._per_second, self._burst = per_second, burst
        self._buckets: OrderedDict[Any, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: Any) -> None:
        """One request of `key`; TooManyRequests when its bucket is empty."""
        now = time.monotonic()
        with self._lock:
            left, at = self._buckets.pop(key, (self._burst, now))
            left = min(self._burst, left + (now - at) * self._per_second)
            self._buckets[key] = (max(0.0, left - 1), now)
            if len(self._buckets) > MACHINES_REMEMBERED:
                self._buckets.popitem(last=False)
        if left < 1:
            raise TooManyRequests()
