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
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.orm import Session
from sqlalchemy.orm.util import identity_key

from autovibe import allocations, ledger, periods, pools
from autovibe.errors import AutovibeError, NotFound
from autovibe.ledger import UsageLine, amount_of
from autovibe.models import Budget, Machine, Reservation

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


class MachineLimit(BudgetExhausted):
    """The machine has reached its own limit of money."""

    code = "machine_limit"
    default_hint = "`autovibe machine resume MACHINE --max-cost CAD` raises it and goes on."


class CountExhausted(BudgetExhausted):
    """Another budget than that of money is used up. `held`: what is held of it would do, if it is given back."""

    def __init__(self, message: str, held: bool) -> None:
        super().__init__(Decimal(0), message)
        self.held = held


class NoSuchReservation(NotFound):
    """There is no such reservation."""

    code = "no_such_reservation"


def available(session: Session, project_uuid: UUID, at: datetime | None = None) -> Decimal:
    """What money can be reserved now: 0 without a budget, or when one is frozen."""
    rows = [row for row in allocations.present(session, project_uuid, at) if row.resource_type == "money"]
    if any(row.pooled for row in rows) and pools.claim(session, project_uuid, at, types=("money",)):
        rows = [row for row in allocations.present(session, project_uuid, at) if row.resource_type == "money"]
    return min((left_of(row) for row in rows), default=Decimal(0))


def machine_left(session: Session, machine: Machine) -> Decimal | None:
    """What a machine may still cost by its own limit; None when it has none."""
    if machine.max_cad is None:
        return None
    return max(Decimal(0), machine.max_cad - session.scalar(sa.select(sa.func.machine_money(machine.uuid))))


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
    metadata: Mapping[str, Any] | None = None,
) -> Reservation:
    """Hold a part of every budget that applies, or raise BudgetExhausted (`available` says how much money there is).

    A machine's own limit is one of them (MachineLimit).

    `counts`: what is held of other resources, by type (`{"api_calls": 1}`). `metadata` of a call: its `model` and
    `subtype`, for who has to book it in its gateway's place.
    """
    amount = amount_of(amount_cad, "reservation", positive=True)
    others = {name: amount_of(count, name) for name, count in (counts or {}).items()}
    values = {
        "uuid": uuid4(),
        "project": project_uuid,
        "machine": machine_uuid,
        "at": periods.moment(at),
        "types": ["money", *others],
        "amounts": [amount, *others.values()],
        "counts": json.dumps({name: str(count) for name, count in others.items()}),
        "holder": holder,
        "purpose": purpose,
        "expires_at": expires_at,
        "metadata": json.dumps(dict(metadata or {})),
    }
    query = sa.select(Reservation).from_statement(_RESERVE)
    # A new period has no row yet; a share of a pool may be lent to others.
    remedies = iter(
        (
            lambda: periods.roll(session, project_uuid, periods.day_of(session, project_uuid, at)),
            lambda: pools.claim(session, project_uuid, at, types=values["types"]),
        )
    )
    reservation = session.scalars(query, values).first()
    while reservation is None and any(remedy() for remedy in remedies):
        reservation = session.scalars(query, values).first()
    if reservation is not None:
        return reservation
    raise _refusal(session, project_uuid, values)


def settle(session: Session, reservation_uuid: UUID, *, lines: Sequence[UsageLine]) -> None:
    """Write what was billed and take it from the budget instead of the reservation. Again, it changes nothing.

    A bill above the reservation is booked whole and freezes the budget. A reservation that was reaped meanwhile is
    corrected: the lines of the reaper are taken back by lines of their own.
    """
    if not _end(session, [settled(reservation_uuid, lines)]):
        _known(session, reservation_uuid)


def release(session: Session, reservation_uuid: UUID) -> bool:
    """Give back what was held; returns whether it was. On an ended reservation it changes nothing."""
    if _end(session, [released(reservation_uuid)]):
        return True
    _known(session, reservation_uuid)
    return False


def settled(reservation_uuid: UUID, lines: Sequence[UsageLine]) -> dict[str, Any]:
    """A reservation's end as `end_reservations` takes it."""
    return _ended(reservation_uuid, "settled", lines)


