"""Whether a project may have another machine: the levels of budgets that can only be counted, and a circuit breaker.

Of time, cores, memory, storage and traffic one knows afterwards what was used. Over its allocation a project is warned,
from a tenth over it gets no new machines, from a half over its machines are stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from autovibe import allocations
from autovibe.errors import AutovibeError, Conflict
from autovibe.models import Budget, Machine, Project
from autovibe.settings import Settings

#: Part of the allocation that was used beyond it, from which on new machines are refused, and machines stopped.
NO_SPAWN, STOP = Decimal("0.1"), Decimal("0.5")


class Throttled(AutovibeError):
    """The project has used too much of a resource."""

    code = "throttled"
    http_status = 402
    default_hint = "Raise that budget, or wait for its next period: `autovibe budget show`."


class CircuitOpen(Conflict):
    """The project's machines fail one after the other."""

    code = "circuit_open"


@dataclass(frozen=True)
class Overrun:
    """A counted budget that was used beyond its allocation: by which part of it."""

    budget: Budget
    part: Decimal

    @property
    def action(self) -> str:
        """warn, no_spawn or stop."""
        return "stop" if self.part > STOP else "no_spawn" if self.part >= NO_SPAWN else "warn"

    def __str__(self) -> str:
        row = self.budget
        return (
            f"the {row.budget_period} budget of {row.resource_type} is overrun by {self.part:.0%} "
            f"({row.used_amount.normalize():f} of {row.allocated_amount.normalize():f} {row.unit})"
        )


def overruns(session: Session, project: Project) -> list[Overrun]:
    """The present counted budgets that are overrun, the worst first."""
    rows = [row for row in allocations.present(session, project.uuid) if not row.hard]
    found = [Overrun(row, _part(row)) for row in rows if row.used_amount > row.allocated_amount]
    return sorted(found, key=lambda one: one.part, reverse=True)


def stopping(session: Session, project: Project) -> Overrun | None:
    """The overrun that the project's machines are stopped for, if there is one."""
    worst = next(iter(overruns(session, project)), None)
    return worst if worst is not None and worst.action == "stop" else None


def check(session: Session, settings: Settings, project: Project) -> None:
    """Raise Throttled or CircuitOpen when the project may not have another machine now."""
    worst = next(iter(overruns(session, project)), None)
    if worst is not None and worst.action != "warn":
        raise Throttled(f"Project {project.name} gets no new machine: {worst}")
    failed = failures(session, settings, project)
    if failed:
        last = failed[0]
        raise CircuitOpen(
            f"The last {len(failed)} machines of project {project.name} failed at once; "
            f"the last one, {last.name}: {last.error_message or 'no reason given'}",
            f"Mend what is wrong, then `autovibe project reset {project.name}`.",
        )


def failures(session: Session, settings: Settings, project: Project) -> list[Machine]:
    """The machines that have opened the circuit breaker, the newest first; none while it is closed.

    Open: the last `breaker_failures` machines to end since the last reset all failed, each before it had worked for
    `breaker_seconds`.
    """
    since = project.breaker_reset_at or datetime.min.replace(tzinfo=UTC)
    query = (
        sa.select(Machine)
        .where(Machine.project_uuid == project.uuid, Machine.terminated_at > since)
        .order_by(Machine.terminated_at.desc(), Machine.uuid)
        .limit(settings.breaker_failures)
    )
    last = list(session.scalars(query))
    if len(last) < settings.breaker_failures or not all(_failed_at_once(settings, one) for one in last):
        return []
    return last


def reset(session: Session, project: Project) -> None:
    """Close the circuit breaker: what has failed so far no longer counts."""
    project.breaker_reset_at = datetime.now(UTC)
    session.flush()


def _failed_at_once(settings: Settings, machine: Machine) -> bool:
    if machine.outcome != "failed" or machine.terminated_at is None:
        return False
    if machine.enrolled_at is None:
        return True
    return (machine.terminated_at - machine.enrolled_at).total_seconds() < settings.breaker_seconds


def _part(row: Budget) -> Decimal:
    over = row.used_amount - row.allocated_amount
    return over / row.allocated_amount if row.allocated_amount else Decimal(1)
