"""Periods of budgets: half-open, from midnight to midnight in the project's time zone.

A row of `resource_budgets` is one period. The next one is made by `roll`, in the transaction that first needs it: no
job has to have run, and weeks in which nobody did anything have no rows.

Whoever moves money takes its locks in one order, so that nobody waits for ever: machines and their meters; `lock`; rows
of new periods, day by day; reservations, by their ids; budgets, by their ids, all that the transaction will need at
once. So nothing is written or held on a day of a budget before its row is there, and a new row begins with nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import available_timezones

import sqlalchemy as sa
from sqlalchemy.orm import Session

from autovibe.errors import Invalid

#: What can have a budget, and the unit that it is counted in.
UNITS = {
    "money": "CAD",
    "time": "hours",
    "api_calls": "count",
    "cpu": "core_hours",
    "memory": "GB_hours",
    "storage": "GB_hours",
    "network": "GB",
}
#: These are held before they are used, so that they are never overspent; the others can only be counted.
HARD = frozenset({"money", "api_calls"})
PERIODS = ("daily", "weekly", "monthly", "total")
#: A total budget counts all that ever was and will be.
ALWAYS = date(1970, 1, 1)
FOREVER = date(9999, 12, 31)
# A project's own budgets that go on, and have no row of a day.
_OWN = """
    SELECT * FROM (
        SELECT DISTINCT ON (resource_type, budget_period) * FROM resource_budgets
        WHERE project_uuid = {project} AND removed_at IS NULL AND NOT pooled
        ORDER BY resource_type, budget_period, period_start DESC
    ) AS last
    WHERE auto_reset AND since <= {day} AND NOT EXISTS (
        SELECT FROM resource_budgets b
        WHERE b.project_uuid = {project} AND b.resource_type = last.resource_type AND NOT b.pooled
          AND b.budget_period = last.budget_period AND b.removed_at IS NULL AND b.period_start <= {day}
          AND b.period_end > {day})
"""
# The pools that hold on a day, and in which it has no row.
_POOLS = """
    SELECT FROM budget_pools p
    WHERE p.removed_at IS NULL
      AND {day} >= pool_period_start(p.budget_period, p.week_start, project_day({project}, p.created_at))
      AND NOT EXISTS (
        SELECT FROM resource_budgets b
        WHERE b.project_uuid = {project} AND b.resource_type = p.resource_type AND b.budget_period = p.budget_period
          AND b.pooled AND b.removed_at IS NULL AND b.period_start <= {day} AND b.period_end > {day})
"""
_TO_MAKE = f"(EXISTS ({_OWN}) OR EXISTS ({_POOLS}))"
_ROLL = sa.text(f"""
WITH starts AS (
    SELECT *, CASE budget_period
        WHEN 'daily' THEN CAST(:day AS date)
        WHEN 'weekly' THEN period_start + 7 * floor((CAST(:day AS date) - period_start) / 7.0)::integer
        ELSE date_trunc('month', CAST(:day AS timestamp))::date END AS start
    FROM ({_OWN.format(project=":project", day=":day")}) AS own
), spans AS (
    SELECT *, CASE budget_period
        WHEN 'daily' THEN start + 1 WHEN 'weekly' THEN start + 7 ELSE (start + INTERVAL '1 month')::date END AS until
    FROM starts
), next AS (
    SELECT *, used_on(:project, resource_type, start, until) AS used,
           held_on(:project, resource_type, start, until) AS held FROM spans
)
INSERT INTO resource_budgets (project_uuid, resource_type, budget_period, period_start, period_end, since,
                              allocated_amount, base_amount, used_amount, reserved_amount, overrun_amount, unit,
                              auto_reset, hard, soft_percent)
SELECT project_uuid, resource_type, budget_period, start, until, since,
       CASE WHEN hard THEN greatest(base_amount, used + held) ELSE base_amount END, base_amount, used, held,
       CASE WHEN hard THEN 0 ELSE greatest(0, used + held - base_amount) END, unit, true, hard, soft_percent
FROM next ORDER BY resource_type, budget_period
ON CONFLICT DO NOTHING
""")  # noqa: S608 - nobody's words but ours
_IS_TO_ROLL = sa.text("SELECT " + _TO_MAKE.format(project="CAST(:project AS uuid)", day="CAST(:day AS date)"))
_LOCK = sa.text("LOCK TABLE resource_budgets IN ROW EXCLUSIVE MODE")
_LOCK_ALONE = sa.text("LOCK TABLE resource_budgets IN SHARE ROW EXCLUSIVE MODE")
# In one order everywhere: who makes a row is waited for by who wants to make it too.
_TO_ROLL = sa.text(f"""
SELECT project, day FROM unnest(CAST(:projects AS uuid[]), CAST(:days AS date[])) AS w (project, day)
WHERE {_TO_MAKE.format(project="w.project", day="w.day")} ORDER BY project, day
""")  # noqa: S608


_LOCK_ROWS = sa.text("""
SELECT FROM resource_budgets b WHERE project_uuid = :project AND removed_at IS NULL AND EXISTS (
    SELECT FROM unnest(CAST(:days AS date[])) AS day WHERE b.period_start <= day AND day < b.period_end)
