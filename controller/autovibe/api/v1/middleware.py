"""What every request of the people's API goes through: a request id, its time, the size of its body."""

from __future__ import annotations

import re
import time
from uuid import uuid4

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autovibe.api.limits import BodyLimit
from autovibe.api.v1 import metrics, paths

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{8,64}")
#: A machine's files may be 8 MiB; Base64 makes them 11.
BODY_BYTES = 12 << 20
#: Without a key nobody sends more than a login.
STRANGER_BODY_BYTES = 16 << 10


class Requests:
    """Gives each request an id (its own, when it has a good one), bounds its body, and measures it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        paths.keep_slashes(scope)
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if _REQUEST_ID.fullmatch(given) else uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        began, status = time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        try:
            await self._bounded(scope, receive, answer)
        finally:
            metrics.observe(scope, status, time.perf_counter() - began)

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The request, whose body is read when it is asked for: who shows no good key is answered before."""
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        is_read = False

        async def bounded() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            limit = BODY_BYTES if "caller" in scope["state"] else STRANGER_BODY_BYTES
            body = await BodyLimit.read(receive, limit)
            if body is None:
                raise HTTPException(413, f"The request is larger than {limit} bytes")
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, bounded, send)


class Local:
    """The same application for the hub's own socket: who reaches that is its owner."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "autovibe.local": True, "client": None}
        await self.app(scope, receive, send)
