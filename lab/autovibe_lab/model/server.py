"""The demo model's HTTP server: the Messages and the chat completions API, its own bill, and faults for tests.

All calls need the key (`x-api-key` or `Authorization: Bearer`). Beside the API:

- `GET /bill` → {"calls": n, "lines": [{"id", "model", "usage", "at"}]}: every call that a provider would have billed,
  of either API, with the usage in the form of the Messages API;
- `POST /lab/faults` {"kind", "count", …}: what happens to the next calls (see `faults.Fault`); `GET` says how
  many calls are still to have one, `DELETE` forgets them;
- `GET /lab/calls` → {"calls": [{"path", "status"}]}.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import uuid
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from autovibe_lab.model import chat, conversation, protocol, report, script
from autovibe_lab.model.faults import Fault, parse_fault

MAX_BODY = 40 * 1024 * 1024


@dataclass
class Model:
    """The server's state: its key, its bill, the faults to come."""

    key: str
    bill_file: Path | None = None
    pace: float = 0.0
    bill: list[dict[str, Any]] = field(default_factory=list)
    calls: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=10_000))
    faults: list[Fault] = field(default_factory=list)

    def charge(self, whole: dict[str, Any], used: dict[str, Any]) -> None:
        line = {"id": whole["id"], "model": whole["model"], "usage": used, "at": datetime.now(UTC).isoformat()}
        self.bill.append(line)
        if self.bill_file:
            with self.bill_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def next_fault(self) -> Fault | None:
        while self.faults:
            fault = self.faults[0]
            if fault.count > 0:
                fault.count -= 1
                return fault
            self.faults.pop(0)
        return None


MODEL: web.AppKey[Model] = web.AppKey("model", Model)


def create_app(key: str, *, bill_file: Path | None = None, pace: float = 0.0) -> web.Application:
    """The server. `pace`: seconds between the events of a stream, for a livelier demo."""
    app = web.Application(client_max_size=MAX_BODY, middlewares=[_guard])
    app[MODEL] = Model(key, bill_file, pace)
    app.router.add_get("/", _root)
    app.router.add_post("/v1/messages", _messages)
    app.router.add_post("/v1/messages/count_tokens", _count_tokens)
    app.router.add_post("/v1/chat/completions", _chat_completions)
    app.router.add_get("/v1/models", _models)
    app.router.add_get("/v1/organizations/usage_report/messages", _usage_report)
    app.router.add_get("/bill", _bill)
    app.router.add_post("/lab/faults", _add_fault)
    app.router.add_get("/lab/faults", _waiting_faults)
    app.router.add_delete("/lab/faults", _drop_faults)
    app.router.add_get("/lab/calls", _calls)
    return app


@web.middleware
async def _guard(request: web.Request, handler: Any) -> web.StreamResponse:
    """Checks the key, words errors as the API does, and notes the call."""
    model = request.app[MODEL]
    try:
        if request.path != "/" and not _authentic(request, model.key):
            raise protocol.BadRequest("invalid x-api-key (demo model)", 401, "authentication_error")
        response = await handler(request)
    except protocol.BadRequest as error:
        response = _error(error.status, error.kind, str(error))
    except web.HTTPRequestEntityTooLarge:
        response = _error(413, "request_too_large", "Request exceeds the maximum size")
    except (web.HTTPNotFound, web.HTTPMethodNotAllowed):
        response = _error(404, "not_found_error", f"the demo model has no {request.method} {request.path}")
    if request.path.startswith("/v1/"):
        model.calls.append({"path": request.path, "status": response.status})
    return response


def _authentic(request: web.Request, key: str) -> bool:
    given = [request.headers["x-api-key"]] if "x-api-key" in request.headers else []
    scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        given.append(bearer.strip())
    return bool(given) and all(hmac.compare_digest(one.encode(), key.encode()) for one in given)


def _headers() -> dict[str, str]:
    return {
        "request-id": f"req_demo_{uuid.uuid4().hex[:20]}",
        "anthropic-ratelimit-requests-limit": "4000",
        "anthropic-ratelimit-requests-remaining": "3999",
        "x-autovibe-provider": "demo model",
    }


def _error(status: int, kind: str, text: str, headers: dict[str, str] | None = None) -> web.Response:
    body = {"type": "error", "error": {"type": kind, "message": text}}
    return web.json_response(body, status=status, headers={**_headers(), **(headers or {})})


async def _body(request: web.Request, *, counting: bool = False) -> dict[str, Any]:
    try:
        return protocol.check(json.loads(await request.read()), counting=counting)
    except ValueError:
        raise protocol.BadRequest("the body is not valid JSON") from None


async def _root(request: web.Request) -> web.Response:
    return web.Response(text="autovibe's demo model\n")


