"""Pools: an amount of each period that the projects share in proportion to their greediness.

A project's share is a budget of its own (`pooled`), so that spending knows nothing of pools: what is held and used is
held and used within the share. `share` moves what is neither. Those who are active divide the pool by their
greediness; who is idle keeps its floor and what it has used, the rest is lent on, and taken back when it wants it, as
far as the others have not spent it. One transaction at a time shares a pool; it never waits for a budget's row, so
that nobody who spends waits for it in turn.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from autovibe import periods
from autovibe.errors import Invalid, NotFound
from autovibe.fairshare import Member, shares
from autovibe.ledger import amount_of
from autovibe.models import HUB, Budget, Machine, Pool, PoolLimit, Project

PERIODS = ("daily", "weekly", "monthly")
RUNNING = ("spawning", "active", "working", "checkpointing")
#: How long who was refused waits for another one that shares the same pool, which takes a moment.
PATIENCE_MS = 2000
_LOCK_MINE = sa.text("SELECT FROM lock_budgets(:project, CAST(:types AS text[]), :day)")


class NoSuchPool(NotFound):
    """There is no such pool."""

    code = "no_such_pool"
    default_hint = "`autovibe pool show` lists those that there are."


def set_pool(
    session: Session,
    amount: Decimal,
    *,
    period: str,
    resource: str = "money",
    week_start: int = 1,
    at: datetime | None = None,
) -> Pool:
    """Share this amount of each period among the projects, from the present one on; what was used in it counts."""
    amount = amount_of(amount, "pool", positive=True)
    if resource not in periods.HARD:
        raise Invalid(f"A pool is of {' or '.join(sorted(periods.HARD))}, not of {resource!r:.50}")
    if period not in PERIODS:
        raise periods.InvalidPeriod(f"A pool's period is one of {', '.join(PERIODS)}, not {period!r:.50}")
    periods.lock(session, alone=True)
    pool = find(session, period, resource)
    if pool is None:
        kind = {"resource_type": resource, "budget_period": period, "unit": periods.UNITS[resource]}
        pool = Pool(**kind, amount=amount, week_start=week_start, created_at=periods.moment(at))
        session.add(pool)
    pool.amount = amount
    session.flush()
    for project in session.scalars(sa.select(Project.uuid).order_by(Project.uuid)).all():
        today = periods.day_of(session, project, at)
        for day in (today, *periods.spent_from(session, project, today)):
            periods.roll(session, project, day)
    share_all(session, at)
    return pool


def remove(session: Session, *, period: str, resource: str = "money") -> None:
    """End a pool: the projects are limited by their own budgets only. Raises NoSuchPool."""
    periods.lock(session, alone=True)
    pool = find(session, period, resource)
    if pool is None:
        raise NoSuchPool(f"There is no {period} pool of {resource}")
    now = sa.func.now()
    pool.removed_at = now
    rows = sa.update(Budget).where(*_of(pool), Budget.removed_at.is_(None)).values(removed_at=now)
    session.execute(rows.execution_options(synchronize_session=False))
    session.flush()


def limit(
    session: Session,
    project_uuid: UUID,
    *,
    period: str,
    floor: Decimal = Decimal(0),
    cap: Decimal | None = None,
    resource: str = "money",
    at: datetime | None = None,
) -> None:
    """What a project's share of a pool is at least (never lent to others) and at most. Raises NoSuchPool."""
    floor = amount_of(floor, "floor")
    cap = None if cap is None else amount_of(cap, "cap")
    if cap is not None and cap < floor:
        raise Invalid(f"The cap {cap} is below the floor {floor}")
    pool = _locked(session, period, resource)
    others = sa.select(sa.func.coalesce(sa.func.sum(PoolLimit.floor_amount), 0)).where(
        PoolLimit.pool_uuid == pool.uuid, PoolLimit.project_uuid != project_uuid
    )
    if (promised := session.scalar(others) + floor) > pool.amount:
        raise Invalid(f"The floors would be {promised.normalize():f}, more than the pool's {pool.amount.normalize():f}")
    session.merge(PoolLimit(pool_uuid=pool.uuid, project_uuid=project_uuid, floor_amount=floor, cap_amount=cap))
    session.flush()
    share(session, pool, periods.day_of(session, project_uuid, at))


def limits_of(session: Session, pool: Pool | None, project_uuid: UUID) -> dict[str, Decimal | None] | None:
    """The floor and the cap of a project's share, when they were set."""
    row = session.get(PoolLimit, (pool.uuid, project_uuid)) if pool is not None else None
    return None if row is None else {"floor": row.floor_amount, "cap": row.cap_amount}


def find(session: Session, period: str, resource: str = "money") -> Pool | None:
    """The pool of a period that holds, or None."""
    mine = (Pool.resource_type == resource, Pool.budget_period == period, Pool.removed_at.is_(None))
    return session.scalars(sa.select(Pool).where(*mine)).first()


