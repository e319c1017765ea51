"""Budgets and reservations: what is spent was reserved before, what is reserved was there.

Every function is one step of the caller's transaction. What must always hold is in the database (a CHECK on the budget
row); each step here is one conditional UPDATE of that row, never a check and then a spending.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from autovibe import allocations, ledger, periods
from autovibe.errors import AutovibeError, NotFound
from autovibe.ledger import UsageLine, amount_of
from autovibe.models import Budget, Reservation

log = logging.getLogger(__name__)

#: A call that was forwarded may have been billed: reaped, it is settled at its bound.
AI_CALL = "ai_call"


class BudgetExhausted(AutovibeError):
    """The budget does not have that much."""

    code = "budget_exhausted"
    http_status = 402

    def __init__(self, available: Decimal, message: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint, available=available)
        self.available = available


class BudgetFrozen(BudgetExhausted):
    """The budget is frozen."""

    code = "budget_frozen"
    default_hint = "A bill was above its bound; look at `autovibe usage`, then raise the budget."


class NoBudget(BudgetExhausted):
    """The project has no budget."""

    code = "no_budget"


class CountExhausted(BudgetExhausted):
    """Another budget than that of money is used up."""

    def __init__(self, message: str) -> None:
        super().__init__(Decimal(0), message)


class NoSuchReservation(NotFound):
    """There is no such reservation."""

    code = "no_such_reservation"


def available(session: Session, project_uuid: UUID, at: datetime | None = None) -> Decimal:
    """What money can be reserved now: 0 without a budget, or when one is frozen."""
    rows = [row for row in allocations.present(session, project_uuid, at) if row.resource_type == "money"]
    return min((_left(row) for row in rows), default=Decimal(0))


def reserve(
    session: Session,
    *,
    project_uuid: UUID,
    machine_uuid: UUID | None = None,
    amount_cad: Decimal,
    counts: Mapping[str, Decimal] | None = None,
    holder: str,
    purpose: str,
    expires_at: datetime,
    at: datetime | None = None,
) -> Reservation:
    """Hold a part of every budget that applies, or raise BudgetExhausted (`available` says how much money there is).

    `counts`: what is held of other resources, by type (`{"api_calls": 1}`).
    """
    amount = amount_of(amount_cad, "reservation", positive=True)
    others = {name: amount_of(count, name) for name, count in (counts or {}).items()}
    values = {
        "project": project_uuid,
        "machine": machine_uuid,
        "at": periods.moment(at),
        "types": ["money", *others],
        "amounts": [amount, *others.values()],
        "counts": json.dumps({name: str(count) for name, count in others.items()}),
        "holder": holder,
        "purpose": purpose,
        "expires_at": expires_at,
    }
    query = sa.select(Reservation).from_statement(_RESERVE)
    for _ in range(2):
        reservation = session.scalars(query, values).first()
        if reservation is not None:
            return reservation
        if not periods.roll(session, project_uuid, periods.day_of(session, project_uuid, at)):
            break
    raise _refusal(session, project_uuid, values)


def settle(session: Session, reservation_uuid: UUID, *, lines: Sequence[UsageLine]) -> None:
    """Write what was billed and take it from the budget instead of the reservation. Again, it changes nothing.

    A bill above the reservation is booked whole and freezes the budget. A reservation that was reaped meanwhile is
    corrected: the line of the reaper is taken back by a line of its own.
    """
    reservation = _locked(session, reservation_uuid)
    if reservation.status == "settled":
        return
    lines, held = list(lines), Decimal(0)
    if reservation.status == "held":
        held = reservation.amount_cad
    elif reservation.status == "reaped" and reservation.settled_cad:
        lines.append(_correction(reservation))
    spent = _write(session, reservation, lines)
    billed = spent["money"] + (Decimal(0) if held else reservation.settled_cad or Decimal(0))
    frozen = None
    if billed > reservation.amount_cad:
        frozen = f"reservation {reservation.uuid} of {reservation.amount_cad} CAD was billed {billed} CAD"
        reservation.metadata_ = reservation.metadata_ | {"above_bound_cad": str(billed - reservation.amount_cad)}
    _move(session, reservation, held=_holds(reservation) if held else {}, spent=spent, freeze=frozen)
    _end(reservation, "settled", billed)
    session.flush()


def release(session: Session, reservation_uuid: UUID) -> bool:
    """Give back what was held; returns whether it was. On an ended reservation it changes nothing."""
    reservation = _locked(session, reservation_uuid)
    if reservation.status != "held":
        return False
    _move(session, reservation, held=_holds(reservation))
    _end(reservation, "released", None)
    session.flush()
    return True


def extend(session: Session, reservation_uuid: UUID, expires_at: datetime) -> bool:
    """Let a reservation live longer; returns whether it still did."""
    held = sa.update(Reservation).where(Reservation.uuid == reservation_uuid, Reservation.status == "held")
    later = sa.func.greatest(Reservation.expires_at, expires_at)
    return session.execute(held.values(expires_at=later)).rowcount == 1


def reap(session: Session, now: datetime | None = None, limit: int = 1000) -> list[Reservation]:
    """End the reservations whose holders are gone: `ai_call` settled at its bound, others given back."""
    expired = (
        sa.select(Reservation)
        .where(Reservation.status == "held", Reservation.expires_at <= (now or datetime.now(UTC)))
        .order_by(Reservation.uuid)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    reaped = list(session.scalars(expired))
    # All the budgets at once, in the order in which everybody takes them.
    projects = {reservation.project_uuid for reservation in reaped}
    rows = sa.select(Budget.uuid).where(Budget.project_uuid.in_(projects)).order_by(Budget.uuid)
    session.execute(rows.with_for_update(key_share=True))
    for reservation in reaped:
        billed, spent = Decimal(0), {}
        if reservation.purpose == AI_CALL:
            billed = reservation.amount_cad
            spent = _write(session, reservation, _bound_lines(reservation))
            reservation.metadata_ = reservation.metadata_ | {"settled_at_bound": True}
        _move(session, reservation, held=_holds(reservation), spent=spent)
        _end(reservation, "reaped", billed)
        log.warning("Reaped reservation %s of %s: %s CAD billed.", reservation.uuid, reservation.holder, billed)
    session.flush()
    return reaped


def charge(
    session: Session,
    *,
    project_uuid: UUID,
    machine_uuid: UUID | None = None,
    lines: Sequence[UsageLine],
    at: datetime | None = None,
) -> Decimal:
    """Book what nobody reserved (metering, a correction); returns its CAD. Above a hard allocation it is an overrun.

    It counts in the periods of its own time `at` (now), as far as these have budgets.
    """
    day = periods.day_of(session, project_uuid, at)
    periods.roll(session, project_uuid, day)
    spent = ledger.write(session, lines, project_uuid=project_uuid, machine_uuid=machine_uuid, day=day)
    if not _moved(session, project_uuid, day, {}, spent, None):
        raise NoBudget(Decimal(0))
    return spent["money"]


def _refusal(session: Session, project_uuid: UUID, values: dict[str, Any]) -> BudgetExhausted:
    """Why nothing was reserved."""
    now = allocations.present(session, project_uuid, values["at"])
    money = [row for row in now if row.resource_type == "money"]
    wanted = dict(zip(values["types"], values["amounts"], strict=True))
    ended = periods.missing(session, project_uuid, values["types"], values["at"])
    if ended is not None:
        return NoBudget(
            Decimal(0), f"The {ended.budget_period} budget of {ended.resource_type} has ended; set a new one"
        )
    if not money:
        return NoBudget(Decimal(0))
    for row in now:
        if row.frozen_at is not None and row.resource_type in wanted:
            return BudgetFrozen(Decimal(0), f"The budget is frozen: {row.freeze_reason}")
    for row in now:
        if row.hard and row.resource_type != "money" and _left(row) < wanted.get(row.resource_type, 0):
            return CountExhausted(_short(row, wanted[row.resource_type]))
    tightest = min(money, key=_left)
    return BudgetExhausted(_left(tightest), _short(tightest, wanted["money"]))


def _short(row: Budget, amount: Decimal) -> str:
    name = "The budget" if row.budget_period == "total" else f"The {row.budget_period} budget"
    until = "" if row.budget_period == "total" else f" until {row.period_end}"
    return (
        f"{name} has {_plain(_left(row))} {row.unit} left of {_plain(row.allocated_amount)}{until}, "
        f"and {_plain(amount)} is needed"
    )


def _left(row: Budget) -> Decimal:
    if row.frozen_at is not None:
        return Decimal(0)
    return max(Decimal(0), row.allocated_amount - row.used_amount - row.reserved_amount)


def _locked(session: Session, reservation_uuid: UUID) -> Reservation:
    query = sa.select(Reservation).where(Reservation.uuid == reservation_uuid).with_for_update()
    reservation = session.scalars(query.execution_options(populate_existing=True)).first()
    if reservation is None:
        raise NoSuchReservation(f"There is no reservation {reservation_uuid}")
    return reservation


def _write(session: Session, reservation: Reservation, lines: Sequence[UsageLine]) -> dict[str, Decimal]:
    return ledger.write(
        session,
        lines,
        project_uuid=reservation.project_uuid,
        machine_uuid=reservation.machine_uuid,
        reservation_uuid=reservation.uuid,
        day=reservation.day,
    )


def _holds(reservation: Reservation) -> dict[str, Decimal]:
    others = {name: Decimal(count) for name, count in reservation.amounts.items()}
    return {"money": reservation.amount_cad, **others}


def _move(
    session: Session,
    reservation: Reservation,
    *,
    held: Mapping[str, Decimal],
    spent: Mapping[str, Decimal] | None = None,
    freeze: str | None = None,
) -> None:
    _moved(session, reservation.project_uuid, reservation.day, held, spent or {}, freeze)


def _moved(
    session: Session,
    project_uuid: UUID,
    day: date,
    held: Mapping[str, Decimal],
    spent: Mapping[str, Decimal],
    freeze: str | None,
) -> bool:
    """Take `held` from reserved and put `spent` into used, in every budget of the day, in one statement.

    Beyond a hard allocation it is an overrun, which freezes the budget. Returns whether there was a budget of money.
    """
    types = sorted({*held, *spent})
    values = {
        "project": project_uuid,
        "day": day,
        "types": types,
        "held": [held.get(name, Decimal(0)) for name in types],
        "spent": [spent.get(name, Decimal(0)) for name in types],
        "freeze": freeze is not None,
        "reason": freeze or f"{_plain(spent.get('money', Decimal(0)))} CAD were billed that nobody had reserved",
    }
    rows = session.execute(_MOVE, values).all()
    for row in rows:
        if row.froze:
            log.error("The %s budget %s is frozen: %s.", row.budget_period, row.uuid, values["reason"])
    return any(row.resource_type == "money" for row in rows)


def _end(reservation: Reservation, status: str, billed: Decimal | None) -> None:
    reservation.status, reservation.settled_cad = status, billed
    reservation.ended_at = datetime.now(UTC)


def _bound_lines(reservation: Reservation) -> list[UsageLine]:
    why = {"settled_at_bound": True, "holder": reservation.holder}
    amount = reservation.amount_cad
    money = UsageLine("money", "claude_api", amount=amount, cost_cad=amount, currency="CAD", cost=amount, metadata=why)
    others = [
        UsageLine(name, "claude_api", amount=Decimal(count), unit=periods.UNITS[name], metadata=why)
        for name, count in reservation.amounts.items()
    ]
    return [money, *others]


def _correction(reservation: Reservation) -> UsageLine:
    taken_back = -(reservation.settled_cad or Decimal(0))
    return UsageLine(
        resource_type="money",
        resource_subtype="correction",
        amount=taken_back,
        unit="CAD",
        cost_cad=taken_back,
        currency="CAD",
        cost=taken_back,
        metadata={"corrects": "settled_at_bound", "reservation": str(reservation.uuid)},
    )


_RESERVE = sa.text(
    "SELECT * FROM reserve_budgets(:project, :machine, :at, CAST(:types AS text[]), CAST(:amounts AS numeric[]), "
    "CAST(:counts AS jsonb), :holder, :purpose, :expires_at)"
)
_MOVE = sa.text(
    "SELECT * FROM move_budgets(:project, :day, CAST(:types AS text[]), CAST(:held AS numeric[]), "
    "CAST(:spent AS numeric[]), :freeze, :reason)"
)


def _plain(amount: Decimal) -> str:
    return format(amount.normalize(), "f")
