"""Reports over the ledger: sums by project, machine, model or day, and what a checkpoint cost to reach."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from autovibe import periods
from autovibe.models import Budget, Checkpoint, Machine

#: by -> what a line is counted under
GROUPS = {
    "project": "p.name",
    "machine": "coalesce(m.name, '(none)')",
    "model": "coalesce(u.model, '(none)')",
    "day": "u.day",
    "type": "u.resource_type || coalesce('/' || u.resource_subtype, '')",
}
_SUMS = """
SELECT {group} AS "{by}", sum(u.lines)::bigint AS lines,
       coalesce(sum(u.amount) FILTER (WHERE u.resource_type = 'api_calls'), 0) AS calls, sum(u.cad) AS cad
FROM usage_by_day u JOIN projects p ON p.uuid = u.project_uuid
LEFT JOIN intelligent_machines m ON m.uuid = u.machine_uuid
WHERE (u.project_uuid = :project OR CAST(:project AS uuid) IS NULL)
  AND (u.day >= :since OR CAST(:since AS date) IS NULL)
GROUP BY 1 ORDER BY {order}
"""
# A checkpoint was reached by what its machine spent until then, and by all that its ancestors were.
_CHECKPOINT = sa.text("""
WITH RECURSIVE line AS (
    SELECT uuid, parent_checkpoint_uuid, creating_machine_uuid, created_at FROM checkpoints WHERE uuid = :checkpoint
    UNION ALL
    SELECT c.uuid, c.parent_checkpoint_uuid, c.creating_machine_uuid, c.created_at
    FROM checkpoints c JOIN line ON c.uuid = line.parent_checkpoint_uuid
), reached AS (
    SELECT creating_machine_uuid AS machine_uuid, max(created_at) AS at FROM line
    WHERE creating_machine_uuid IS NOT NULL GROUP BY 1
)
SELECT coalesce(sum(u.cost_cad), 0)
FROM resource_usage u JOIN reached r USING (machine_uuid) WHERE u.recorded_at <= r.at
""")
_SINCE = sa.text("""
SELECT sum(u.cost_cad) FROM checkpoints c JOIN resource_usage u ON u.machine_uuid = c.creating_machine_uuid
WHERE c.uuid = :checkpoint AND u.recorded_at <= c.created_at AND u.recorded_at > coalesce(
    (SELECT max(b.created_at) FROM checkpoints b
     WHERE b.creating_machine_uuid = c.creating_machine_uuid AND b.created_at < c.created_at), '-infinity')
""")
#: How far back the pace is measured, at most.
PACE_DAYS = 7


def sums(
    session: Session, by: str, project_uuid: UUID | None = None, since: date | None = None
) -> list[dict[str, Any]]:
    """Lines, calls and CAD of each `by` (see GROUPS), the dearest first; days in their order."""
    query = sa.text(_SUMS.format(group=GROUPS[by], by=by, order="1" if by == "day" else "cad DESC, 1"))
    return [dict(row) for row in session.execute(query, {"project": project_uuid, "since": since}).mappings()]


def checkpoints(
    session: Session, project_uuid: UUID | None = None, since: date | None = None, limit: int = 200
) -> list[dict[str, Any]]:
    """The newest checkpoints, oldest first: `cad` to reach each, and what its machine spent since the one before it."""
    query = sa.select(Checkpoint, Machine.name).outerjoin(Machine, Machine.uuid == Checkpoint.creating_machine_uuid)
    if project_uuid is not None:
        query = query.where(Checkpoint.project_uuid == project_uuid)
    if since is not None:
        query = query.where(Checkpoint.created_at >= datetime.combine(since, time(), UTC))
    newest = session.execute(query.order_by(Checkpoint.created_at.desc(), Checkpoint.uuid).limit(limit)).all()
    return [
        {
            "checkpoint": row.uuid,
            "type": row.checkpoint_type,
            "machine": machine,
            "created_at": row.created_at,
            "since_the_last": session.scalar(_SINCE, {"checkpoint": row.uuid}) or Decimal(0),
            "cad": checkpoint_cost(session, row.uuid),
        }
        for row, machine in reversed(newest)
    ]


def checkpoint_cost(session: Session, checkpoint_uuid: UUID) -> Decimal:
    """CAD that were spent to reach a checkpoint: by its machine until then, and along its ancestors."""
    return session.scalar(_CHECKPOINT, {"checkpoint": checkpoint_uuid}) or Decimal(0)


def runs_out(session: Session, budget: Budget) -> date | None:
    """The day on which the budget is used up at the pace of the last days, None when that is not in its period.

    None for a share of a pool, too: it grows when more is wanted.
    """
    if budget.pooled:
        return None
    today = periods.day_of(session, budget.project_uuid)
    first = max(budget.period_start, today - timedelta(days=PACE_DAYS - 1))
    column = "cad" if budget.resource_type == "money" else "amount"
    query = sa.text(f"""
        SELECT coalesce(sum({column}), 0) AS used, min(day) AS first FROM usage_by_day
        WHERE project_uuid = :project AND day BETWEEN :first AND :today AND (:type = 'money' OR resource_type = :type)
    """)  # noqa: S608
    values = {"project": budget.project_uuid, "first": first, "today": today, "type": budget.resource_type}
    used, began = session.execute(query, values).one()
    left = budget.allocated_amount - budget.used_amount - budget.reserved_amount
    if left <= 0:
        return today
    if used <= 0:  # more was taken back than used
        return None
    days = Decimal((today - began).days + 1) * left / used
    end = today + timedelta(days=int(min(days, Decimal(36500))))
    return end if end < budget.period_end and days < 36500 else None
