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
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import httpx

from autovibe import prices
from autovibe.gateway import reserving, upstream
from autovibe.gateway.errors import GatewayError, budget_busy, budget_gone, provider_failed, unknown_model
from autovibe.gateway.metering import Meter, StreamReader
from autovibe.gateway.requests import CheckedRequest
from autovibe.gateway.reserving import Bounds, Caller, Held, Short, Wish

log = logging.getLogger("autovibe.gateway")
T = TypeVar("T")

DEADLINE_SECONDS = 3600.0  # of the whole call
DRAIN_SECONDS = 300.0  # after the client has gone
EXTEND_SECONDS = 60.0
SETTLE_TRIES = 8
LOWER_AFTER_SECONDS = 2.0  # how long a call waits for its whole max_tokens before it takes less
COUNT_TIMEOUT = 15.0


class BrokenAnswer(ConnectionError):
    """The provider's answer broke off."""


class Answer:
    """What the client gets: status and headers once they are known, then the body as it arrives."""

    def __init__(self) -> None:
        self.head: asyncio.Future[tuple[int, dict[str, str]]] = asyncio.get_running_loop().create_future()
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._wanted = True
        self.whole = False
        self.client_gone = asyncio.Event()

    def start(self, status: int, headers: dict[str, str]) -> None:
        if not self.head.done():
            self.head.set_result((status, headers))

    def fail(self, error: GatewayError) -> None:
        if not self.head.done():
            self.head.set_exception(error)
            self.head.exception()  # The client may be gone and never look.

    def put(self, chunk: bytes) -> None:
        if self._wanted:
            self._chunks.put_nowait(chunk)

    def end(self, error: GatewayError | None = None) -> None:
        """No more comes; without a head, the error is the answer."""
        self.fail(error or provider_failed("The gateway was stopped", 503))
        self._chunks.put_nowait(None)

    def abandon(self) -> None:
        """The client has gone; the rest is read for its usage only."""
        self._wanted = False
        self.client_gone.set()

    async def body(self) -> AsyncIterator[bytes]:
        try:
            while (chunk := await self._chunks.get()) is not None:
                yield chunk
            if not self.whole:
                # An end in order would say that this was all of it.
                raise BrokenAnswer
        finally:
            self.abandon()