def all_of(session: Session) -> list[Pool]:
    """The pools that hold."""
    held = sa.select(Pool).where(Pool.removed_at.is_(None))
    return list(session.scalars(held.order_by(Pool.resource_type.desc(), Pool.budget_period)))


def view(session: Session, pool: Pool, at: datetime | None = None) -> dict[str, Any]:
    """A pool with the shares of its projects' present periods, as plain data; amounts in its unit."""
    query = (
        sa.select(Budget, Project, PoolLimit)
        .join(Project, Project.uuid == Budget.project_uuid)
        .outerjoin(PoolLimit, sa.and_(PoolLimit.pool_uuid == pool.uuid, PoolLimit.project_uuid == Project.uuid))
        .where(
            *_of(pool),
            Budget.removed_at.is_(None),
            Budget.period_start <= sa.func.project_day(Project.uuid, periods.moment(at)),
            Budget.period_end > sa.func.project_day(Project.uuid, periods.moment(at)),
        )
        .order_by(Project.name)
    )
    return {
        "resource": pool.resource_type,
        "period": pool.budget_period,
        "amount": pool.amount,
        "unit": pool.unit,
        "shares": [
            {
                "project": project.name,
                "greediness": project.greediness,
                "share": budget.allocated_amount,
                "used": budget.used_amount,
                "reserved": budget.reserved_amount,
                "floor": limits.floor_amount if limits else None,
                "cap": limits.cap_amount if limits else None,
                "until": budget.period_end,
            }
            for budget, project, limits in session.execute(query.execution_options(populate_existing=True))
        ],
    }


# Sharing


def claim(
    session: Session, project_uuid: UUID, at: datetime | None = None, *, types: Collection[str] = periods.HARD
) -> bool:
    """Take back, and borrow, what a project that wants to spend has a right to; returns whether there is a pool.

    For one project in a transaction, of the types that it wants. Its own budgets of these are locked first, in
    everybody's order; then it waits for nobody but who shares the same pool, and for him not long.
    """
    pools = [pool for pool in all_of(session) if pool.resource_type in types]
    if not pools:
        return False
    day = periods.day_of(session, project_uuid, at)
    periods.roll(session, project_uuid, day)
    session.execute(_LOCK_MINE, {"project": project_uuid, "types": list(types), "day": day})
    for pool in pools:
        try:
            with session.begin_nested():
                session.execute(sa.text(f"SET LOCAL lock_timeout = {PATIENCE_MS}"))
                session.execute(sa.select(Pool.uuid).where(Pool.uuid == pool.uuid).with_for_update())
                session.execute(sa.text("SET LOCAL lock_timeout = DEFAULT"))
        except OperationalError as error:
            if getattr(error.orig, "pgcode", None) != "55P03":  # lock_not_available
                raise
            # Not the next one either: pools are locked in one order everywhere.
            break
        share(session, pool, day, wanting=project_uuid)
    return True


def share_all(session: Session, at: datetime | None = None) -> None:
    """Share every pool anew, in each of its present periods: as time zones have it, there may be two."""
    periods.lock(session)
    days = sa.select(sa.func.project_day(Project.uuid, periods.moment(at))).distinct()
    present = session.scalars(days).all()
    for pool in all_of(session):
        session.execute(sa.select(Pool.uuid).where(Pool.uuid == pool.uuid).with_for_update())
        starts = {periods.around(pool.budget_period, day, pool.week_start)[0] for day in present}
        for start in sorted(starts):
            share(session, pool, start)


def share(session: Session, pool: Pool, day: date, wanting: UUID | None = None) -> None:
    """Divide a pool's period that a day lies in; the caller has locked the pool.

    Rows that others have locked are left as they are. `wanting`: a project that is active, whatever its machines are.
    """
    start, _ = periods.around(pool.budget_period, day, pool.week_start)
    mine = (*_of(pool), Budget.period_start == start, Budget.removed_at.is_(None))
    fresh = {"populate_existing": True}
    free = sa.select(Budget).where(*mine).order_by(Budget.uuid).with_for_update(key_share=True, skip_locked=True)
    rows = list(session.scalars(free.execution_options(**fresh)))
    taken = sa.select(sa.func.coalesce(sa.func.sum(Budget.allocated_amount), 0))
    kept = session.scalar(taken.where(*mine, Budget.uuid.not_in([row.uuid for row in rows])))
    members = _members(session, pool, rows, wanting)
    # Those who have not come yet today keep their floors; the running ones their part as well.
    absent = _absent(session, pool, rows, start, wanting)
    found = shares(pool.amount - kept, [*members, *absent])
    for row, new in zip(rows, found, strict=False):
        _give(row, new)
    session.flush()


def _give(row: Budget, allocated: Decimal) -> None:
    overrun = max(Decimal(0), row.used_amount + row.reserved_amount - allocated)
    if row.overrun_amount > 0 and overrun == 0:
        row.frozen_at = row.freeze_reason = None
    row.allocated_amount, row.overrun_amount = allocated, overrun


