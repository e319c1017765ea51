"""One call's life: reserve, forward, stream, meter, settle.

A call is a task of its own, not part of the client's connection: whether the client goes, or its handler is cancelled,
the provider's answer is read to its end, for only the end says what it cost, and the reservation is settled. A process
that is killed leaves its reservations to expire; the reaper settles them.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import aiohttp

from autovibe import budgets, tokens
from autovibe.gateway import holding, reserving, upstream
from autovibe.gateway.answers import Answer
from autovibe.gateway.database import UNREACHABLE, Hold, Outcome
from autovibe.gateway.errors import (
    GatewayError,
    bad_request,
    bad_token,
    budget_busy,
    budget_gone,
    provider_failed,
    too_many,
    unknown_model,
)
from autovibe.gateway.protocols import Protocol
from autovibe.gateway.requests import CheckedRequest
from autovibe.gateway.reserving import Bounds, Caller, Held, Short, Wish
from autovibe.tokens import Claims

log = logging.getLogger("autovibe.gateway")
T = TypeVar("T")

DEADLINE_SECONDS = 3600.0  # of the whole call
DRAIN_SECONDS = 300.0  # after the client has gone
SETTLE_TRIES = 8
LOWER_AFTER_SECONDS = 2.0  # how long a call waits for its whole max_tokens before it takes less
COUNT_TIMEOUT = aiohttp.ClientTimeout(15)
#: Pauses before a provider that refuses connections is tried again: nothing was sent, so nothing is done twice.
CONNECT_AGAIN = (0.1, 0.5)


def refused(outcome: Outcome, model: str) -> GatewayError:
    """The answer to a call that the database refused for another reason than money."""
    if outcome.outcome in ("ended", "old"):
        return bad_token(tokens.ENDED if outcome.outcome == "ended" else tokens.OLD)
    if outcome.outcome == "model":
        allowed = ", ".join(outcome.models or []) or "none"
        return unknown_model(f"This project does not allow model {model!r:.100} (it allows: {allowed})")
    if outcome.outcome == "busy":
        return too_many("This machine has as many calls under way as it may", outcome.seconds or 1)
    return too_many("This machine has made all the calls that it may make in a minute", outcome.seconds or 1)


class Call:
    """One call of a machine, by one of the `protocols`."""

    def __init__(
        self,
        gateway: Any,
        protocol: Protocol,
        claims: Claims,
        request: CheckedRequest,
        headers: Mapping[str, str],
        query: str,
    ) -> None:
        self.gateway, self.protocol, self.claims, self.query = gateway, protocol, claims, query
        self.request_id = f"gw_{uuid.uuid4().hex}"
        self.provider = gateway.providers.serving(protocol.name, request.model)
        self.request = request.for_provider(self.provider)
        self.headers = protocol.headers(headers, self.provider)
        self.answer = Answer()
        self.meter = protocol.meter()
        self.asked_max_tokens = self.request.max_tokens
        self.billed = False
        self.caller: Caller | None = None
        self._details: dict[str, Any] = {"provider": self.provider.name}
        self._began = time.monotonic()
        self._deadline: asyncio.Timeout | None = None

    async def run(self) -> None:
        """Answers whatever happens; settles whenever money was held."""
        held = None
        try:
            self.bounds = await self._bounds()
            held = await self._hold()
        except GatewayError as error:
            self.answer.fail(error)
            return
        except Exception:
            log.exception("call %s: reserving failed", self.request_id)
            self.answer.fail(provider_failed("The hub's budget cannot be read", 503))
            return
        finally:
            if held is None:
                self.answer.end()
                self.gateway.audit.note(self, None)
        error = provider_failed("The gateway was stopped", 503)
        known = partial(reserving.known, self.request_id, self.bounds, held, self.meter, self._details)
        self.gateway.under_way[held.reservation_uuid] = known
        try:
            await self._bounded()
        except GatewayError as failure:
            error = failure
        except Exception:
            log.exception("call %s: forwarding failed", self.request_id)
            error = provider_failed("The gateway failed")
        else:
            self.answer.whole = True
        finally:
            # The client need not wait for the books: what it may have cost is held.
            self.answer.end(error)
            await self._end(held)
            del self.gateway.under_way[held.reservation_uuid]
            self.gateway.audit.note(self, held)

    @property
    def status(self) -> int | None:
        """What the client was answered, as far as it was."""
        head = self.answer.head
        if not head.done() or head.cancelled():
            return None
        error = head.exception()
        return error.status if isinstance(error, GatewayError) else head.result()[0]

    @property
    def milliseconds(self) -> int:
        return round((time.monotonic() - self._began) * 1000)

    def abandon(self) -> None:
        """The client has gone; the rest is read for its usage only, and not for ever."""
        self.answer.wanted = False
        if self._deadline is not None:
            now = asyncio.get_running_loop().time()
            self._deadline.reschedule(min(self._deadline.when() or now, now + DRAIN_SECONDS))

    # Reserving

    async def _bounds(self) -> Bounds:
        prices, model, searches = self.provider.prices, self.request.model, self.request.searches
        tariff = await self.gateway.tariff(prices, model)
        if searches and any(tier.usd_web_search is None for tier in tariff.tiers):
            raise bad_request(f"tools: web searches have no price for model {model!r:.100}")
        return Bounds(model, prices, tariff, searches)

    async def _hold(self) -> Held:
        """Money for the call: all of it, less tokens out, or a GatewayError that says why not."""
        if (held := await self._hold_at_once()) is not None:
            return held
        assert self.caller is not None
        wish = Wish(
            self.caller,
            self.request_id,
            self.bounds,
            self.request.input_bound,
            self.request.max_tokens,
            self.request.least_output(self.gateway.settings.min_useful_output_tokens),
            self.gateway.settings.call_hold_seconds,
        )
        outcome = await self._reserve(wish, patient=True)
        if isinstance(outcome, Short) and not outcome.hopeless:
            wish = replace(wish, input_bound=await self._count(wish.input_bound))
            outcome = await self._wait_for_money(wish)
        if isinstance(outcome, Short):
            raise self._no_money(outcome)
        self._lower(outcome.max_tokens)
        return outcome

    async def _hold_at_once(self) -> Held | None:
        """The whole worst case, by one statement; None when there is not as much. Raises GatewayError (401)."""
        bound, most = self.request.input_bound, self.request.max_tokens
        wanted = Hold(
            uuid.uuid4(),
            self.claims.machine_uuid,
            self.claims.generation,
            self.bounds.cost(bound, most).cad,
            self.request_id,
            self.request.model,
            self.bounds.priced_as,
            reserving.subtype_of(self.bounds.provider),
        )
        outcome, wanted = await self._asked(wanted)
        if outcome.outcome == "checkpointing":
            await self.gateway.settled(wanted.machine_uuid)
            await holding.hold(self.gateway.db, Caller(wanted.machine_uuid, outcome.project_uuid, checkpointing=True))
            outcome, wanted = await self._asked(replace(wanted, although_checkpointing=True))
        if outcome.outcome not in ("held", "short"):
            raise refused(outcome, self.request.model)
        self.caller = Caller(wanted.machine_uuid, outcome.project_uuid)
        return Held(wanted.reservation_uuid, most, bound) if outcome.outcome == "held" else None

    async def _asked(self, wanted: Hold) -> tuple[Outcome, Hold]:
        """What the database says, and to what; once more, under another name, where the way to it broke."""
        for again in (True, False):
            future = self.gateway.books.hold(wanted)
            try:
                return await asyncio.shield(future), wanted
            except (asyncio.CancelledError, *UNREACHABLE) as error:
                # It may have been done all the same: what it holds is given back.
                self.gateway.give_back(wanted.reservation_uuid, future)
                if isinstance(error, asyncio.CancelledError) or not again:
                    raise
            wanted = replace(wanted, reservation_uuid=uuid.uuid4())
        raise AssertionError("unreachable")

    async def _wait_for_money(self, wish: Wish) -> Held | Short:
        """Until calls under way give money back; one call of a project asks at a time, the others wait in line."""
        line = self.gateway.line(wish.caller.project_uuid)
        started, pause = time.monotonic(), 0.05
        end = started + self.gateway.settings.reservation_wait_seconds
        outcome: Held | Short = Short("The budget has too little left for this call now", later=True)
        try:
            async with asyncio.timeout(max(1.0, end - started)):
                await line.turn.acquire()
        except TimeoutError:
            return outcome
        try:
            while True:
                line.changed.clear()
                patient = time.monotonic() - started < LOWER_AFTER_SECONDS
                outcome = await self._reserve(wish, patient=patient)
                if isinstance(outcome, Held) or not outcome.later or time.monotonic() > end:
                    return outcome
                with suppress(TimeoutError):
                    await asyncio.wait_for(line.changed.wait(), pause)
                pause = min(pause * 2, 0.5)
        finally:
            line.turn.release()

    async def _reserve(self, wish: Wish, *, patient: bool) -> Held | Short:
        task = asyncio.create_task(self.gateway.db(reserving.reserve, wish, patient=patient))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # The transaction may commit all the same: what it holds is given back at once.
            with suppress(Exception):
                if isinstance(outcome := await task, Held):
                    self.gateway.give_back(outcome.reservation_uuid)
            raise

    def _lower(self, max_tokens: int) -> None:
        if max_tokens < self.request.max_tokens:
            self._details["asked_max_tokens"] = self.asked_max_tokens
            self.request = self.request.lowered(max_tokens, self.gateway.settings.min_useful_output_tokens)

    async def _count(self, input_bound: int) -> int:
        """A tighter bound by the provider's free count; it is an estimate (documented), hence the margin."""
        if (body := self.request.for_counting()) is None:
            return input_bound
        url = f"{self.provider.root}{self.protocol.path}/count_tokens{self.query}"
        try:
            async with self.gateway.client.post(
                url, data=body, headers=self.headers, timeout=COUNT_TIMEOUT, **upstream.STAY
            ) as response:
                counted = (await response.json(content_type=None))["input_tokens"] if response.status == 200 else None
        except (*upstream.FAILURES, ValueError, KeyError, TypeError):
            counted = None
        if type(counted) is not int or counted < 0:
            return input_bound
        return min(input_bound, counted + counted // 20 + 256)

    def _no_money(self, short: Short) -> GatewayError:
        if short.later:
            return budget_busy(f"{short.reason}; calls under way hold the rest. Try again shortly.")
        return budget_gone(f"{short.reason}. {short.remedy}")

    # Forwarding

    async def _bounded(self) -> None:
        """Forward to the end, at most `DEADLINE_SECONDS`, or `DRAIN_SECONDS` after the client has gone."""
        try:
            async with asyncio.timeout(DEADLINE_SECONDS) as self._deadline:
                if not self.answer.wanted:
                    self.abandon()
                await self._forward()
        except TimeoutError:
            log.warning("call %s: stopped at its deadline", self.request_id)
            raise provider_failed("The provider did not end its answer in time", 504) from None
        finally:
            self._deadline = None

    async def _forward(self) -> None:
        response = await self._send()
        try:
            await self._pass(response)
        finally:
            response.release() if response.content.at_eof() else response.close()

    async def _send(self) -> aiohttp.ClientResponse:
        url = f"{self.provider.root}{self.protocol.path}{self.query}"
        for pause in (*CONNECT_AGAIN, None):
            self.billed = True  # From here on it may be; each way out below that is not billed says so.
            try:
                return await self.gateway.client.post(
                    url, data=self.request.body, headers=self.headers, **upstream.STAY
                )
            except upstream.NOT_SENT as error:
                self.billed = False
                if pause is None:
                    raise provider_failed(f"The AI provider ({self.provider.name}) cannot be reached") from error
                await asyncio.sleep(pause)
            except upstream.FAILURES as error:
                # It was sent, in part at least: whether it was billed is not known, so the bound is booked.
                raise provider_failed(f"The AI provider ({self.provider.name}) did not answer") from error
        raise AssertionError("unreachable")

    async def _pass(self, response: aiohttp.ClientResponse) -> None:
        request_id = response.headers.get("request-id") or response.headers.get("x-request-id") or ""
        self._details["provider_request_id"] = request_id[:200]
        if response.status != 200:
            # An answer that is no error, and not understood, may have been billed.
            self.billed = response.status < 300
            await self._pass_error(response)
            return
        headers = self._headers(response)
        if "text/event-stream" in response.headers.get("content-type", ""):
            await self._pass_stream(response, headers)
            return
        body = await self._whole(response)
        self.meter.read_message(body)
        self.answer.start(200, headers | {"content-length": str(len(body))})
        self.answer.put(body)

    async def _whole(self, response: aiohttp.ClientResponse) -> bytes:
        try:
            return await response.read()
        except upstream.FAILURES as error:
            raise provider_failed("The AI provider's answer broke off") from error

    def _headers(self, response: aiohttp.ClientResponse) -> dict[str, str]:
        return {**upstream.response_headers(response.headers), "x-autovibe-request-id": self.request_id}

    async def _pass_stream(self, response: aiohttp.ClientResponse, headers: dict[str, str]) -> None:
        reader = self.protocol.reader(self.meter, self.request)
        self.answer.start(200, headers)
        try:
            async for chunk in response.content.iter_any():
                if passed := reader.feed(chunk):
                    self.answer.put(passed)
        except upstream.FAILURES as error:
            log.warning("call %s: the provider's stream broke off", self.request_id)
            self._details["broken"] = True
            raise provider_failed("The AI provider's answer broke off") from error
        if rest := reader.end():
            self.answer.put(rest)
        # A stream that ended in order with an error and no message is not billed; one that is not understood may be.
        self.billed = self.meter.started or not self.meter.failed

    async def _pass_error(self, response: aiohttp.ClientResponse) -> None:
        """4xx and 5xx are not billed. They are passed on, but for what is the hub's own trouble."""
        if response.status in (401, 403):
            message = f"The AI provider ({self.provider.name}) refused the hub's key; the hub's owner has to set it"
            raise provider_failed(message, retry=False)
        if response.status < 400:
            raise provider_failed(f"The AI provider answered {response.status}, which is not understood")
        body = await self._whole(response)
        self.answer.start(response.status, self._headers(response) | {"content-length": str(len(body))})
        self.answer.put(body)

    # Settling

    async def _end(self, held: Held) -> None:
        """Settle or release, as often as it takes."""
        self._details["milliseconds"] = self.milliseconds
        pause = 0.5
        for attempt in range(SETTLE_TRIES):
            try:
                await self._certain(self.gateway.end(self.claims.machine_uuid, self._outcome(held)))
                return
            except Exception:
                log.exception("call %s: settling failed (try %d)", self.request_id, attempt + 1)
            finally:
                self.gateway.line(self.caller.project_uuid).changed.set()
            await asyncio.sleep(pause)
            pause = min(pause * 2, 30)
        log.error("call %s: not settled; its reservation is left to the reaper", self.request_id)

    def _outcome(self, held: Held) -> dict[str, Any]:
        if not self.billed:
            return budgets.released(held.reservation_uuid)
        return reserving.settlement(self.request_id, self.bounds, held, self.meter, self._details)

    async def _certain(self, future: asyncio.Future[T]) -> T:
        """It is done before this ends, cancelled or not."""
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait({future})
            raise
