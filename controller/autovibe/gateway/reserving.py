"""The gateway's money: hold a call's worst case before it is forwarded, settle what it cost after.

Each function is one short transaction in its own session, run in a thread by `calls.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
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
from autovibe.ledger import UsageLine
from autovibe.models import Machine, Reservation

#: A reservation outlives its call by at most this; `extend` moves it on while the call is under way.
HOLD = timedelta(minutes=5)

#: How long a changed price may take to hold.
TARIFF_SECONDS = 10.0

Transactions = Callable[[], AbstractContextManager[Session]]


@dataclass(frozen=True)
class Caller:
    """The machine that calls, as far as the gateway needs it."""

    machine_uuid: UUID
    project_uuid: UUID


class Bounds:
    """The worst cases of one call: price and exchange rate are those of the call's beginning.

    So midnight or a new price lifts no cost above the bound that was reserved for it.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self.at = datetime.now(UTC)
        self._tariff: prices.Tariff | None = None

    def tariff(self, session: Session) -> prices.Tariff:
        """Raises `prices.UnknownModel`."""
        if self._tariff is None:
            self._tariff = _tariff(session, self.model, self.at)
        return self._tariff

    def cost(self, session: Session, input_bound: int, max_tokens: int) -> prices.Cost:
        """Raises `prices.UnknownModel`."""
        return prices.upper_bound(self.tariff(session), input_tokens_max=input_bound, max_tokens=max_tokens)


_tariffs: dict[tuple[str, str, date], tuple[float, prices.Tariff]] = {}


def _tariff(session: Session, model: str, at: datetime) -> prices.Tariff:
    """The model's tariff, asked for anew every few seconds: it changes a few times a year."""
    key = str(session.get_bind().engine.url), model, at.date()
    expires, found = _tariffs.get(key, (0.0, None))
    if found is None or time.monotonic() > expires:
        found = prices.tariff(session, model, at)
        if len(_tariffs) > 1000:  # names of models are the client's
            _tariffs.clear()
        _tariffs[key] = time.monotonic() + TARIFF_SECONDS, found
    return found


@dataclass(frozen=True)
class Wish:
    """A call's money: at best for `most` tokens out, at least for `least`."""

    caller: Caller
    request_id: str
    bounds: Bounds
    input_bound: int
    most: int
    least: int


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
    budget, or it is frozen, so that no bound is small enough.
    """

    reason: str
    later: bool
    hopeless: bool = False


def reserve(transactions: Transactions, wish: Wish, *, patient: bool) -> Held | Short:
    """Hold the worst case of a call, with fewer tokens out where that is all there is money for.

    While `patient`, fewer are not taken when the calls under way hold enough for all. Raises `prices.UnknownModel`.
    """
    with transactions() as session:

        def bound(max_tokens: int) -> Decimal:
            return wish.bounds.cost(session, wish.input_bound, max_tokens).cad

        wanted: int | None = wish.most
        for _ in range(3):  # What was available may be gone a moment later.
            try:
                return _hold(session, wish, wanted, bound(wanted))
            except budgets.BudgetExhausted as error:
                if isinstance(error, budgets.BudgetFrozen | budgets.NoBudget | budgets.CountExhausted):
                    return Short(error.message, later=False, hopeless=True)
                reason, available = error.message, error.available
            later = available + _under_way(session, wish.caller.project_uuid)
            wanted = None if patient and later >= bound(wish.most) else largest(bound, available, wish.least, wish.most)
            if wanted is None:
                break
        return Short(reason, later=later >= bound(wish.least))


def _hold(session: Session, wish: Wish, max_tokens: int, amount: Decimal) -> Held:
    reservation = budgets.reserve(
        session,
        project_uuid=wish.caller.project_uuid,
        machine_uuid=wish.caller.machine_uuid,
        amount_cad=amount,
        counts={"api_calls": Decimal(1)},
        holder=wish.request_id,
        purpose=budgets.AI_CALL,
        expires_at=datetime.now(UTC) + HOLD,
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


def _under_way(session: Session, project_uuid: UUID) -> Decimal:
    held = sa.select(sa.func.coalesce(sa.func.sum(Reservation.amount_cad), 0)).where(
        Reservation.project_uuid == project_uuid, Reservation.status == "held", Reservation.purpose == budgets.AI_CALL
    )
    return Decimal(session.scalar(held))


def extend(transactions: Transactions, reservation_uuid: UUID) -> None:
    """The call goes on: its reservation does not expire yet."""
    with transactions() as session:
        budgets.extend(session, reservation_uuid, datetime.now(UTC) + HOLD)


def release(transactions: Transactions, reservation_uuid: UUID) -> None:
    """The provider did not bill: give the money back."""
    with transactions() as session:
        budgets.release(session, reservation_uuid)


def settle(
    transactions: Transactions,
    caller: Caller,
    request_id: str,
    bounds: Bounds,
    held: Held,
    meter: Meter,
    details: dict[str, Any],
) -> None:
    """Book what the call cost, by the provider's usage, or by the bound where that did not arrive."""
    with transactions() as session:
        cost, basis = _cost(session, bounds, held, meter)
        money = UsageLine.of_call(
            cost,
            f"{request_id}:money",
            **details,
            request_id=request_id,
            answered_by=meter.model,
            message_id=meter.message_id,
            usage=meter.usage,
            basis=basis,
            max_tokens=held.max_tokens,
            input_bound=held.input_bound,
        )
        count = UsageLine(
            resource_type="api_calls",
            resource_subtype="claude_api",
            amount=Decimal(1),
            unit="count",
            idempotency_key=f"{request_id}:api_calls",
            metadata={"request_id": request_id, "model": bounds.model},
        )
        budgets.settle(session, held.reservation_uuid, lines=[money, count])
        # After the budget's row, always in this order: no two calls wait for each other.
        session.execute(
            sa.update(Machine).where(Machine.uuid == caller.machine_uuid).values(api_calls=Machine.api_calls + 1)
        )


def _cost(session: Session, bounds: Bounds, held: Held, meter: Meter) -> tuple[prices.Cost, str]:
    """The cost, and what it rests on: usage, partial (the input's counts, output by its bound), or bound."""
    bound = bounds.cost(session, held.input_bound, held.max_tokens)
    if not meter.usage:
        return bound, "bound"
    usage = meter.usage if meter.complete else {**meter.usage, "output_tokens": held.max_tokens}
    try:
        cost = prices.cost(bounds.tariff(session), usage)
    except prices.MalformedUsage:
        return bound, "bound"
    if meter.complete:
        return cost, "usage"
    return (cost, "partial") if cost.cad <= bound.cad else (bound, "bound")