async def _messages(request: web.Request) -> web.StreamResponse:
    asked = await _body(request)
    fault = await _fault(request)
    if isinstance(fault, web.Response):
        return fault
    reply = protocol.fit(script.answer(conversation.read(asked)), asked["max_tokens"])
    used = {**protocol.usage(asked, reply), **(fault.usage if fault else {})}
    whole = protocol.message(asked, reply, used)
    request.app[MODEL].charge(whole, used)
    return await _answer(request, fault, whole, protocol.events(whole) if asked.get("stream") else None)


async def _chat_completions(request: web.Request) -> web.StreamResponse:
    try:
        given = chat.check(json.loads(await request.read()))
    except ValueError:
        raise protocol.BadRequest("the body is not valid JSON") from None
    fault = await _fault(request)
    if isinstance(fault, web.Response):
        return fault
    asked = chat.as_messages(given)
    reply = protocol.fit(script.answer(conversation.read(asked)), asked["max_tokens"])
    used = {**chat.with_cache(asked, protocol.usage(asked, reply)), **(fault.usage if fault else {})}
    whole = chat.completion(given, reply, used)
    request.app[MODEL].charge(whole, used)
    include_usage = bool((given.get("stream_options") or {}).get("include_usage"))
    return await _answer(request, fault, whole, chat.chunks(whole, include_usage) if given.get("stream") else None)


async def _fault(request: web.Request) -> Fault | web.Response | None:
    """What a test wants of this call: its answer when there is to be no other, a fault that shapes it, or nothing."""
    fault = request.app[MODEL].next_fault()
    if fault and fault.kind == "status":
        return _error(fault.status, fault.error_type, "injected by the lab (demo model)", fault.headers)
    if fault and fault.kind == "drop":
        request.transport.close()
        raise asyncio.CancelledError
    if fault and fault.kind == "delay":
        await asyncio.sleep(fault.seconds)
    return fault


async def _answer(
    request: web.Request, fault: Fault | None, whole: dict[str, Any], events: Iterable[bytes] | None
) -> web.StreamResponse:
    """The whole answer at once, or as a stream of events when there are any."""
    if events is not None:
        return await _stream(request, events, fault, request.app[MODEL].pace)
    if fault and fault.kind == "cut":
        request.transport.close()
        raise asyncio.CancelledError
    return web.json_response(whole, headers=_headers())


async def _stream(
    request: web.Request, events: Iterable[bytes], fault: Fault | None, pace: float
) -> web.StreamResponse:
    cut = fault.after_events if fault and fault.kind == "cut" else None
    pace = fault.seconds if fault and fault.kind == "slow" else pace
    response = web.StreamResponse(headers={**_headers(), "Content-Type": "text/event-stream; charset=utf-8"})
    response.headers["Cache-Control"] = "no-cache"
    await response.prepare(request)
    try:
        for number, event in enumerate(events):
            if number == cut:
                request.transport.close()
                return response
            await response.write(event)
            if pace:
                await asyncio.sleep(pace)
        await response.write_eof()
    except ConnectionError:
        pass  # The client has gone; the call is billed all the same.
    return response


async def _count_tokens(request: web.Request) -> web.Response:
    asked = await _body(request, counting=True)
    return web.json_response({"input_tokens": protocol.input_tokens(asked)}, headers=_headers())


async def _models(request: web.Request) -> web.Response:
    """One page that both APIs' clients can read."""
    messages_form = {"type": "model", "created_at": "2026-01-01T00:00:00Z"}
    chat_form = {"object": "model", "created": 1_767_225_600, "owned_by": "autovibe lab"}
    data = [
        {"id": name, "display_name": f"{name} (demo model)", **messages_form, **chat_form} for name in protocol.MODELS
    ]
    page = {"data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"], "object": "list"}
    return web.json_response(page, headers=_headers())


async def _bill(request: web.Request) -> web.Response:
    lines = request.app[MODEL].bill
    return web.json_response({"calls": len(lines), "lines": lines})


async def _usage_report(request: web.Request) -> web.Response:
    return web.json_response(report.usage_report(request.app[MODEL].bill, request.query), headers=_headers())


async def _add_fault(request: web.Request) -> web.Response:
    try:
        fault = parse_fault(await request.json())
    except (ValueError, TypeError) as error:
        raise protocol.BadRequest(f"no such fault: {error}") from None
    request.app[MODEL].faults.append(fault)
    return await _waiting_faults(request)


async def _waiting_faults(request: web.Request) -> web.Response:
    return web.json_response({"waiting": sum(fault.count for fault in request.app[MODEL].faults)})


async def _drop_faults(request: web.Request) -> web.Response:
    request.app[MODEL].faults.clear()
    return await _waiting_faults(request)


async def _calls(request: web.Request) -> web.Response:
    return web.json_response({"calls": list(request.app[MODEL].calls)})
