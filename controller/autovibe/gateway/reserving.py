"""The gateway's money: a call's worst case, less of it when money is short, and what it cost in the end.

The usual case is one statement of `database.py`. What stands here in a session, run in a thread, is for when that was
refused: why, and how much less would do.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_FLOOR, Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from autovibe import budgets, prices
from autovibe.gateway.metering import Meter
from autovibe.gateway.requests import SEARCH_STEPS
from autovibe.ledger import UsageLine
from autovibe.models import Reservation

#: How long a changed price may take to hold.
TARIFF_SECONDS = 10.0
RAISE_LIMIT = "Raise the machine's limit to go on."

Transactions = Callable[[], AbstractContextManager[Session]]


@dataclass(frozen=True)
class Caller:
    """The machine that calls, as far as the gateway needs it."""

    machine_uuid: UUID
    project_uuid: UUID
    checkpointing: bool = False


@dataclass(frozen=True)
class Bounds:
    """The worst cases of one call: price and exchange rate are those of the call's beginning.

    So midnight or a new price lifts no cost above the bound that was reserved for it. `searches`: how many web searches
    the provider may make; it then runs the model several times, and each time may write `max_tokens`. Which region a
    call runs in is the workspace's choice where the request names none, so the dearest one is bounded.
    """

    model: str
    provider: str
    tariff: prices.Tariff
    searches: int = 0

    @property
    def priced_as(self) -> str:
        """The model's name in the ledger. An unknown one that is priced as another is still not that other one."""
        return self.tariff.model or self.tariff.tiers[0].model

    def cost(self, input_bound: int, max_tokens: int) -> prices.Cost:
        written = max_tokens * (SEARCH_STEPS if self.searches else 1)
        return prices.upper_bound(
            self.tariff,
            input_tokens_max=input_bound,
            max_tokens=written,
            geo=prices.DEAREST_GEO if self.provider == prices.PROVIDER else None,
            web_searches_max=self.searches,
        )


class Tariffs:
    """The models' tariffs, asked for anew every few seconds: they change a few times a year."""

    def __init__(self, in_thread: Callable[..., Awaitable[prices.Tariff]], policy: prices.Policy) -> None:
        self._in_thread, self._policy = in_thread, policy
        self._known: dict[tuple[str, str, date], tuple[float, prices.Tariff]] = {}

    async def get(self, provider: str, model: str) -> prices.Tariff:
        """Raises `prices.UnknownModel`."""
        key = provider, model, datetime.now(UTC).date()
        expires, found = self._known.get(key, (0.0, None))
        if found is None or time.monotonic() > expires:
            found = await self._in_thread(_tariff, model, key[2], provider, self._policy)
            if len(self._known) > 1000:  # names of models are the client's
                self._known.clear()
            self._known[key] = time.monotonic() + TARIFF_SECONDS, found
        return found


def _tariff(transactions: Transactions, model: str, day: date, provider: str, policy: prices.Policy) -> prices.Tariff:
    with transactions() as session:
        return prices.tariff(session, model, day, provider, policy)


@dataclass(frozen=True)
class Wish:
    """A call's money: at best for `most` tokens out, at least for `least`.

    A reservation outlives its call by `hold_seconds` at most; while the call is under way it is extended.
    """

    caller: Caller
    request_id: str
    bounds: Bounds
    input_bound: int
    most: int
    least: int
    hold_seconds: int


@dataclass(frozen=True)
class Held:
    """Money is held: for at most this many tokens out and in."""

    reservation_uuid: UUID
    max_tokens: int
    input_bound: int


@dataclass(frozen=True)
class Short:
    """The money is not there.

    `later`: a useful answer would fit once the calls under way, which hold money, have ended. `hopeless`: there is no
    budget, or it is frozen, or a count is used up, so that no bound is small enough. `remedy`: what a person may do.
    """

    reason: str
    later: bool
    hopeless: bool = False
    remedy: str = "Raise the project's budget to go on."


def reserve(transactions: Transactions, wish: Wish, *, patient: bool) -> Held | Short:
    """Hold the worst case of a call, with fewer tokens out where that is all there is money for.

    While `patient`, fewer are not taken when the calls under way hold enough for all.
    """

    def bound(max_tokens: int) -> Decimal:
        return wish.bounds.cost(wish.input_bound, max_tokens).cad

    with transactions() as session:
        wanted: int | None = wish.most
        for _ in range(3):  # What was available may be gone a moment later.
            try:
                return _hold(session, wish, wanted, bound(wanted))
            except budgets.CountExhausted as error:
                return Short(error.message, later=error.held, hopeless=not error.held)
            except budgets.BudgetExhausted as error:
                if isinstance(error, budgets.BudgetFrozen | budgets.NoBudget):
                    return Short(error.message, later=False, hopeless=True)
                refusal, available = error, error.available
            later = available + _under_way(session, wish.caller, refusal)
            wanted = None if patient and later >= bound(wish.most) else largest(bound, available, wish.least, wish.most)
            if wanted is None:
                break
        later_enough = later >= bound(wish.least)
        if isinstance(refusal, budgets.MachineLimit):
            return Short(refusal.message, later_enough, remedy=RAISE_LIMIT)
        return Short(refusal.message, later_enough)


