"""/api/v1/resources, /usage and /analytics: what was used, what is left, how well it was used."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from sqlalchemy import func, select

from autovibe import alerts, ledger, periods, projects, reports, usage_views
from autovibe.access import Level
from autovibe.api.v1 import paging, schemas
from autovibe.api.v1.calls import ApiRoute, Call, doc, needs
from autovibe.api.v1.routes import PREFIX
from autovibe.api.v1.routes.projects import budgets_of
from autovibe.models import HUB, Budget, Machine, Operation, Project, Usage

router = APIRouter(prefix=PREFIX, tags=["resources"], route_class=ApiRoute)

DAYS = 30
Since = Annotated[schemas.Day | None, Query(description=f"From this day on; default: the last {DAYS} days.")]
OneProject = Annotated[str | None, Query(max_length=255, description="Of this project only.")]
#: The groups of `reports.GROUPS`, as far as the API shows them.
Group = Literal["project", "machine", "model", "day", "type"]


@router.get("/resources", response_model=schemas.Resources, **doc())
@needs(Level.READ)
def resources(call: Call):
    """All that you can see, in short."""
    visible = call.caller.visible
    money = (
        select(func.sum(Budget.allocated_amount), func.sum(Budget.used_amount), func.sum(Budget.reserved_amount))
        .where(Budget.resource_type == "money", Budget.budget_period == "total", Budget.removed_at.is_(None))
        .where(visible(Budget.project_uuid))
    )
    allocated, used, reserved = (value or Decimal(0) for value in call.session.execute(money).one())
    return {
        "projects": call.session.scalar(select(func.count()).select_from(Project).where(visible(Project.uuid))),
        "machines": machines_by_status(call),
        "operations": operations_by_status(call),
        "allocated_cad": allocated,
        "used_cad": used,
        "reserved_cad": reserved,
        "today_cad": usage_views.spent_on(
            call.session, visible(usage_views.BY_DAY.c.project_uuid), datetime.now(UTC).date()
        ),
        "alerts": alerts.views(call.session, limit=10, visible=visible(Project.uuid)),
    }


def machines_by_status(call: Call) -> dict[str, int]:
    """Of the visible machines that have not ended; the hub's own VM is none that works."""
    agents = (Machine.status != "terminated", Machine.machine_type != HUB)
    query = select(Machine.status, func.count()).where(*agents).group_by(Machine.status)
    return dict(call.session.execute(query.where(call.caller.visible(Machine.project_uuid))).tuples().all())


def operations_by_status(call: Call) -> dict[str, int]:
    """Of the visible operations that have not ended."""
    open_ones = Operation.status.in_(("queued", "running"))
    query = select(Operation.status, func.count()).where(open_ones).group_by(Operation.status)
    return dict(call.session.execute(query.where(call.caller.visible(Operation.project_uuid))).tuples().all())


@router.get("/resources/{project}", response_model=schemas.ProjectResources, **doc(404))
@needs(Level.READ)
def project_resources(call: Call, project: str, since: Since = None):
    """What a project used day by day, how well, and what it has left. Its budgets are set under `/projects`."""
    found = call.project(project)
    first = since or periods.day_of(call.session, found.uuid) - timedelta(days=DAYS - 1)
    return {
        "project": projects.view(call.session, found),
        "since": first,
        "days": usage_views.by_day(call.session, found.uuid, first),
        "efficiency": usage_views.efficiency(call.session, Machine.project_uuid == found.uuid, first),
        "budgets": budgets_of(call, found),
    }


@router.get("/analytics/efficiency", response_model=schemas.Page[schemas.Efficiency], tags=["analytics"], **doc(404))
@needs(Level.READ)
def efficiency(
    call: Call, project: OneProject = None, since: Since = None, limit: paging.Limit = 100, cursor: paging.Cursor = None
):
    """What became of the machines that have ended, by project and type: successes, what each cost, cached tokens."""
    wanted = call.caller.visible(Machine.project_uuid)
    if project is not None:
        wanted = Machine.project_uuid == call.project(project).uuid
    first = since or datetime.now(UTC).date() - timedelta(days=DAYS - 1)
    return paging.of_list(usage_views.efficiency(call.session, wanted, first), cursor, limit)


@router.get("/usage", response_model=schemas.Page[schemas.UsageLine], **doc(404))
@needs(Level.READ)
def usage_lines(
    call: Call,
    project: OneProject = None,
    oldest_first: Annotated[bool, Query(description="In the order in which they were recorded.")] = False,
    limit: paging.Limit = 100,
    cursor: paging.Cursor = None,
):
    """The ledger's lines, the newest first."""
    query = select(Usage).where(call.caller.visible(Usage.project_uuid))
    if project is not None:
        query = query.where(Usage.project_uuid == call.project(project).uuid)
    columns = (Usage.recorded_at, Usage.uuid)

    def show(row: Usage) -> dict[str, Any]:
        return usage_views.line(call.session, row)

    return paging.by_time(call.session, query, columns, cursor, limit, show, oldest_first=oldest_first)


@router.get("/usage/sums", response_model=schemas.Page[schemas.UsageSum], **doc(404))
@needs(Level.READ)
def usage_sums(
    call: Call,
    by: Group,
    project: OneProject = None,
    since: Annotated[schemas.Day | None, Query(description="From this day on; default: all.")] = None,
    limit: paging.Limit = 100,
    cursor: paging.Cursor = None,
):
    """Sums of the ledger, the dearest first; days in their order."""
    chosen = _chosen(call, project)
    rows = reports.sums(call.session, by, chosen, since)
    return paging.of_list(rows, cursor, limit)


@router.get("/usage/checkpoints", response_model=schemas.Page[schemas.CheckpointSum], **doc(404))
@needs(Level.READ)
def usage_checkpoints(
    call: Call,
    project: OneProject = None,
    since: Annotated[schemas.Day | None, Query(description="From this day on; default: all.")] = None,
    limit: paging.Limit = 100,
    cursor: paging.Cursor = None,
):
    """What it cost to reach each of the newest checkpoints, oldest first."""
    return paging.of_list(reports.checkpoints(call.session, _chosen(call, project), since), cursor, limit)


@router.get("/usage/models", response_model=schemas.Page[schemas.ModelSum], **doc(404))
@needs(Level.READ)
def usage_models(call: Call, project: OneProject = None, limit: paging.Limit = 100, cursor: paging.Cursor = None):
    """Calls, tokens and money of each model."""
    return paging.of_list(ledger.by_model(call.session, _chosen(call, project)), cursor, limit)


def _chosen(call: Call, project: str | None):
    """The project that is asked for; without one, all of them, which only who sees all of them may ask."""
    if project is not None:
        return call.project(project).uuid
    call.everything("Ask for one project.")
    return None