ORDER BY uuid FOR NO KEY UPDATE OF b
""")
# What is used or held on days from then on. Also a reservation that was reaped may still be billed.
_LATER = sa.text("""
SELECT day FROM usage_by_day WHERE project_uuid = :project AND day >= :day
UNION SELECT day FROM reservations WHERE project_uuid = :project AND status = 'held' AND day >= :day
UNION SELECT day FROM reservations WHERE project_uuid = :project AND status = 'reaped' AND day >= :day
ORDER BY day
""")


class InvalidPeriod(Invalid):
    """That is not a period."""

    code = "invalid_period"


def lock(session: Session, *, alone: bool = False) -> None:
    """Keep budgets and pools from coming and going in this transaction. First of all, as everybody does.

    `alone`: for who lets one come or go. It counts what others have used and hold, so they end before, or wait.
    """
    session.execute(_LOCK_ALONE if alone else _LOCK)


def day_of(session: Session, project_uuid: UUID, at: datetime | None = None) -> date:
    """The project's day at a time (now)."""
    return session.scalar(sa.select(sa.func.project_day(project_uuid, moment(at))))


def missing(session: Session, project_uuid: UUID, types: list[str], at: datetime) -> sa.Row[Any] | None:
    """A period (`resource_type`, `budget_period`) that has no row for the project's day, or None."""
    day = day_of(session, project_uuid, at)
    query = sa.text("SELECT * FROM missing_periods(:project, CAST(:types AS text[]), :day) LIMIT 1")
    return session.execute(query, {"project": project_uuid, "types": types, "day": day}).first()


def moment(at: datetime | None) -> datetime:
    """A time with a zone; now for None."""
    if at is None:
        return datetime.now(UTC)
    if at.tzinfo is None:
        raise ValueError("a time without a time zone")
    return at


def to_roll(project: str, day: str) -> sa.ColumnElement[bool]:
    """Whether `roll` would make rows; given the names of the columns of the project's uuid and its day.

    A budget that has ended for good is missing, but none to make.
    """
    return sa.literal_column(_TO_MAKE.format(project=project, day=day), sa.Boolean)


def roll(session: Session, project_uuid: UUID, day: date) -> bool:
    """Make the rows of the day's periods that are missing; returns whether there were any to make.

    A day before a budget's first one has no row of it.
    """
    values = {"project": project_uuid, "day": day}
    if not session.scalar(_IS_TO_ROLL, values):
        return False
    lock(session)
    made = session.execute(_ROLL, values).rowcount
    return session.scalar(sa.select(sa.func.roll_pools(project_uuid, day))) + made > 0


def roll_all(session: Session, days: Collection[tuple[UUID, date]]) -> None:
    """`roll` for many (project, day), by one question where there is nothing to make."""
    wanted = sorted(days)
    values = {
        "projects": [project for project, _ in wanted],
        "days": [day for _, day in wanted],
    }
    for project, day in session.execute(_TO_ROLL, values).all():
        roll(session, project, day)


def lock_rows(session: Session, project_uuid: UUID, days: Collection[date]) -> None:
    """Hold all the budgets of these days, whose rows are there: for who moves them by more than one step."""
    session.execute(_LOCK_ROWS, {"project": project_uuid, "days": sorted(days)})


def spent_from(session: Session, project_uuid: UUID, day: date) -> list[date]:
    """The project's days from this one on of which something is used or held: ahead of time, or a clock went back."""
    return list(session.scalars(_LATER, {"project": project_uuid, "day": day}))


def around(period: str, day: date, week_start: int = 1) -> tuple[date, date]:
    """The period that the day lies in, half-open. A week begins on `week_start`: 1 for Monday … 7 for Sunday."""
    if period == "daily":
        return day, day + timedelta(days=1)
    if period == "weekly":
        start = day - timedelta(days=(day.isoweekday() - week_start) % 7)
        return start, start + timedelta(days=7)
    if period == "monthly":
        start = day.replace(day=1)
        return start, (start + timedelta(days=32)).replace(day=1)
    if period == "total":
        return ALWAYS, FOREVER
    raise InvalidPeriod(f"The period must be one of {', '.join(PERIODS)}, not {period!r}")


def checked_zone(name: str) -> str:
    """The name of a time zone; raises InvalidPeriod for one that is not known."""
    if name not in available_timezones():
        raise InvalidPeriod(f"There is no time zone {name!r}", "Give a name such as America/Toronto or UTC.")
    return name
