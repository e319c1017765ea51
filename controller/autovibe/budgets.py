"""Budgets and reservations: what is spent was reserved before, what is reserved was there.

Every function is one step of the caller's transaction. What must always hold is in the database (a CHECK on the budget
row); each step here is one conditional UPDATE of that row, never a check and then a spending.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from autovibe import ledger
from autovibe.errors import AutovibeError, Conflict, NotFound
from autovibe.ledger import UsageLine, amount_of
from autovibe.models import Budget, Reservation

log = logging.getLogger(__name__)

#: A call that was forwarded may have been billed: reaped, it is settled at its bound.
AI_CALL = "ai_call"
FOREVER = date(9999, 12, 31)


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


class NoSuchReservation(NotFound):
    """There is no such reservation."""

    code = "no_such_reservation"


def create(session: Session, project_uuid: UUID, amount_cad: Decimal) -> Budget:
    """Give a project its hard total budget in CAD."""
    amount = amount_of(amount_cad, "budget", positive=True)
    if get(session, project_uuid) is not None:
        raise Conflict("The project has a budget already")
    budget = Budget(
        project_uuid=project_uuid,
        resource_type="money",
        budget_period="total",
        period_start=datetime.now(UTC).date(),
        period_end=FOREVER,
        allocated_amount=amount,
        unit="CAD",
        auto_reset=False,
    )
    session.add(budget)
    session.flush()
    session.refresh(budget)
    return budget


def get(session: Session, project_uuid: UUID) -> Budget | None:
    """A project's total budget, as it is now in the database."""
    return session.scalars(
        sa.select(Budget).where(*_total(project_uuid)).execution_options(populate_existing=True)
    ).first()


def available(session: Session, project_uuid: UUID) -> Decimal:
    """What can be reserved now: 0 without a budget, or when it is frozen."""
    budget = get(session, project_uuid)
    if budget is None or budget.frozen_at is not None:
        return Decimal(0)
    return max(Decimal(0), budget.allocated_amount - budget.used_amount - budget.reserved_amount)


def view(budget: Budget) -> dict[str, Any]:
    """A budget as plain data; amounts in its unit."""
    left = budget.allocated_amount - budget.used_amount - budget.reserved_amount
    return {
        "unit": budget.unit,
        "period": budget.budget_period,
        "allocated": budget.allocated_amount,
        "used": budget.used_amount,
        "reserved": budget.reserved_amount,
        "available": Decimal(0) if budget.frozen_at else max(Decimal(0), left),
        "overrun": budget.overrun_amount,
        "frozen_at": budget.frozen_at,
        "freeze_reason": budget.freeze_reason,
    }


def reserve(
    session: Session,
    *,
    project_uuid: UUID,
    machine_uuid: UUID | None = None,
    amount_cad: Decimal,
    holder: str,
    purpose: str,
    expires_at: datetime,
    metadata: dict[str, Any] | None = None,
) -> Reservation:
    """Hold a part of the budget, or raise BudgetExhausted (`available` says how much there is)."""
    amount = amount_of(amount_cad, "reservation", positive=True)
    spare = Budget.used_amount + Budget.reserved_amount + amount <= Budget.allocated_amount
    statement = (
        sa.update(Budget)
        .where(*_total(project_uuid), Budget.frozen_at.is_(None), spare)
        .values(reserved_amount=Budget.reserved_amount + amount)
        .returning(Budget.uuid)
        .execution_options(synchronize_session=False)
    )
    budget_uuid = session.scalar(statement)
    if budget_uuid is None:
        raise _refusal(session, project_uuid, amount)
    reservation = Reservation(
        budget_uuid=budget_uuid,
        project_uuid=project_uuid,
        machine_uuid=machine_uuid,
        amount_cad=amount,
        holder=holder,
        purpose=purpose,
        status="held",
        expires_at=expires_at,
        metadata_=metadata or {},
    )
    session.add(reservation)
    session.flush()
    return reservation


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
    billed = spent + (Decimal(0) if held else reservation.settled_cad or Decimal(0))
    frozen = None
    if billed > reservation.amount_cad:
        frozen = f"reservation {reservation.uuid} of {reservation.amount_cad} CAD was billed {billed} CAD"
        reservation.metadata_ = reservation.metadata_ | {"above_bound_cad": str(billed - reservation.amount_cad)}
    _move(session, reservation.budget_uuid, held=held, spent=spent, freeze=frozen)
    _end(reservation, "settled", billed)
    session.flush()


def release(session: Session, reservation_uuid: UUID) -> bool:
    """Give back what was held; returns whether it was. On an ended reservation it changes nothing."""
    reservation = _locked(session, reservation_uuid)
    if reservation.status != "held":
        return False
    _move(session, reservation.budget_uuid, held=reservation.amount_cad, spent=Decimal(0))
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
        .order_by(Reservation.budget_uuid, Reservation.uuid)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    reaped = list(session.scalars(expired))
    for reservation in reaped:
        billed = reservation.amount_cad if reservation.purpose == AI_CALL else Decimal(0)
        if billed:
            _write(session, reservation, [_bound_line(reservation)])
            reservation.metadata_ = reservation.metadata_ | {"settled_at_bound": True}
        _move(session, reservation.budget_uuid, held=reservation.amount_cad, spent=billed)
        _end(reservation, "reaped", billed)
        log.warning("Reaped reservation %s of %s: %s CAD billed.", reservation.uuid, reservation.holder, billed)
    session.flush()
    return reaped


