"""The application behind a call's path: from the client's request to the client's answer, as bare ASGI.

A model call is the hub's most frequent request, and each layer between costs every one of them.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from autovibe.gateway import requests
from autovibe.gateway.admission import Ticket
from autovibe.gateway.answers import BrokenAnswer
from autovibe.gateway.calls import Call
from autovibe.gateway.errors import GatewayError
from autovibe.gateway.protocols import Protocol

#: Larger bodies are checked in a thread, so that other calls' streams flow on.
INLINE_BYTES = 128 * 1024
BETA = "?beta=true"


class CallEndpoint:
    """`POST` of one of the protocols."""

    def __init__(self, protocol: Protocol, gateway_of: Any) -> None:
        self._protocol, self._gateway_of = protocol, gateway_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            call = await self._begin(scope, receive)
        except GatewayError as error:
            await error.response(self._protocol.error_form)(scope, receive, send)
            return
        watch = asyncio.create_task(_abandoned(receive, call))
        try:
            try:
                status, headers = await asyncio.shield(call.answer.head)
            except GatewayError as error:
                await error.response(self._protocol.error_form)(scope, receive, send)
                return
            await _send(call, status, headers, send)
        finally:
            watch.cancel()
            call.abandon()

    async def _begin(self, scope: Scope, receive: Receive) -> Call:
        gateway = self._gateway_of(scope["app"])
        headers = Headers(scope=scope)
        claims = gateway.claims(headers)
        ticket = gateway.admission.enter(claims.machine_uuid)
        searches = gateway.settings.web_searches_per_call
        try:
            checked = await checked_body(headers, receive, partial(self._protocol.check, searches=searches), ticket)
            call = Call(gateway, self._protocol, claims, checked, headers, query_of(scope))
        except BaseException:
            ticket.leave()
            raise
        gateway.start(call, ticket)
        return call


async def _send(call: Call, status: int, headers: dict[str, str], send: Send) -> None:
    """Send the answer; one that broke off is left without its end, so that the connection breaks off too."""
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    more = "content-length" not in headers  # else the body is one chunk
    with suppress(BrokenAnswer):
        async for chunk in call.answer.body():
            await send({"type": "http.response.body", "body": chunk, "more_body": more})
        if more:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _abandoned(receive: Receive, call: Call) -> None:
    """Tell the call when its client goes."""
    with suppress(Exception):
        while (await receive())["type"] != "http.disconnect":
            pass
        call.abandon()


async def checked_body(headers: Headers, receive: Receive, check: Any, ticket: Ticket) -> requests.CheckedRequest:
    """The request's body, unpacked and checked; what it takes is counted."""
    raw = await _body(receive, ticket)
    if encoding := headers.get("content-encoding", ""):
        raw = await asyncio.to_thread(requests.decompress, raw, encoding)
        ticket.take(len(raw))
    return check(raw) if len(raw) <= INLINE_BYTES else await asyncio.to_thread(check, raw)


async def _body(receive: Receive, ticket: Ticket) -> bytes:
    """The body as it came, at most `MAX_BODY` of it."""
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise requests.bad_request("the client went away")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > requests.MAX_BODY:
            raise requests.too_large()
        ticket.take(len(chunk))
        chunks.append(chunk)
        if not message.get("more_body"):
            return b"".join(chunks)


def query_of(scope: Scope) -> str:
    """`?beta=true` goes on to the provider; nothing else does."""
    return BETA if b"beta=true" in scope["query_string"].split(b"&") else ""
