"""The gateway's paths: `/v1/messages`, `/v1/messages/count_tokens`, `/v1/models`, `HEAD /`.

They stand on the hub's port beside the agents' API. Who calls is a machine, by its token; errors have Anthropic's form.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import httpx
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from autovibe import db, tokens
from autovibe.errors import DatabaseError
from autovibe.gateway import requests, upstream
from autovibe.gateway.calls import Call
from autovibe.gateway.errors import GatewayError, bad_token, provider_failed
from autovibe.gateway.reserving import Caller
from autovibe.settings import Settings

log = logging.getLogger("autovibe.gateway")
T = TypeVar("T")

#: Database steps at a time: below the engine's pool (15), so that the agents' API is never kept waiting by model calls.
DATABASE_THREADS = 10
#: Larger bodies are checked in a thread, so that other calls' streams flow on.
INLINE_BYTES = 128 * 1024
STOP_SECONDS = 5.0


@dataclass
class Line:
    """The calls of a project that wait for money: whose turn it is to ask, and that a call of this process ended."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Gateway:
    """One process's gateway: its connections to the provider and the calls under way."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.client = upstream.client(settings)
        self._threads = CapacityLimiter(DATABASE_THREADS)
        self._calls: set[asyncio.Task[None]] = set()
        self._lines: defaultdict[UUID, Line] = defaultdict(Line)

    async def db(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """Run a function of `reserving` in a thread, with this installation's transactions."""
        transactions = partial(db.session_scope, self.settings)
        return await to_thread.run_sync(partial(function, transactions, *args, **options), limiter=self._threads)

    async def caller(self, request: Request) -> Caller:
        """The machine whose token the request shows; GatewayError (401) when there is none."""
        headers = request.headers
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        key = headers.get("x-api-key")
        if key and scheme.lower() == "bearer" and not hmac.compare_digest(key.encode(), bearer.strip().encode()):
            raise bad_token("Authorization and x-api-key name different tokens")
        return await self.db(self._authenticate, dict(headers))

    def _authenticate(self, transactions: Callable[..., Any], headers: dict[str, str]) -> Caller:
        session: Session
        with transactions() as session:
            try:
                machine = tokens.authenticate(session, headers, self.settings)
            except tokens.BadToken as error:
                raise bad_token(error.message) from None
            return Caller(machine.uuid, machine.project_uuid)

    def line(self, project_uuid: UUID) -> Line:
        return self._lines[project_uuid]

    def start(self, call: Call) -> None:
        """Let a call run, whatever becomes of the client."""
        task = asyncio.create_task(call.run())
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def close(self) -> None:
        """Wait a little for the calls under way, then end them; each settles before this returns."""
        if self._calls:
            _, pending = await asyncio.wait(self._calls, timeout=STOP_SECONDS)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        await self.client.aclose()


def gateway_of(app: FastAPI) -> Gateway:
    """The application's gateway, made at its first use; `app.state.settings` says for which installation."""
    if getattr(app.state, "gateway", None) is None:
        app.state.gateway = Gateway(app.state.settings)
    return app.state.gateway


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    if gateway := getattr(app.state, "gateway", None):
        app.state.gateway = None
        await gateway.close()


router = APIRouter(lifespan=lifespan, include_in_schema=False)


async def _answered(handler: Any) -> Response:
    """The handler's response, or its error in Anthropic's form."""
    try:
        return await handler
    except GatewayError as error:
        return error.response()
    except DatabaseError as error:
        log.error("%s", error)
        return provider_failed("The hub's database does not answer", 503).response()


@router.head("/")
def alive() -> Response:
    """Claude Code asks this at its start."""
    return Response()


@router.post("/v1/messages")
async def messages(request: Request) -> Response:
    return await _answered(_messages(request))


async def _messages(request: Request) -> Response:
    gateway = gateway_of(request.app)
    caller = await gateway.caller(request)
    checked = await _checked(request, requests.check_messages)
    call = Call(gateway, caller, checked, request.headers, _query(request))
    gateway.start(call)
    status, headers = await asyncio.shield(call.answer.head)
    return StreamingResponse(call.answer.body(), status, headers)


@router.post("/v1/messages/count_tokens")
async def count_tokens(request: Request) -> Response:
    return await _answered(_count_tokens(request))


async def _count_tokens(request: Request) -> Response:
    """Free at the provider, so nothing is reserved; the same fields are allowed."""
    gateway = gateway_of(request.app)
    await gateway.caller(request)
    checked = await _checked(request, requests.check_count_tokens)
    return await _relay(request, gateway, "POST", "/v1/messages/count_tokens", checked.body)


@router.get("/v1/models")
async def models(request: Request) -> Response:
    return await _answered(_models(request))


async def _models(request: Request) -> Response:
    gateway = gateway_of(request.app)
    await gateway.caller(request)
    return await _relay(request, gateway, "GET", "/v1/models", None)


async def _relay(request: Request, gateway: Gateway, method: str, path: str, body: bytes | None) -> Response:
    """A free call to the provider, there and back."""
    to = upstream.provider(gateway.settings)
    headers = upstream.request_headers(request.headers, to)
    try:
        response = await gateway.client.request(
            method, f"{to.url}{path}{_query(request)}", content=body, headers=headers, timeout=30
        )
    except httpx.HTTPError as error:
        raise provider_failed(f"The AI provider ({to.name}) cannot be reached") from error
    if response.status_code in (401, 403):
        raise provider_failed(f"The AI provider ({to.name}) refused the hub's key", retry=False)
    return Response(response.content, response.status_code, upstream.response_headers(response))


async def _checked(request: Request, check: Callable[[bytes], requests.CheckedRequest]) -> requests.CheckedRequest:
    raw = await _body(request)
    encoding = request.headers.get("content-encoding", "")

    def work() -> requests.CheckedRequest:
        return check(requests.decompress(raw, encoding))

    return work() if len(raw) <= INLINE_BYTES and not encoding else await to_thread.run_sync(work)


async def _body(request: Request) -> bytes:
    """The body as it came, at most `MAX_BODY` of it."""
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > requests.MAX_BODY:
            raise requests.too_large()
        chunks.append(chunk)
    return b"".join(chunks)


def _query(request: Request) -> str:
    """`?beta=true` goes on to the provider; nothing else does."""
    return "?beta=true" if request.query_params.get("beta") == "true" else ""
