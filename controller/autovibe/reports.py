"""Reports over the ledger: sums by project, machine, model or day, and what a checkpoint cost to reach."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from autovibe import periods
from autovibe.models import Budget

#: by -> what a line is counted under
GROUPS = {
    "project": "p.name",
    "machine": "coalesce(m.name, '(none)')",
    "model": "coalesce(u.metadata ->> 'model', '(none)')",
    "day": "u.billing_period_start",
    "type": "u.resource_type || coalesce('/' || u.resource_subtype, '')",
}
_SUMS = """
SELECT {group} AS "{by}", count(*) AS lines,
       coalesce(sum(u.amount) FILTER (WHERE u.resource_type = 'api_calls'), 0) AS calls,
       coalesce(sum(u.cost_cad), 0) AS cad
FROM resource_usage u JOIN projects p ON p.uuid = u.project_uuid
LEFT JOIN intelligent_machines m ON m.uuid = u.machine_uuid
WHERE (u.project_uuid = :project OR CAST(:project AS uuid) IS NULL)
  AND (u.billing_period_start >= :since OR CAST(:since AS date) IS NULL)
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
#: How far back the pace is measured, at most.
PACE_DAYS = 7


def sums(
    session: Session, by: str, project_uuid: UUID | None = None, since: date | None = None
) -> list[dict[str, Any]]:
    """Lines, calls and CAD of each `by` (see GROUPS), the dearest first; days in their order."""
    query = sa.text(_SUMS.format(group=GROUPS[by], by=by, order="1" if by == "day" else "cad DESC, 1"))
    return [dict(row) for row in session.execute(query, {"project": project_uuid, "since": since}).mappings()]


def checkpoint_cost(session: Session, checkpoint_uuid: UUID) -> Decimal:
    """CAD that were spent to reach a checkpoint: by its machine until then, and along its ancestors."""
    return session.scalar(_CHECKPOINT, {"checkpoint": checkpoint_uuid}) or Decimal(0)


def runs_out(session: Session, budget: Budget) -> date | None:
    """The day on which the budget is used up at the pace of the last days, None when that is not in its period."""
    today = periods.day_of(session, budget.project_uuid)
    first = max(budget.period_start, today - timedelta(days=PACE_DAYS - 1))
    column = "cost_cad" if budget.resource_type == "money" else "amount"
    query = sa.text(f"""
        SELECT coalesce(sum({column}), 0) AS used, min(billing_period_start) AS first FROM resource_usage
        WHERE project_uuid = :project AND billing_period_start >= :first
          AND (:type = 'money' OR resource_type = :type)
    """)  # noqa: S608
    values = {"project": budget.project_uuid, "first": first, "type": budget.resource_type}
    used, began = session.execute(query, values).one()
    left = budget.allocated_amount - budget.used_amount - budget.reserved_amount
    if left <= 0:
        return today
    if not used:
        return None
    days = Decimal((today - began).days + 1) * left / used
    end = today + timedelta(days=int(min(days, Decimal(36500))))
    return end if end < budget.period_end and days < 36500 else None