class Call:
    """One `POST /v1/messages` of a machine."""

    def __init__(
        self, gateway: Any, caller: Caller, request: CheckedRequest, headers: Mapping[str, str], query: str
    ) -> None:
        self.gateway, self.caller, self.request, self.query = gateway, caller, request, query
        self.request_id = f"gw_{uuid.uuid4().hex}"
        self.bounds = Bounds(request.model)
        self.answer = Answer()
        self.meter = Meter()
        self.asked_max_tokens = request.max_tokens
        self.provider = upstream.provider(gateway.settings)
        self.headers = upstream.request_headers(headers, self.provider)
        self.billed = False
        self._held = False
        self._details: dict[str, Any] = {"provider": self.provider.name}
        self._began = time.monotonic()

    async def run(self) -> None:
        """Answers whatever happens; settles whenever money was held."""
        try:
            held = await self._hold()
        except GatewayError as error:
            self.answer.fail(error)
            return
        except Exception:
            log.exception("call %s: reserving failed", self.request_id)
            self.answer.fail(provider_failed("The hub's budget cannot be read", 503))
            return
        finally:
            if not self._held:
                self.answer.end()
        extender = asyncio.create_task(self._extend(held))
        error = provider_failed("The gateway was stopped", 503)
        try:
            await self._bounded(self._forward())
        except GatewayError as failure:
            error = failure
        except Exception:
            log.exception("call %s: forwarding failed", self.request_id)
            error = provider_failed("The gateway failed")
        else:
            self.answer.whole = True
        finally:
            extender.cancel()
            await self._end(held, error)

    # Reserving

    async def _hold(self) -> Held:
        """Money for the call: all of it, less tokens out, or a GatewayError that says why not."""
        wish = Wish(
            self.caller,
            self.request_id,
            self.bounds,
            self.request.input_bound,
            self.request.max_tokens,
            self.request.least_output(self.gateway.settings.min_useful_output_tokens),
        )
        outcome = await self._reserve(wish, patient=True)
        if isinstance(outcome, Short) and not outcome.hopeless:
            wish = replace(wish, input_bound=await self._count(wish.input_bound))
            outcome = await self._wait_for_money(wish)
        if isinstance(outcome, Short):
            raise self._no_money(outcome)
        self._held = True
        self._lower(outcome.max_tokens)
        return outcome

    async def _wait_for_money(self, wish: Wish) -> Held | Short:
        """Until calls under way give money back; one call of a project asks at a time, the others wait in line."""
        line = self.gateway.line(self.caller.project_uuid)
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
        except prices.UnknownModel as error:
            raise unknown_model(str(error)) from None
        except asyncio.CancelledError:
            # The transaction may commit all the same: what it holds is given back at once.
            with suppress(Exception):
                if isinstance(outcome := await task, Held):
                    await self.gateway.db(reserving.release, outcome.reservation_uuid)
            raise

    def _lower(self, max_tokens: int) -> None:
        if max_tokens < self.request.max_tokens:
            self._details["asked_max_tokens"] = self.asked_max_tokens
            self.request = self.request.lowered(max_tokens, self.gateway.settings.min_useful_output_tokens)

    async def _count(self, input_bound: int) -> int:
        """A tighter bound by the provider's free count; it is an estimate (documented), hence the margin."""
        url = f"{self.provider.url}/v1/messages/count_tokens{self.query}"
        try:
            response = await self.gateway.client.post(
                url, content=self.request.for_counting(), headers=self.headers, timeout=COUNT_TIMEOUT
            )
            counted = response.json()["input_tokens"] if response.status_code == 200 else None
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            counted = None
        if type(counted) is not int or counted < 0:
            return input_bound
        return min(input_bound, counted + counted // 20 + 256)

    def _no_money(self, short: Short) -> GatewayError:
        if short.later:
            return budget_busy(f"{short.reason}; calls under way hold the rest. Try again shortly.")
        return budget_gone(f"{short.reason}. Raise the project's budget to go on.")

    async def _extend(self, held: Held) -> None:
        while True:
            await asyncio.sleep(EXTEND_SECONDS)
            with suppress(Exception):
                await self.gateway.db(reserving.extend, held.reservation_uuid)

    # Forwarding

    async def _bounded(self, work: Any) -> None:
        """Run to the end, at most `DEADLINE_SECONDS`, or `DRAIN_SECONDS` after the client has gone."""
        task = asyncio.ensure_future(work)
        gone = asyncio.create_task(self.answer.client_gone.wait())
        try:
            await asyncio.wait({task, gone}, timeout=DEADLINE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not task.done() and gone.done():
                await asyncio.wait({task}, timeout=DRAIN_SECONDS)
            if not task.done():
                log.warning("call %s: stopped at its deadline", self.request_id)
                raise provider_failed("The provider did not end its answer in time", 504)
            await task
        finally:
            gone.cancel()
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    async def _forward(self) -> None:
        url = f"{self.provider.url}/v1/messages{self.query}"
        request = self.gateway.client.build_request("POST", url, content=self.request.body, headers=self.headers)
        self.billed = True  # From here on it may be; each way out below that is not billed says so.
        try:
            response = await self.gateway.client.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            self.billed = False
            raise provider_failed(f"The AI provider ({self.provider.name}) cannot be reached") from error
        except httpx.HTTPError as error:
            # It was sent, in part at least: whether it was billed is not known, so the bound is booked.
            raise provider_failed(f"The AI provider ({self.provider.name}) did not answer") from error
        try:
            await self._pass(response)
        finally:
            await response.aclose()

    async def _pass(self, response: httpx.Response) -> None:
        self._details["provider_request_id"] = response.headers.get("request-id", "")[:200]
        if response.status_code != 200:
            self.billed = False
            await self._pass_error(response)
            return
        headers = {**upstream.response_headers(response), "x-autovibe-request-id": self.request_id}
        if "text/event-stream" in response.headers.get("content-type", ""):
            await self._pass_stream(response, headers)
            return
        try:
            body = await response.aread()
        except httpx.HTTPError as error:
            raise provider_failed("The AI provider's answer broke off") from error
        self.meter.read_message(body)
        self.answer.start(200, headers)
        self.answer.put(body)

    async def _pass_stream(self, response: httpx.Response, headers: dict[str, str]) -> None:
        reader = StreamReader(self.meter)
        self.billed = True
        self.answer.start(200, headers)
        try:
            async for chunk in response.aiter_bytes():
                self.answer.put(chunk)
                reader.feed(chunk)
        except httpx.HTTPError as error:
            log.warning("call %s: the provider's stream broke off", self.request_id)
            self._details["broken"] = True
            raise provider_failed("The AI provider's answer broke off") from error
        # A stream that ended in order without a message had only an error in it: not billed.
        self.billed = self.meter.started

    async def _pass_error(self, response: httpx.Response) -> None:
        """4xx and 5xx are not billed. They are passed on, but for what is the hub's own trouble."""
        if response.status_code in (401, 403):
            message = f"The AI provider ({self.provider.name}) refused the hub's key; the hub's owner has to set it"
            raise provider_failed(message, retry=False)
        if response.status_code < 400:
            raise provider_failed(f"The AI provider answered {response.status_code}, which is not understood")
        try:
            body = await response.aread()
        except httpx.HTTPError as error:
            raise provider_failed("The AI provider's answer broke off") from error
        headers = {**upstream.response_headers(response), "x-autovibe-request-id": self.request_id}
        self.answer.start(response.status_code, headers)
        self.answer.put(body)

    # Settling

    async def _end(self, held: Held, error: GatewayError) -> None:
        """Settle or release, as often as it takes; the client waits for the first try only.

        `error` is the client's answer when there is none from the provider.
        """
        self._details["milliseconds"] = round((time.monotonic() - self._began) * 1000)
        pause = 0.5
        for attempt in range(SETTLE_TRIES):
            try:
                await self._book(held)
                return
            except Exception:
                log.exception("call %s: settling failed (try %d)", self.request_id, attempt + 1)
            finally:
                self.answer.end(error)
                self.gateway.line(self.caller.project_uuid).changed.set()
            await asyncio.sleep(pause)
            pause = min(pause * 2, 30)
        log.error("call %s: not settled; its reservation is left to the reaper", self.request_id)

    async def _book(self, held: Held) -> None:
        if not self.billed:
            await self._certain(reserving.release, held.reservation_uuid)
            return
        await self._certain(
            reserving.settle, self.caller, self.request_id, self.bounds, held, self.meter, self._details
        )

    async def _certain(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """The transaction ends before this does, cancelled or not."""
        task = asyncio.create_task(self.gateway.db(function, *args, **options))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await task
            raise