def charge(
    session: Session, *, project_uuid: UUID, machine_uuid: UUID | None = None, lines: Sequence[UsageLine]
) -> Decimal:
    """Book what nobody reserved (metering, a correction); returns its CAD. Above the allocation it is an overrun."""
    spent = ledger.write(session, lines, project_uuid=project_uuid, machine_uuid=machine_uuid)
    budget_uuid = session.scalar(sa.select(Budget.uuid).where(*_total(project_uuid)))
    if budget_uuid is None:
        raise NoBudget(Decimal(0))
    _move(session, budget_uuid, held=Decimal(0), spent=spent)
    return spent


def top_up(session: Session, project_uuid: UUID, amount_cad: Decimal) -> Budget:
    """Raise a project's budget; one that was frozen by an overrun is thawed once the overrun is paid."""
    amount = amount_of(amount_cad, "top-up", positive=True)
    allocated = Budget.allocated_amount + amount
    short = Budget.used_amount + Budget.reserved_amount - allocated
    overrun = sa.func.greatest(Decimal(0), sa.func.least(Budget.overrun_amount, short))
    statement = (
        sa.update(Budget)
        .where(*_total(project_uuid))
        .values(
            allocated_amount=allocated,
            overrun_amount=overrun,
            frozen_at=sa.case((overrun > 0, Budget.frozen_at), else_=None),
            freeze_reason=sa.case((overrun > 0, Budget.freeze_reason), else_=None),
        )
        .execution_options(synchronize_session=False)
    )
    if session.execute(statement).rowcount == 0:
        raise NoBudget(Decimal(0))
    budget = get(session, project_uuid)
    assert budget is not None
    return budget


def _total(project_uuid: UUID) -> tuple[Any, ...]:
    return (
        Budget.project_uuid == project_uuid,
        Budget.resource_type == "money",
        Budget.budget_period == "total",
    )


def _refusal(session: Session, project_uuid: UUID, amount: Decimal) -> BudgetExhausted:
    budget = get(session, project_uuid)
    if budget is None:
        return NoBudget(Decimal(0))
    if budget.frozen_at is not None:
        return BudgetFrozen(Decimal(0), f"The budget is frozen: {budget.freeze_reason}")
    left = max(Decimal(0), budget.allocated_amount - budget.used_amount - budget.reserved_amount)
    message = (
        f"The budget has {_plain(left)} CAD left of {_plain(budget.allocated_amount)}, and {_plain(amount)} is needed"
    )
    return BudgetExhausted(left, message)


def _locked(session: Session, reservation_uuid: UUID) -> Reservation:
    query = sa.select(Reservation).where(Reservation.uuid == reservation_uuid).with_for_update()
    reservation = session.scalars(query.execution_options(populate_existing=True)).first()
    if reservation is None:
        raise NoSuchReservation(f"There is no reservation {reservation_uuid}")
    return reservation


def _write(session: Session, reservation: Reservation, lines: Sequence[UsageLine]) -> Decimal:
    return ledger.write(
        session,
        lines,
        project_uuid=reservation.project_uuid,
        machine_uuid=reservation.machine_uuid,
        reservation_uuid=reservation.uuid,
    )


def _move(session: Session, budget_uuid: UUID, *, held: Decimal, spent: Decimal, freeze: str | None = None) -> None:
    """Take `held` from reserved and put `spent` into used, in one statement; beyond the allocation it is an overrun."""
    used, reserved = Budget.used_amount + spent, Budget.reserved_amount - held
    short = used + reserved - Budget.allocated_amount
    frozen = sa.or_(sa.true() if freeze else sa.false(), short > Budget.overrun_amount)
    reason = freeze or f"{spent} CAD were billed that nobody had reserved"
    statement = (
        sa.update(Budget)
        .where(Budget.uuid == budget_uuid)
        .values(
            used_amount=used,
            reserved_amount=reserved,
            overrun_amount=sa.func.greatest(Budget.overrun_amount, short),
            frozen_at=sa.case((frozen, sa.func.coalesce(Budget.frozen_at, sa.func.now())), else_=Budget.frozen_at),
            freeze_reason=sa.case((frozen, sa.func.coalesce(Budget.freeze_reason, reason)), else_=Budget.freeze_reason),
        )
        .returning(Budget.frozen_at)
        .execution_options(synchronize_session=False)
    )
    if session.scalar(statement) is not None and (freeze or spent > held):
        log.error("Budget %s is frozen: %s.", budget_uuid, reason)


def _end(reservation: Reservation, status: str, billed: Decimal | None) -> None:
    reservation.status, reservation.settled_cad = status, billed
    reservation.ended_at = datetime.now(UTC)


def _bound_line(reservation: Reservation) -> UsageLine:
    return UsageLine(
        resource_type="money",
        resource_subtype="claude_api",
        amount=reservation.amount_cad,
        unit="CAD",
        cost_cad=reservation.amount_cad,
        currency="CAD",
        cost=reservation.amount_cad,
        metadata={"settled_at_bound": True, "holder": reservation.holder},
    )


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


def _plain(amount: Decimal) -> str:
    return format(amount.normalize(), "f")
