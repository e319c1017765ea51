"""How much a guest may ask of the hub: size of a request, requests in a second."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from typing import Any
from uuid import UUID

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autovibe import tokens
from autovibe.api.errors import error_body
from autovibe.errors import AutovibeError
from autovibe.settings import Settings

BODY_BYTES = 8 << 20
ENROL_BODY_BYTES = 16 << 10
BODIES_AT_ONCE = 16
#: From one address. The lab's guests share one.
STRANGERS_PER_SECOND, STRANGERS_BURST = 50.0, 500.0
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
    """Reads the body of what is no model call up to a limit, before anybody else does: 413 beyond it.

    Who shows no token that the hub has signed sends no more than an enrolment, and not too often from one address; a
    machine, a few bodies at a time. The gateway has limits of its own.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings
        self._under_way: Counter[UUID] = Counter()
        self._strangers = RateLimit(STRANGERS_PER_SECOND, STRANGERS_BURST)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        machine = self._machine(scope)
        if machine is None:
            try:
                self._strangers.take((scope.get("client") or ("",))[0])
            except TooManyRequests:
                await _too_many(scope, receive, send)
                return
            await self._bounded(scope, receive, send, ENROL_BODY_BYTES)
            return
        if self._under_way[machine] >= BODIES_AT_ONCE:
            await _too_many(scope, receive, send)
            return
        self._under_way[machine] += 1
        try:
            await self._bounded(scope, receive, send, BODY_BYTES)
        finally:
            self._under_way[machine] -= 1
            if not self._under_way[machine]:
                del self._under_way[machine]

    def _machine(self, scope: Scope) -> UUID | None:
        try:
            return tokens.claims_of(tokens.shown(Headers(scope=scope)), self.settings).machine_uuid
        except tokens.BadToken:
            return None

    async def _bounded(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        body = await self.read(receive, limit)
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
    async def read(receive: Receive, limit: int) -> bytes | None:
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


async def _too_many(scope: Scope, receive: Receive, send: Send) -> None:
    content = error_body(scope["path"], TooManyRequests.code, str(TooManyRequests()))
    await JSONResponse(content, 429, {"Connection": "close"})(scope, receive, send)


class RateLimit:
    """A token bucket for each key, in this process; the longest unused are forgotten."""

    def __init__(self, per_second: float = REQUESTS_PER_SECOND, burst: float = BURST) -> None:
        self._per_second, self._burst = per_second, burst
        self._buckets: OrderedDict[Any, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: Any, amount: float = 1) -> None:
        """One request of `key`, or `amount` of something else; TooManyRequests when there is less in its bucket."""
        now = time.monotonic()
        with self._lock:
            left, at = self._buckets.pop(key, (self._burst, now))
            left = min(self._burst, left + (now - at) * self._per_second)
            self._buckets[key] = (max(0.0, left - amount), now)
            if len(self._buckets) > MACHINES_REMEMBERED:
                self._buckets.popitem(last=False)
        if left < amount:
            raise TooManyRequests()
