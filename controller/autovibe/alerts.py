"""Alerts: a budget has reached a level, is used up, or is frozen. Most are raised by the database; here they are sent.

A level is raised once per period, and again when a raised budget reaches it again; a freeze each time. A budget is used
up when a machine is stopped for it: what is left may be too little for another call, long before it is nothing.
`event` says which: budget_level, budget_exhausted, budget_frozen.

The webhook gets a POST of JSON, signed as `X-Autovibe-Signature: t=<unix time>,v1=<hex HMAC-SHA256 of "<time>.<body>">`
with the secret that both sides know. Until it is answered with 2xx it is tried again, later each time, for some days.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from autovibe import allocations, budgets, throttle
from autovibe.models import Budget, BudgetAlert, Machine, Project
from autovibe.settings import Settings

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 5.0
TRIES = 20
_RETRY_FIRST, _RETRY_MOST = timedelta(seconds=15), timedelta(hours=6)
#: No rows are locked while they are sent: who raises a budget writes to its alerts, and holds the budget meanwhile.
_ONE_AT_A_TIME = sa.text("SELECT pg_try_advisory_xact_lock(hashtext('autovibe alerts'))")


def views(
    session: Session, project_uuid: UUID | None = None, limit: int = 100, visible: Any = None
) -> list[dict[str, Any]]:
    """Alerts as plain data, the newest first. `visible`: a condition on their projects."""
    query = _query().order_by(BudgetAlert.created_at.desc(), BudgetAlert.percent.desc()).limit(limit)
    if visible is not None:
        query = query.where(visible)
    if project_uuid is not None:
        query = query.where(Budget.project_uuid == project_uuid)
    return [_view(*row) for row in session.execute(query)]


def used_up(session: Session, machine: Machine, why: str) -> None:
    """A machine is stopped because its project has used up a budget: the one that has least left, told once.

    Nothing is told of a machine that has reached its own limit.
    """
    worst = throttle.stopping(session, session.get_one(Project, machine.project_uuid))
    money = [row for row in allocations.present(session, machine.project_uuid) if row.resource_type == "money"]
    if worst is None and not money:
        return
    budget = worst.budget if worst else min(money, key=budgets.left_of)
    own = budgets.machine_left(session, machine)
    if worst is None and own is not None and own < budgets.left_of(budget):
        return
    alert = insert(BudgetAlert).values(
        budget_uuid=budget.uuid,
        kind="exhausted",
        reason=f"machine {machine.name} is stopped: {why}",
        used_amount=budget.used_amount,
        allocated_amount=budget.allocated_amount,
        overrun_amount=budget.overrun_amount,
    )
    session.execute(alert.on_conflict_do_nothing())


def send(session: Session, settings: Settings) -> int:
    """Send what is due; returns how many were delivered. Without a webhook nothing is sent, and nothing is lost."""
    if settings.alert_webhook_url is None or not session.scalar(_ONE_AT_A_TIME):
        return 0
    is_due = (
        BudgetAlert.delivered_at.is_(None),
        BudgetAlert.attempts < TRIES,
        BudgetAlert.next_attempt_at <= sa.func.now(),
    )
    due = _query().where(*is_due).order_by(BudgetAlert.next_attempt_at, BudgetAlert.percent.nulls_first()).limit(20)
    delivered = 0
    with httpx.Client(timeout=TIMEOUT_SECONDS) as client:
        for alert, budget, project in session.execute(due).all():
            alert.attempts += 1
            error = _post(client, settings, _view(alert, budget, project))
            if error is None:
                alert.delivered_at, alert.last_error = datetime.now(UTC), None
                delivered += 1
                continue
            alert.last_error = error
            alert.next_attempt_at = datetime.now(UTC) + min(_RETRY_FIRST * 2 ** (alert.attempts - 1), _RETRY_MOST)
            log.warning("alert %s was not delivered (try %d): %s", alert.uuid, alert.attempts, error)
            break  # the others would wait for the same timeout
    return delivered


def signature(secret: str, body: bytes, at: int) -> str:
    """The value of X-Autovibe-Signature."""
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def _post(client: httpx.Client, settings: Settings, view: dict[str, Any]) -> str | None:
    """What went wrong, or None."""
    body = json.dumps({"event": f"budget_{view['kind']}", **view}, default=str).encode()
    headers = {"Content-Type": "application/json"}
    if settings.alert_webhook_secret is not None:
        secret = settings.alert_webhook_secret.get_secret_value()
        headers["X-Autovibe-Signature"] = signature(secret, body, int(time.time()))
    try:
        answer = client.post(str(settings.alert_webhook_url), content=body, headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"{type(error).__name__}: {error}"[:500]
    return None if answer.is_success else f"HTTP {answer.status_code}"


def _query() -> sa.Select[Any]:
    query = sa.select(BudgetAlert, Budget, Project).join(Budget, Budget.uuid == BudgetAlert.budget_uuid)
    return query.join(Project, Project.uuid == Budget.project_uuid)


def _view(alert: BudgetAlert, budget: Budget, project: Project) -> dict[str, Any]:
    return {
        "uuid": alert.uuid,
        "created_at": alert.created_at,
        "project": project.name,
        "resource": budget.resource_type,
        "period": budget.budget_period,
        "period_start": budget.period_start,
        "kind": alert.kind,
        "percent": alert.percent,
        "used": alert.used_amount,
        "allocated": alert.allocated_amount,
        "overrun": alert.overrun_amount,
        "reason": alert.reason,
        "unit": budget.unit,
        "delivered_at": alert.delivered_at,
        "attempts": alert.attempts,
        "last_error": alert.last_error,
    }