def released(reservation_uuid: UUID) -> dict[str, Any]:
    """A reservation's end without a bill, as `end_reservations` takes it."""
    return _ended(reservation_uuid, "released")


def extend(session: Session, reservation_uuid: UUID, expires_at: datetime) -> bool:
    """Let a reservation live longer; returns whether it still did."""
    held = sa.update(Reservation).where(Reservation.uuid == reservation_uuid, Reservation.status == "held")
    later = sa.func.greatest(Reservation.expires_at, expires_at)
    return session.execute(held.values(expires_at=later)).rowcount == 1


def has_call(session: Session, machine_uuid: UUID) -> bool:
    """Whether money is held for a model call of this machine: one is under way."""
    mine = (Reservation.machine_uuid == machine_uuid, Reservation.status == "held", Reservation.purpose == AI_CALL)
    return session.scalar(sa.select(Reservation.uuid).where(*mine).limit(1)) is not None


def reap(session: Session, now: datetime | None = None, limit: int = 1000) -> list[Reservation]:
    """End the reservations whose holders are gone: `ai_call` by its last known usage or bound, others given back."""
    is_call = Reservation.purpose == AI_CALL
    expired = (Reservation.status == "held", Reservation.expires_at <= (now or datetime.now(UTC)))
    called = sa.select(Reservation.machine_uuid).where(*expired, is_call).limit(limit)
    # In everybody's order: machines before reservations.
    machines = sa.select(Machine.uuid).where(Machine.uuid.in_(called)).order_by(Machine.uuid)
    callers = session.scalars(machines.with_for_update(key_share=True)).all()
    periods.lock(session)
    ready = sa.or_(~is_call, Reservation.machine_uuid.is_(None), Reservation.machine_uuid.in_(callers))
    mine = sa.select(Reservation).where(*expired, ready).order_by(Reservation.uuid).limit(limit)
    reaped = list(session.scalars(mine.with_for_update(skip_locked=True).execution_options(populate_existing=True)))
    _end(session, [_reaped(reservation) for reservation in reaped])
    for reservation in reaped:
        log.warning(
            "Reaped reservation %s of %s: %s CAD billed.",
            reservation.uuid,
            reservation.holder,
            reservation.settled_cad,
        )
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
    periods.lock(session)
    day = periods.day_of(session, project_uuid, at)
    periods.roll(session, project_uuid, day)
    spent = ledger.write(session, lines, project_uuid=project_uuid, machine_uuid=machine_uuid, day=day)
    if not _charged(session, project_uuid, day, spent):
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
        if row.hard and row.resource_type != "money" and left_of(row) < (count := wanted.get(row.resource_type, 0)):
            return CountExhausted(_short(row, count), row.used_amount + count <= row.allocated_amount)
    tightest = min(money, key=left_of)
    machine = session.get(Machine, values["machine"]) if values["machine"] else None
    left = machine_left(session, machine) if machine is not None else None
    if left is not None and left < wanted["money"] and (left <= left_of(tightest) or not tightest.hard):
        limit = f"its limit of {_plain(machine.max_cad)} CAD"
        message = f"Machine {machine.name} has {_plain(left)} left of {limit}, and {_plain(wanted['money'])} is needed"
        return MachineLimit(left, message)
    return BudgetExhausted(left_of(tightest), _short(tightest, wanted["money"]))


def _short(row: Budget, amount: Decimal) -> str:
    name = "The budget" if row.budget_period == "total" else f"The {row.budget_period} budget"
    name = f"The project's share of the {row.budget_period} pool" if row.pooled else name
    until = "" if row.budget_period == "total" else f" until {row.period_end}"
    return (
        f"{name} has {_plain(left_of(row))} {row.unit} left of {_plain(row.allocated_amount)}{until}, "
        f"and {_plain(amount)} is needed"
    )


def left_of(row: Budget) -> Decimal:
    """What of a budget is neither used nor held; nothing of one that is frozen."""
    if row.frozen_at is not None:
        return Decimal(0)
    return max(Decimal(0), row.allocated_amount - row.used_amount - row.reserved_amount)


