"""The scheduler's jobs as the database knows them: when each last succeeded, and which are overdue."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from autovibe.models import SchedulerJob

#: A job is overdue after so many of its intervals, and not before so many seconds.
LATE_INTERVALS, LATE_SECONDS = 3, 60


def last_successes(session: Session) -> dict[str, datetime]:
    """By job, for those that have ever succeeded."""
    query = sa.select(SchedulerJob.name, SchedulerJob.last_success_at).where(SchedulerJob.last_success_at.is_not(None))
    return dict(session.execute(query).all())


def succeeded(session: Session, name: str, every: float) -> None:
    """The job has been done, when this transaction commits."""
    _note(session, name, every, {"last_success_at": datetime.now(UTC)})


def failed(session: Session, name: str, every: float, error: str) -> None:
    """The job has failed."""
    _note(session, name, every, {"last_failure_at": datetime.now(UTC), "last_error": error[:2000]})


def views(session: Session, at: datetime | None = None) -> list[dict[str, Any]]:
    """The jobs as plain data, with `overdue`."""
    now = at or datetime.now(UTC)
    return [_view(row, now) for row in session.scalars(sa.select(SchedulerJob).order_by(SchedulerJob.name))]


def _note(session: Session, name: str, every: float, values: dict[str, Any]) -> None:
    statement = insert(SchedulerJob).values(name=name, every_seconds=every, **values)
    changes = {"every_seconds": every, **values}
    session.execute(statement.on_conflict_do_update(index_elements=["name"], set_=changes))


def _view(row: SchedulerJob, now: datetime) -> dict[str, Any]:
    late = timedelta(seconds=max(LATE_SECONDS, LATE_INTERVALS * row.every_seconds))
    last = row.last_success_at
    is_failing = row.last_failure_at is not None and (last is None or row.last_failure_at > last)
    return {
        "name": row.name,
        "every_seconds": row.every_seconds,
        "last_success_at": last,
        "overdue": last is None or now - last > late,
        "error": row.last_error if is_failing else None,
    }
