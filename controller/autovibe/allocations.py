"""Allocations: what a project may use of each resource, in which period.

A project has at most one budget for each resource and period (daily, weekly, monthly, total); all of them hold at once.
"""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import aggregate_order_by, insert
from sqlalchemy.orm import Session

from autovibe import periods, views
from autovibe.errors import Conflict, Invalid, NotFound
from autovibe.ledger import LIMIT, InvalidAmount, amount_of
from autovibe.models import MONEY, Budget

_RANK = sa.case({name: rank for rank, name in enumerate(reversed(periods.PERIODS))}, value=Budget.budget_period)
# As text: asyncpg sends the last day that Python knows as infinity.
_FOREVER = sa.literal_column(f"'{periods.FOREVER}'::date", sa.Date)
#: Money first, the longest period first.
_ORDER = (Budget.resource_type != "money", Budget.resource_type, _RANK)


class NoSuchBudget(NotFound):
    """The project has no such budget."""

    code = "no_such_budget"
    default_hint = "`autovibe budget show` lists those that there are."


def create(session: Session, project_uuid: UUID, amount_cad: Decimal) -> Budget:
    """Give a project its hard total budget in CAD."""
    if get(session, project_uuid) is not None:
        raise Conflict("The project has a budget already")
    return set_budget(session, project_uuid, amount_cad)


def set_budget(
    session: Session,
    project_uuid: UUID,
    amount: Decimal,
    *,
    resource: str = "money",
    period: str = "total",
    auto_reset: bool | None = None,
    soft_percent: int = 80,
    week_start: int = 1,
    at: datetime | None = None,
) -> Budget:
    """The budget of this resource and period, from the present period on; what was used and is held in it counts.

    An amount below what is used and held already is exhausted for this period, and whole from the next one on.
    `auto_reset` (True, but for `total`): the next period begins by itself.
    """
    amount = amount_of(amount, "budget", positive=True)
    _check(resource, period, soft_percent, week_start)
    periods.lock(session, alone=True)
    day = periods.day_of(session, project_uuid, at)
    present = _present(session, project_uuid, resource, period, day)
    start, end = (present.period_start, present.period_end) if present else periods.around(period, day, week_start)
    resets = period != "total" if auto_reset is None else auto_reset
    values = {
        "since": present.since if present else start,
        "base_amount": amount,
        "auto_reset": resets,
        "hard": resource in periods.HARD,
        "soft_percent": soft_percent,
        "frozen_at": None,
        "freeze_reason": None,
    }
    # Those of later periods, which somebody has needed ahead of time, are made anew as well.
    later = sa.update(Budget).where(*_of(project_uuid, resource, period), Budget.period_start > start)
    session.execute(later.values(removed_at=sa.func.now()).execution_options(synchronize_session=False))
    spent = periods.spent_from(session, project_uuid, end) if resets and period != "total" else []
    for span in sorted({(start, end), *(periods.around(period, one, start.isoweekday()) for one in spent)}):
        _put(session, project_uuid, resource, period, span, values)
    budget = _present(session, project_uuid, resource, period, day)
    assert budget is not None
    return budget


def _put(
    session: Session,
    project_uuid: UUID,
    resource: str,
    period: str,
    span: tuple[date, date],
    values: dict[str, Any],
) -> None:
    """The row of a period, with what is used and held on its days; the caller is alone."""
    days = (project_uuid, resource, *span)
    used, reserved = session.execute(sa.select(sa.func.used_on(*days), sa.func.held_on(*days))).one()
    amount, spent = values["base_amount"], used + reserved
    values = values | {
        "period_end": span[1],
        "allocated_amount": max(amount, spent) if values["hard"] else amount,
        "used_amount": used,
        "reserved_amount": reserved,
        "overrun_amount": Decimal(0) if values["hard"] else max(Decimal(0), spent - amount),
    }
    keys = {"project_uuid": project_uuid, "resource_type": resource, "budget_period": period, "period_start": span[0]}
    keys["pooled"] = False
    statement = insert(Budget).values(**keys, **values, unit=periods.UNITS[resource])
    there = {"index_elements": list(keys), "index_where": Budget.removed_at.is_(None)}
    session.execute(statement.on_conflict_do_update(**there, set_=values))