def _end(session: Session, ends: Sequence[dict[str, Any]]) -> int:
    """End reservations, in one statement; returns how many were not ended already."""
    if not ends:
        return 0
    session.flush()
    rows = session.execute(_END, {"ends": json.dumps(ends)}).all()
    for row in rows:
        note_frozen(row.reservation, row.froze)
        if (known := session.identity_map.get(identity_key(Reservation, row.reservation))) is not None:
            session.refresh(known)
    return len(rows)


def note_frozen(reservation_uuid: UUID, names: Sequence[str]) -> None:
    """Log the budgets that a reservation's end has frozen."""
    for name in names:
        log.error("The %s is frozen by the bill of reservation %s.", name, reservation_uuid)


def _known(session: Session, reservation_uuid: UUID) -> None:
    if session.get(Reservation, reservation_uuid) is None:
        raise NoSuchReservation(f"There is no reservation {reservation_uuid}")


def _ended(
    reservation_uuid: UUID, status: str, lines: Sequence[UsageLine] = (), metadata: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "reservation": str(reservation_uuid),
        "status": status,
        "lines": [_columns(line) for line in lines],
        "metadata": dict(metadata or {}),
    }


def _columns(line: UsageLine) -> dict[str, Any]:
    """A line by its columns. Numbers are text, so that they stay exact."""
    ledger.check(line)
    columns = {name: value for name, value in vars(line).items() if name not in ("idempotency_key", "metadata")}
    plain: dict[str, Any] = {name: str(value) for name, value in columns.items() if value is not None}
    return {**plain, "key": line.idempotency_key, "metadata": line.metadata}


def _reaped(reservation: Reservation) -> dict[str, Any]:
    if reservation.purpose != AI_CALL:
        return _ended(reservation.uuid, "reaped")
    if known := reservation.metadata_.get("known"):
        marks = {"reaped": True, "holder": reservation.holder}
        lines = [line | {"metadata": line["metadata"] | marks} for line in known]
        return _ended(reservation.uuid, "reaped", metadata={"settled_at_last_usage": True}) | {"lines": lines}
    return _ended(reservation.uuid, "reaped", _bound_lines(reservation), {"settled_at_bound": True})


def _charged(session: Session, project_uuid: UUID, day: date, spent: Mapping[str, Decimal]) -> bool:
    """Put `spent` into used, in every budget of the day, in one statement; whether there was a budget of money.

    Beyond a hard allocation it is an overrun, which freezes the budget.
    """
    reason = f"{_plain(spent.get('money', Decimal(0)))} CAD were billed that nobody had reserved"
    values = {
        "project": project_uuid,
        "day": day,
        "types": list(spent),
        "held": [Decimal(0)] * len(spent),
        "spent": list(spent.values()),
        "freeze": False,
        "reason": reason,
    }
    rows = session.execute(_MOVE, values).all()
    for row in rows:
        if row.froze:
            log.error("The %s budget %s is frozen: %s.", row.budget_period, row.uuid, reason)
    return any(row.resource_type == "money" for row in rows)


def _bound_lines(reservation: Reservation) -> list[UsageLine]:
    why = {"settled_at_bound": True, "reaped": True, "holder": reservation.holder}
    amount, about = reservation.amount_cad, reservation.metadata_
    subtype = about.get("subtype", "claude_api")
    of_model = why | {name: about[name] for name in ("model",) if name in about}
    money = UsageLine("money", subtype, amount=amount, cost_cad=amount, currency="CAD", cost=amount, metadata=of_model)
    others = [
        UsageLine(name, subtype, amount=Decimal(count), unit=periods.UNITS[name], metadata=why)
        for name, count in reservation.amounts.items()
    ]
    return [money, *others]


_RESERVE = sa.text(
    "SELECT * FROM reserve_budgets(:uuid, :project, :machine, :at, CAST(:types AS text[]), "
    "CAST(:amounts AS numeric[]), CAST(:counts AS jsonb), :holder, :purpose, :expires_at, CAST(:metadata AS jsonb))"
)
_END = sa.text("SELECT * FROM end_reservations(CAST(:ends AS jsonb))")
_MOVE = sa.text(
    "SELECT * FROM move_budgets(:project, :day, CAST(:types AS text[]), CAST(:held AS numeric[]), "
    "CAST(:spent AS numeric[]), :freeze, :reason)"
)


def _plain(amount: Decimal) -> str:
    return format(amount.normalize(), "f")
