"""What was used, as the API shows it: by day, and how well it was used."""

from __future__ import annotations

from datetime import date
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from autovibe import ledger, periods, views
from autovibe.models import Machine, Project, Usage

_COLUMNS = ("project_uuid", "day", "machine_uuid", "resource_type", "model", "lines", "amount", "cad")
_TOKENS = ("input_tokens", "cache_read_tokens", "cache_write_tokens")
#: The ledger's sums, which its lines keep up to date.
BY_DAY = sa.table("usage_by_day", *(sa.column(name) for name in (*_COLUMNS, *_TOKENS)))


def by_day(session: Session, project_uuid: UUID, since: date, until: date | None = None) -> list[dict[str, Any]]:
    """What a project used on each of its days, resource by resource; `until` is the last day. Money is in CAD."""
    day, resource = BY_DAY.c.day, BY_DAY.c.resource_type
    query = (
        sa.select(day, resource.label("resource"), sa.func.sum(BY_DAY.c.amount), sa.func.sum(BY_DAY.c.cad))
        .where(BY_DAY.c.project_uuid == project_uuid, day >= since)
        .group_by(day, resource)
        .order_by(day, resource)
    )
    if until is not None:
        query = query.where(day <= until)
    return [
        {
            "day": on,
            "resource": kind,
            "unit": periods.UNITS[kind],
            "amount": cad if kind == "money" else amount,
            "cad": cad,
        }
        for on, kind, amount, cad in session.execute(query)
    ]


def spent_on(session: Session, visible: Any, day: date) -> Any:
    """CAD that all the visible projects spent on a day. `visible`: a condition on `BY_DAY.c.project_uuid`."""
    query = sa.select(sa.func.coalesce(sa.func.sum(BY_DAY.c.cad), 0)).where(BY_DAY.c.day == day)
    return session.scalar(query.where(visible))


def efficiency(session: Session, visible: Any, since: date) -> list[dict[str, Any]]:
    """What became of the machines that have ended since a day, by project and type, and what they cost.

    `visible`: a condition on Machine.project_uuid.
    """
    used = (
        sa.select(
            BY_DAY.c.machine_uuid,
            sa.func.sum(BY_DAY.c.cad).label("cad"),
            sa.func.sum(BY_DAY.c.lines).filter(BY_DAY.c.model.is_not(None)).label("calls"),
            sa.func.sum(sum((BY_DAY.c[name] for name in _TOKENS), sa.literal(0))).label("tokens"),
            sa.func.sum(BY_DAY.c.cache_read_tokens).label("cached"),
        )
        .group_by(BY_DAY.c.machine_uuid)
        .subquery()
    )
    seconds = sa.extract("epoch", Machine.terminated_at - Machine.spawned_at)

    def total(name: str) -> Any:
        return sa.func.coalesce(sa.func.sum(used.c[name]), 0).label(name)

    query = (
        sa.select(
            Project.name.label("project"),
            Machine.machine_type.label("type"),
            sa.func.count().label("machines"),
            sa.func.count().filter(Machine.outcome == "succeeded").label("succeeded"),
            *(total(name) for name in ("cad", "calls", "tokens", "cached")),
            sa.func.avg(seconds).label("seconds"),
        )
        .join(Project, Project.uuid == Machine.project_uuid)
        .join(used, used.c.machine_uuid == Machine.uuid, isouter=True)
        .where(Machine.status == "terminated", Machine.terminated_at >= since, visible)
        .group_by(Project.name, Machine.machine_type)
        .order_by(Project.name, Machine.machine_type)
    )
    return [_rates(row) for row in session.execute(query).mappings()]


def _rates(row: Any) -> dict[str, Any]:
    machines, succeeded, tokens = row["machines"], row["succeeded"], int(row["tokens"])
    return {
        "project": row["project"],
        "type": row["type"],
        "machines": machines,
        "succeeded": succeeded,
        "success_rate": round(succeeded / machines, 4) if machines else None,
        "cad": row["cad"],
        "cad_per_success": round(row["cad"] / succeeded, 9) if succeeded else None,
        "calls": int(row["calls"]),
        "mean_seconds": round(float(row["seconds"]), 3) if row["seconds"] is not None else None,
        "tokens_in": tokens,
        "cache_read_rate": round(int(row["cached"]) / tokens, 4) if tokens else None,
    }


def line(session: Session, row: Usage) -> dict[str, Any]:
    """A ledger line as plain data."""
    machine = views.name_of(session, Machine, row.machine_uuid)
    return ledger.view(row, views.name_of(session, Project, row.project_uuid), machine)
