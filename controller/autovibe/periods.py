"""Periods of budgets: half-open, from midnight to midnight in the project's time zone.

A row of `resource_budgets` is one period. The next one is made by `roll`, in the transaction that first needs it: no
job has to have run, and weeks in which nobody did anything have no rows.
"""

from __future__ import annotations

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
_ROLL = sa.text("""
WITH last AS (
    SELECT DISTINCT ON (resource_type, budget_period) * FROM resource_budgets
    WHERE project_uuid = :project AND removed_at IS NULL
    ORDER BY resource_type, budget_period, period_start DESC
), starts AS (
    SELECT *, CASE budget_period
        WHEN 'daily' THEN CAST(:day AS date)
        WHEN 'weekly' THEN period_start + 7 * floor((CAST(:day AS date) - period_start) / 7.0)::integer
        ELSE date_trunc('month', CAST(:day AS timestamp))::date END AS start
    FROM last
    WHERE auto_reset AND (resource_type, budget_period) IN (
        SELECT resource_type, budget_period FROM missing_periods(:project, CAST(:types AS text[]), :day)
    )
), spans AS (
    SELECT *, CASE budget_period
        WHEN 'daily' THEN start + 1 WHEN 'weekly' THEN start + 7 ELSE (start + INTERVAL '1 month')::date END AS until
    FROM starts
), next AS (
    SELECT *, used_on(:project, resource_type, start, until) AS used,
           held_on(:project, resource_type, start, until) AS held FROM spans
)
INSERT INTO resource_budgets (project_uuid, resource_type, budget_period, period_start, period_end, allocated_amount,
                              base_amount, used_amount, reserved_amount, overrun_amount, unit, auto_reset, hard,
                              soft_percent)
SELECT project_uuid, resource_type, budget_period, start, until,
       CASE WHEN hard THEN greatest(base_amount, used + held) ELSE base_amount END, base_amount, used, held,
       CASE WHEN hard THEN 0 ELSE greatest(0, used + held - base_amount) END, unit, true, hard, soft_percent
FROM next ORDER BY resource_type, budget_period
ON CONFLICT DO NOTHING
""")


class InvalidPeriod(Invalid):
    """That is not a period."""

    code = "invalid_period"


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


def roll(session: Session, project_uuid: UUID, day: date) -> bool:
    """Make the rows of the day's periods that are missing; returns whether there were any to make.

    Such a row begins with what was used and held on its days: nothing, unless a clock went back.
    """
    values = {"project": project_uuid, "day": day, "types": list(UNITS)}
    return session.execute(_ROLL, values).rowcount > 0


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
