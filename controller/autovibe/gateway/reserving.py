"""The gateway's money: hold a call's worst case before it is forwarded, settle what it cost after.

Each function is one short transaction in its own session, run in a thread by `calls.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
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

Transactions = Callable[[], AbstractContextManager[Session]]


@dataclass(frozen=True)
class Caller:
    """The machine that calls, as far as the gateway needs it."""

    machine_uuid: UUID
    project_uuid: UUID


@dataclass(frozen=True)
class Held:
    """Money is held: for at most this many tokens out, at this worst case."""

    reservation_uuid: UUID
    max_tokens: int
    input_bound: int
    at: datetime


@dataclass(frozen=True)
class Short:
    """The money for the whole request is not there.

    `fits`: the `max_tokens` that what is available can pay, None when that allows no useful answer.
    `later_all`, `later_some`: whether the whole request, or a useful answer, would fit once the calls under way, which
    hold money, have ended.
    """

    reason: str
    fits: int | None
    later_all: bool
    later_some: bool
    hopeless: bool = False  # no budget, or a frozen one: no bound would be small enough


def reserve(
    transactions: Transactions, caller: Caller, request_id: str, *, model: str, input_bound: int, most: int, least: int
) -> Held | Short:
    """Hold the worst case of a call with at most `most` tokens out, or say what is possible from `least` on.

    Raises `prices.UnknownModel`.
    """
    now = datetime.now(UTC)

    def bound(max_tokens: int) -> Decimal:
        cost = prices.upper_bound(session, model, input_tokens_max=input_bound, max_tokens=max_tokens, at=now)
        return cost.cad

    try:
        with transactions() as session:
            held = budgets.reserve(
                session,
                project_uuid=caller.project_uuid,
                machine_uuid=caller.machine_uuid,
                amount_cad=bound(most),
                holder=request_id,
                purpose=budgets.AI_CALL,
                expires_at=now + HOLD,
            )
            return Held(held.uuid, most, input_bound, now)
    except budgets.BudgetExhausted as error:
        available, reason = error.available, error.message
        if isinstance(error, budgets.BudgetFrozen | budgets.NoBudget):
            return Short(reason, None, later_all=False, later_some=False, hopeless=True)
    with transactions() as session:
        later = available + _under_way(session, caller.project_uuid)
        fits = largest(bound, available, least, most)
        return Short(reason, fits, later_all=later >= bound(most), later_some=later >= bound(least))


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
    held: Held,
    meter: Meter,
    *,
    model: str,
    details: dict[str, Any],
) -> Decimal:
    """Book what the call cost, by the provider's usage, or by the bound where that did not arrive; returns CAD."""
    with transactions() as session:
        cost, basis = _cost(session, held, meter, model)
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
            metadata={"request_id": request_id, "model": model},
        )
        budgets.settle(session, held.reservation_uuid, lines=[money, count])
        # After the budget's row, always in this order: no two calls wait for each other.
        session.execute(
            sa.update(Machine).where(Machine.uuid == caller.machine_uuid).values(api_calls=Machine.api_calls + 1)
        )
        return cost.cad


def _cost(session: Session, held: Held, meter: Meter, model: str) -> tuple[prices.Cost, str]:
    """The cost, and what it rests on: usage, partial (the input's counts, output by its bound), or bound.

    Price and exchange rate are of the day when the money was held, so that midnight lifts no cost above its bound.
    """
    bound = prices.upper_bound(
        session, model, input_tokens_max=held.input_bound, max_tokens=held.max_tokens, at=held.at
    )
    if not meter.usage:
        return bound, "bound"
    usage = meter.usage if meter.complete else {**meter.usage, "output_tokens": held.max_tokens}
    try:
        cost = prices.cost(session, model, usage, held.at)
    except prices.MalformedUsage:
        return bound, "bound"
    if meter.complete:
        return cost, "usage"
    return (cost, "partial") if cost.cad <= bound.cad else (bound, "bound")