def remove(session: Session, project_uuid: UUID, *, resource: str, period: str) -> None:
    """End a budget; what it was stays in the history. Raises NoSuchBudget."""
    periods.lock(session, alone=True)
    statement = sa.update(Budget).where(*_of(project_uuid, resource, period)).values(removed_at=sa.func.now())
    if session.execute(statement.execution_options(synchronize_session=False)).rowcount == 0:
        raise NoSuchBudget(f"The project has no {period} budget of {resource}")


def top_up(
    session: Session,
    project_uuid: UUID,
    amount: Decimal,
    *,
    resource: str = "money",
    period: str = "total",
    at: datetime | None = None,
) -> Budget:
    """Raise the present period's budget; one that was frozen by an overrun is thawed once the overrun is paid."""
    amount = amount_of(amount, "top-up", positive=True)
    day = periods.day_of(session, project_uuid, at)
    periods.roll(session, project_uuid, day)
    allocated = Budget.allocated_amount + amount
    short = Budget.used_amount + Budget.reserved_amount - allocated
    overrun = sa.func.greatest(Decimal(0), sa.func.least(Budget.overrun_amount, short))
    total = Budget.budget_period == "total"
    statement = (
        sa.update(Budget)
        .where(*_of(project_uuid, resource, period), Budget.period_start <= day, Budget.period_end > day)
        .where(allocated < LIMIT)
        .values(
            allocated_amount=allocated,
            base_amount=sa.case((total, Budget.base_amount + amount), else_=Budget.base_amount),
            overrun_amount=overrun,
            frozen_at=sa.case((overrun > 0, Budget.frozen_at), else_=None),
            freeze_reason=sa.case((overrun > 0, Budget.freeze_reason), else_=None),
        )
        .execution_options(synchronize_session=False)
    )
    topped_up = session.execute(statement).rowcount > 0
    budget = _present(session, project_uuid, resource, period, day)
    if budget is None:
        raise NoSuchBudget(f"The project has no {period} budget of {resource}")
    if not topped_up:
        raise InvalidAmount(
            f"The budget of {budget.allocated_amount.normalize():f} and {amount:f} are too much together"
        )
    return budget


def get(session: Session, project_uuid: UUID) -> Budget | None:
    """A project's total budget of money, as it is now in the database."""
    query = sa.select(Budget).where(*_of(project_uuid, "money", "total"))
    return session.scalars(query.execution_options(populate_existing=True)).first()


def find(session: Session, project_uuid: UUID, *, resource: str, period: str) -> Budget | None:
    """A project's budget of its own, in the newest of its periods that have begun; None when there is none."""
    begun = Budget.period_start <= periods.day_of(session, project_uuid)
    query = sa.select(Budget).where(*_of(project_uuid, resource, period), begun).order_by(Budget.period_start.desc())
    return session.scalars(query.limit(1).execution_options(populate_existing=True)).first()


def present(session: Session, project_uuid: UUID, at: datetime | None = None) -> list[Budget]:
    """The budgets that hold now, money first, the longest period first."""
    day = periods.day_of(session, project_uuid, at)
    periods.roll(session, project_uuid, day)
    query = (
        sa.select(Budget)
        .where(Budget.project_uuid == project_uuid, Budget.removed_at.is_(None), *_on(day))
        .order_by(*_ORDER)
        .execution_options(populate_existing=True)
    )
    return list(session.scalars(query))


def history(session: Session, project_uuid: UUID, limit: int = 100) -> list[Budget]:
    """All periods that there were, the newest first."""
    query = sa.select(Budget).where(Budget.project_uuid == project_uuid)
    newest = query.order_by(Budget.period_start.desc(), Budget.resource_type, _RANK).limit(limit)
    return list(session.scalars(newest.execution_options(populate_existing=True)))