def _members(session: Session, pool: Pool, rows: Sequence[Budget], wanting: UUID | None) -> list[Member]:
    known = _known(session, pool, [row.project_uuid for row in rows])
    members = []
    for row in rows:
        greediness, running, floor, cap = known[row.project_uuid]
        members.append(
            Member(
                committed=row.used_amount + row.reserved_amount - row.overrun_amount,
                debt=row.overrun_amount,
                greediness=greediness,
                active=running or row.reserved_amount > 0 or row.project_uuid == wanting,
                floor=floor,
                cap=cap,
            )
        )
    return members


def _absent(session: Session, pool: Pool, rows: Sequence[Budget], start: date, wanting: UUID | None) -> list[Member]:
    """Projects that have no row of the period yet."""
    there = sa.select(Budget.project_uuid).where(*_of(pool), Budget.period_start == start, Budget.removed_at.is_(None))
    others = session.scalars(sa.select(Project.uuid).where(Project.uuid.not_in(there))).all()
    known = _known(session, pool, others).values()
    return [
        Member(Decimal(0), greediness, running, Decimal(0), floor, cap) for greediness, running, floor, cap in known
    ]


def _known(
    session: Session, pool: Pool, projects: Sequence[UUID]
) -> dict[UUID, tuple[Decimal, bool, Decimal, Decimal | None]]:
    """(greediness, whether a machine runs or is to, floor, cap) of each project."""
    # Who was paused for want of money wants it still.
    wants = sa.or_(Machine.status.in_(RUNNING), Machine.pause_reason == "budget") & (Machine.machine_type != HUB)
    running = sa.exists().where(Machine.project_uuid == Project.uuid, Machine.status != "terminated", wants)
    query = (
        sa.select(Project.uuid, Project.greediness, running, PoolLimit.floor_amount, PoolLimit.cap_amount)
        .outerjoin(PoolLimit, sa.and_(PoolLimit.pool_uuid == pool.uuid, PoolLimit.project_uuid == Project.uuid))
        .where(Project.uuid.in_(projects))
    )
    return {row[0]: (row[1], row[2], row[3] or Decimal(0), row[4]) for row in session.execute(query)}


@dataclass(frozen=True)
class Preemptable:
    """A running machine, and how far its project is above its fair part of the pools (1: just at it)."""

    machine_uuid: UUID
    project_uuid: UUID
    above: Decimal


def preemption_order(session: Session, at: datetime | None = None) -> list[Preemptable]:
    """The running machines, those first that are to be paused first when there is too little of something.

    First of all the projects that have taken most of the pools beside their fair part, then the least greedy, then
    the youngest machine: it has the least to lose.
    """
    above: dict[UUID, Decimal] = {}
    for pool in all_of(session):
        for project, ratio in _above(session, pool, at).items():
            above[project] = max(ratio, above.get(project, Decimal(0)))
    machines = session.execute(
        sa.select(Machine.uuid, Machine.project_uuid, Machine.spawned_at, Project.greediness)
        .join(Project, Project.uuid == Machine.project_uuid)
        .where(Machine.status.in_(RUNNING), Machine.machine_type != HUB)
    ).all()
    ordered = sorted(
        machines,
        key=lambda row: (
            -above.get(row.project_uuid, Decimal(0)),
            row.greediness,
            -row.spawned_at.timestamp(),
            row.uuid,
        ),
    )
    return [Preemptable(row.uuid, row.project_uuid, above.get(row.project_uuid, Decimal(0))) for row in ordered]


def _above(session: Session, pool: Pool, at: datetime | None) -> dict[UUID, Decimal]:
    """What each running project has committed beside its fair part; of no greediness any is too much."""
    day = sa.func.project_day(Budget.project_uuid, periods.moment(at))
    present = sa.select(Budget).where(
        *_of(pool), Budget.removed_at.is_(None), Budget.period_start <= day, Budget.period_end > day
    )
    rows = list(session.scalars(present.execution_options(populate_existing=True)))
    known = _known(session, pool, [row.project_uuid for row in rows])
    total = sum((known[row.project_uuid][0] for row in rows if known[row.project_uuid][1]), Decimal(0))
    found = {}
    for row in rows:
        greediness, running, *_ = known[row.project_uuid]
        if running:
            fair = pool.amount * greediness / total if total else Decimal(0)
            committed = row.used_amount + row.reserved_amount
            found[row.project_uuid] = committed / fair if fair else committed and Decimal("Infinity")
    return found


def _locked(session: Session, period: str, resource: str) -> Pool:
    periods.lock(session)
    pool = find(session, period, resource)
    if pool is None:
        raise NoSuchPool(f"There is no {period} pool of {resource}")
    session.execute(sa.select(Pool.uuid).where(Pool.uuid == pool.uuid).with_for_update())
    return pool


def _of(pool: Pool) -> tuple[Any, ...]:
    return (
        Budget.pooled.is_(True),
        Budget.resource_type == pool.resource_type,
        Budget.budget_period == pool.budget_period,
    )
