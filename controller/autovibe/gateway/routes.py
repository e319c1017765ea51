"""The gateway's paths: `/v1/messages`, `/v1/messages/count_tokens`, `/v1/chat/completions`, `/v1/models`, `HEAD /`.

They stand on the hub's port beside the agents' API. Who calls is a machine, by its token; errors have the form of the
API that was called.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.routing import Route

from autovibe import budgets, db, prices, tokens
from autovibe.errors import DatabaseError
from autovibe.gateway import protocols, requests, upstream
from autovibe.gateway.admission import Admission, Ticket
from autovibe.gateway.audit import Audit
from autovibe.gateway.calls import Call, refused
from autovibe.gateway.catalogue import Catalogue
from autovibe.gateway.database import UNREACHABLE, Books, Outcome
from autovibe.gateway.endpoint import CallEndpoint, checked_body, query_of
from autovibe.gateway.errors import (
    ErrorForm,
    GatewayError,
    bad_token,
    chat_form,
    messages_form,
    provider_failed,
    unknown_model,
)
from autovibe.gateway.reserving import Tariffs
from autovibe.settings import Settings

log = logging.getLogger("autovibe.gateway")
T = TypeVar("T")

#: Sessions at a time: below the engine's pool (15), so that the agents' API is never kept waiting by model calls.
DATABASE_THREADS = 10
EXTENSIONS = 5  # in the time that a reservation is held
TELL_SECONDS = 5.0
GIVE_BACK_TRIES = 6
STOP_SECONDS = 5.0


@dataclass
class Line:
    """The calls of a project that wait for money: whose turn it is to ask, and that a call of this process ended."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Gateway:
    """One process's gateway: its connections to the provider and to the database, and the calls under way."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.client = upstream.client(settings)
        self.providers = upstream.Providers(settings)
        self.books = Books(settings)
        self.catalogue = Catalogue(self)
        #: reservation -> asks what is known of its call's cost
        self.under_way: dict[UUID, Callable[[], list[Any] | None]] = {}
        self.audit = Audit(settings)
        self.admission = Admission(settings)
        self._tariffs = Tariffs(self.db, prices.Policy.of(settings))
        self._ending: defaultdict[UUID, set[asyncio.Future[None]]] = defaultdict(set)
        self._threads = CapacityLimiter(DATABASE_THREADS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._lines: defaultdict[UUID, Line] = defaultdict(Line)
        self._extending = asyncio.create_task(self._extend())

    async def db(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """Run a function of `reserving` in a thread: one transaction of this installation, again if it was undone."""
        transactions = partial(db.session_scope, self.settings)
        work = partial(db.again(function), transactions, *args, **options)
        return await to_thread.run_sync(work, limiter=self._threads)

    async def tariff(self, provider: str, model: str) -> prices.Tariff:
        """GatewayError (404) for a model without a price."""
        try:
            return await self._tariffs.get(provider, model)
        except prices.UnknownModel as error:
            raise unknown_model(str(error)) from None

    def claims(self, headers: Mapping[str, str]) -> tokens.Claims:
        """What the machine token of a request says; GatewayError (401) when it shows none that the hub has signed."""
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        key = headers.get("x-api-key")
        if key and scheme.lower() == "bearer" and not hmac.compare_digest(key.encode(), bearer.strip().encode()):
            raise bad_token("Authorization and x-api-key name different tokens")
        try:
            return tokens.claims_of(tokens.shown(headers), self.settings)
        except tokens.BadToken as error:
            raise bad_token(error.message) from None

    @asynccontextmanager
    async def known(self, headers: Mapping[str, str]) -> AsyncIterator[tuple[Outcome, Ticket]]:
        """The machine that the token names, which may still call, and its share; GatewayError (401, 429) otherwise."""
        claims = self.claims(headers)
        ticket = self.admission.enter(claims.machine_uuid)
        try:
            machine = await self.books.machine(claims.machine_uuid, claims.generation)
            if machine.outcome != "held":
                raise refused(machine, "")
            yield machine, ticket
        finally:
            ticket.leave()

    def end(self, machine_uuid: UUID, ended: dict[str, Any]) -> asyncio.Future[None]:
        """End a reservation of a machine's call."""
        future, mine = self.books.end(ended), self._ending[machine_uuid]
        mine.add(future)
        future.add_done_callback(mine.discard)
        return future

    async def settled(self, machine_uuid: UUID) -> None:
        """Until no call of the machine that was answered by this process is still to be settled."""
        if pending := self._ending.get(machine_uuid):
            await asyncio.wait(list(pending))

    def line(self, project_uuid: UUID) -> Line:
        return self._lines[project_uuid]

    def start(self, call: Call, ticket: Ticket) -> None:
        """Let a call run, whatever becomes of the client."""
        self._keep(call.run()).add_done_callback(lambda _: ticket.leave())

    def give_back(self, reservation_uuid: UUID, made: asyncio.Future[Any] | None = None) -> None:
        """Release a reservation that nobody will use, once its making (`made`) has ended."""
        self._keep(self._give_back(reservation_uuid, made))

    async def _give_back(self, reservation_uuid: UUID, made: asyncio.Future[Any] | None) -> None:
        if made is not None:
            await asyncio.wait({made})
        for attempt in range(GIVE_BACK_TRIES):
            with suppress(*UNREACHABLE, DatabaseError):
                await self.books.end(budgets.released(reservation_uuid))
                return
            await asyncio.sleep(2**attempt)
        log.error("reservation %s could not be given back; it is left to the reaper", reservation_uuid)

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _extend(self) -> None:
        """Calls that go on keep their reservations, which are told what is known of them soon after it is."""
        every = self.settings.call_hold_seconds / EXTENSIONS
        told: set[UUID] = set()
        extended = time.monotonic()
        while True:
            await asyncio.sleep(min(every, TELL_SECONDS))
            told &= self.under_way.keys()
            asked = {uuid: ask for uuid, ask in self.under_way.items() if uuid not in told}
            news = {uuid: lines for uuid, ask in asked.items() if (lines := _lines_of(uuid, ask)) is not None}
            is_due = time.monotonic() - extended >= every
            calls = dict.fromkeys(self.under_way) | news if is_due else news
            if calls:
                with suppress(Exception):
                    await self.books.extend(calls)
                    told |= news.keys()
                    extended = time.monotonic() if is_due else extended

    async def close(self) -> None:
        """Wait a little for the calls under way, then end them; each settles before this returns."""
        if self._tasks:
            _, pending = await asyncio.wait(self._tasks, timeout=STOP_SECONDS)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        self._extending.cancel()
        await self.client.close()
        await self.books.close()
        self.audit.close()