def _hold(session: Session, wish: Wish, max_tokens: int, amount: Decimal) -> Held:
    reservation = budgets.reserve(
        session,
        project_uuid=wish.caller.project_uuid,
        machine_uuid=wish.caller.machine_uuid,
        amount_cad=amount,
        counts={"api_calls": Decimal(1)},
        holder=wish.request_id,
        purpose=budgets.AI_CALL,
        expires_at=datetime.now(UTC) + timedelta(seconds=wish.hold_seconds),
        metadata={"model": wish.bounds.priced_as, "subtype": subtype_of(wish.bounds.provider)},
    )
    return Held(reservation.uuid, max_tokens, wish.input_bound)


def largest(bound: Callable[[int], Decimal], available: Decimal, least: int, most: int) -> int | None:
    """The largest number of tokens out, from `least` to `most`, whose bound fits; None when `least` does not."""
    low = bound(least)
    if low > available:
        return None
    if most == least:
        return least
    # The bound grows evenly with the tokens out, but for rounding.
    each = (bound(most) - low) / (most - least)
    guess = most if each <= 0 else least + int(((available - low) / each).to_integral_value(ROUND_FLOOR))
    guess = max(least, min(most, guess))
    while guess > least and bound(guess) > available:
        guess -= 1
    return guess


def _under_way(session: Session, caller: Caller, refusal: budgets.BudgetExhausted) -> Decimal:
    """What calls hold of what has refused: of the project's budget, or of the machine's own limit."""
    held = sa.select(sa.func.coalesce(sa.func.sum(Reservation.amount_cad), 0)).where(
        Reservation.project_uuid == caller.project_uuid,
        Reservation.status == "held",
        Reservation.purpose == budgets.AI_CALL,
    )
    if isinstance(refusal, budgets.MachineLimit):
        held = held.where(Reservation.machine_uuid == caller.machine_uuid)
    return Decimal(session.scalar(held))


def settlement(request_id: str, bounds: Bounds, held: Held, meter: Meter, details: dict[str, Any]) -> dict[str, Any]:
    """The end of a reservation: what the call cost by the provider's usage, or by the bound where there is none."""
    cost, basis = _cost(bounds, held, meter)
    subtype = subtype_of(bounds.provider)
    money = UsageLine.of_call(
        cost,
        f"{request_id}:money",
        subtype,
        **details,
        request_id=request_id,
        answered_by=meter.model,
        message_id=meter.message_id,
        usage=meter.reported or meter.usage,
        basis=basis,
        max_tokens=held.max_tokens,
        input_bound=held.input_bound,
    )
    count = UsageLine(
        resource_type="api_calls",
        resource_subtype=subtype,
        amount=Decimal(1),
        unit="count",
        idempotency_key=f"{request_id}:api_calls",
        metadata={"request_id": request_id, "model": bounds.model},
    )
    return budgets.settled(held.reservation_uuid, [money, count])


def known(request_id: str, bounds: Bounds, held: Held, meter: Meter, details: dict[str, Any]) -> list[Any] | None:
    """What the reaper is to book of a call under way, if its gateway dies now: less than its bound; or None.

    Without keys and counts, for the call may still be settled, and nothing that stands there by the provider's word.
    """
    if meter.complete or _cost(bounds, held, meter)[1] != "partial":
        return None
    lines = settlement(request_id, bounds, held, meter, details)["lines"]
    own = ("model", "basis", "rate_source", "provider", "request_id", "max_tokens", "input_bound")
    return [
        line | {"key": None, "metadata": {name: line["metadata"][name] for name in own if name in line["metadata"]}}
        for line in lines
    ]


def subtype_of(provider: str) -> str:
    """What the ledger calls the calls that are priced by this provider's prices."""
    return "claude_api" if provider == prices.PROVIDER else f"{provider}_api"


def _cost(bounds: Bounds, held: Held, meter: Meter) -> tuple[prices.Cost, str]:
    """The cost, and what it rests on: usage, partial (the input's counts, output by its bound), or bound."""
    bound = bounds.cost(held.input_bound, held.max_tokens)
    if not meter.usage:
        return bound, "bound"
    if not meter.complete and (bounds.searches or type(meter.usage.get("input_tokens")) is not int):
        return bound, "bound"
    usage = meter.usage if meter.complete else {**meter.usage, "output_tokens": held.max_tokens}
    try:
        cost = prices.cost(bounds.tariff, usage)
    except prices.MalformedUsage:
        return bound, "bound"
    if meter.complete:
        return cost, "usage"
    return (cost, "partial") if cost.cad <= bound.cad else (bound, "bound")