def view(budget: Budget) -> dict[str, Any]:
    """A budget as plain data; amounts in its unit."""
    left = budget.allocated_amount - budget.used_amount - budget.reserved_amount
    return {
        "resource": budget.resource_type,
        "unit": budget.unit,
        "period": budget.budget_period,
        "pooled": budget.pooled,
        "period_start": budget.period_start,
        "period_end": None if budget.period_end == periods.FOREVER else budget.period_end,
        "allocated": budget.allocated_amount,
        "each_period": budget.base_amount,
        "used": budget.used_amount,
        "reserved": budget.reserved_amount,
        "available": Decimal(0) if budget.frozen_at else max(Decimal(0), left),
        "overrun": budget.overrun_amount,
        "hard": budget.hard,
        "auto_reset": budget.auto_reset,
        "removed_at": budget.removed_at,
        "frozen_at": budget.frozen_at,
        "freeze_reason": budget.freeze_reason,
    }


def written(project_uuid: Any, day: Any) -> dict[str, Any]:
    """SQL for a project's budgets that hold on its day, and for its total one of money, as JSON in the form of `view`.

    For many projects in one statement; the periods of the day are there (`periods.roll`).
    """
    left = Budget.allocated_amount - Budget.used_amount - Budget.reserved_amount
    shown = views.as_json(
        {
            "resource": Budget.resource_type,
            "unit": Budget.unit,
            "period": Budget.budget_period,
            "pooled": Budget.pooled,
            "period_start": Budget.period_start,
            "period_end": sa.func.nullif(Budget.period_end, _FOREVER),
            "allocated": Budget.allocated_amount,
            "each_period": Budget.base_amount,
            "used": Budget.used_amount,
            "reserved": Budget.reserved_amount,
            "available": sa.case(
                (Budget.frozen_at.is_(None), sa.func.greatest(0, left, type_=MONEY)),
                else_=sa.literal_column("0", MONEY),
            ),
            "overrun": Budget.overrun_amount,
            "hard": Budget.hard,
            "auto_reset": Budget.auto_reset,
            "removed_at": Budget.removed_at,
            "frozen_at": Budget.frozen_at,
            "freeze_reason": Budget.freeze_reason,
        }
    )
    holds = (Budget.project_uuid == project_uuid, Budget.removed_at.is_(None), *_on(day))
    every = sa.func.json_agg(aggregate_order_by(shown, *_ORDER))
    total = sa.select(shown).where(*holds, Budget.resource_type == "money", Budget.budget_period == "total")
    return {
        "budget": total.limit(1).scalar_subquery(),
        "budgets": sa.select(sa.func.coalesce(every, sa.literal_column("'[]'::json"))).where(*holds).scalar_subquery(),
    }


def _of(project_uuid: UUID, resource: str, period: str) -> tuple[Any, ...]:
    return (
        Budget.project_uuid == project_uuid,
        Budget.resource_type == resource,
        Budget.budget_period == period,
        Budget.removed_at.is_(None),
        Budget.pooled.is_(False),
    )


def _on(day: Any) -> tuple[Any, ...]:
    return Budget.period_start <= day, Budget.period_end > day


def _present(session: Session, project_uuid: UUID, resource: str, period: str, day: date) -> Budget | None:
    query = sa.select(Budget).where(*_of(project_uuid, resource, period), *_on(day))
    return session.scalars(query.execution_options(populate_existing=True)).first()


def _check(resource: str, period: str, soft_percent: int, week_start: int) -> None:
    if resource not in periods.UNITS:
        raise Invalid(f"The resource must be one of {', '.join(periods.UNITS)}, not {resource!r}")
    if period not in periods.PERIODS:
        raise periods.InvalidPeriod(f"The period must be one of {', '.join(periods.PERIODS)}, not {period!r}")
    if not 1 <= soft_percent <= 100:
        raise Invalid(f"The soft threshold must be between 1 and 100 percent, not {soft_percent}")
    if not 1 <= week_start <= 7:
        raise Invalid(f"A week starts on a day from 1 (Monday) to 7 (Sunday), not {week_start}")