def _lines_of(reservation_uuid: UUID, ask: Callable[[], list[Any] | None]) -> list[Any] | None:
    """What a call says; one that cannot say it keeps its bound, and no other from being extended."""
    try:
        return ask()
    except Exception:
        log.exception("reservation %s: what is known of its call cannot be told", reservation_uuid)
        return None


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
for path, protocol in (("/v1/messages", protocols.MESSAGES), ("/v1/chat/completions", protocols.CHAT)):
    router.routes.append(Route(path, CallEndpoint(protocol, gateway_of), methods=["POST"], include_in_schema=False))


async def _answered(handler: Any, form: ErrorForm = messages_form) -> Response:
    """The handler's response, or its error in this form."""
    try:
        return await handler
    except GatewayError as error:
        return error.response(form)
    except (DatabaseError, *UNREACHABLE) as error:
        log.error("%s", error)
        return provider_failed("The hub's database does not answer", 503).response(form)


@router.head("/")
async def alive() -> Response:
    """Claude Code asks this at its start."""
    return Response()


@router.post("/v1/messages/count_tokens")
async def count_tokens(request: Request) -> Response:
    return await _answered(_count_tokens(request))


async def _count_tokens(request: Request) -> Response:
    """Free at the provider, so nothing is reserved; the same fields are allowed."""
    gateway = gateway_of(request.app)
    async with gateway.known(request.headers) as (_, ticket):
        check = partial(requests.check_count_tokens, searches=gateway.settings.web_searches_per_call)
        checked = await checked_body(request.headers, request.receive, check, ticket)
        to = gateway.providers.serving(upstream.MESSAGES, checked.model)
        return await _relay(request, gateway, to, "POST", "/messages/count_tokens", checked.body)


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """Two APIs share this path; the Messages API's clients always name its version."""
    anthropic = "anthropic-version" in request.headers
    return await _answered(_models(request, anthropic), messages_form if anthropic else chat_form)


async def _models(request: Request, anthropic: bool) -> Response:
    gateway = gateway_of(request.app)
    async with gateway.known(request.headers) as (machine, _):
        if anthropic:
            return await _relay(request, gateway, gateway.providers.serving(upstream.MESSAGES), "GET", "/models", None)
        return JSONResponse(await gateway.catalogue.page(machine.models))


async def _relay(
    request: Request, gateway: Gateway, to: upstream.Provider, method: str, path: str, body: bytes | None
) -> Response:
    """A free call to the provider, there and back."""
    headers = upstream.messages_headers(request.headers, to)
    url = f"{to.root}{path}{query_of(request.scope)}"
    try:
        async with gateway.client.request(
            method, url, data=body, headers=headers, timeout=upstream.RELAY_TIMEOUT, **upstream.STAY
        ) as answer:
            content, status, sent = await answer.read(), answer.status, upstream.response_headers(answer.headers)
    except upstream.FAILURES as error:
        raise provider_failed(f"The AI provider ({to.name}) cannot be reached") from error
    if status in (401, 403):
        raise provider_failed(f"The AI provider ({to.name}) refused the hub's key", retry=False)
    return Response(content, status, sent)
