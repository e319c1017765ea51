"""/api/v1/projects: projects, their budgets, who is let in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlalchemy import select

from autovibe import alerts, allocations, enforcement, periods, projects, reports, throttle, usage_views, users, views
from autovibe.access import Level
from autovibe.api.v1 import paging, schemas
from autovibe.api.v1.calls import Answer, ApiRoute, Call, Reading, doc, needs, reads
from autovibe.api.v1.routes import PREFIX
from autovibe.models import Checkpoint, Project, ProjectGrant, User

router = APIRouter(prefix=PREFIX, tags=["projects"], route_class=ApiRoute)
_BUDGET = "/projects/{project}/budgets/{resource}/{period}"


@router.post("/projects", response_model=schemas.Project, **doc(409, status=201))
@needs(Level.ADMIN)
def create_project(call: Call, body: schemas.ProjectNew):
    """Make a project and its hard total budget."""
    made = projects.create(
        call.session,
        body.name,
        budget_cad=body.budget,
        greediness=body.greediness,
        description=body.description,
        time_zone=body.time_zone,
        when_exhausted=body.when_exhausted,
        models=body.models,
    )
    view = projects.view(call.session, made)
    call.audit("create", "project", uuid=made.uuid, name=made.name, project_uuid=made.uuid, after=view)
    return Answer(view, 201, {"Location": f"/api/v1/projects/{made.uuid}"})


@router.get("/projects", response_model=schemas.Page[schemas.Project], **doc())
@reads(Level.READ)
async def list_projects(
    reading: Reading,
    name: Annotated[str | None, Query(max_length=255, description="With this name only.")] = None,
    status: Annotated[str | None, Query(max_length=50, description="In this state only.")] = None,
    limit: paging.Limit = 100,
    cursor: paging.Cursor = None,
):
    """Projects with their budgets, the newest first."""
    where = reading.visible()
    for column, wanted in (("name", name), ("status", status)):
        if wanted is not None:
            where[column] = wanted.replace("\0", "")

    async def roll(rows: Sequence[Any]) -> bool:
        """Make the present day's rows of budgets, if somebody's are missing."""
        days = [(row["uuid"], row["day"]) for row in rows if row["stale"]]
        if days:
            await reading.call(lambda call: periods.roll_all(call.session, days))
        return bool(days)

    columns = ("created_at", "uuid")
    return Answer(content=await paging.written(reading.pool, projects.written, where, columns, cursor, limit, roll))


@router.get("/projects/{project}", response_model=schemas.Project, **doc(404))
@needs(Level.READ)
def show_project(call: Call, project: str):
    """A project with its budgets."""
    return projects.view(call.session, call.project(project))


@router.patch("/projects/{project}", response_model=schemas.Project, **doc(404, 409, 412))
@needs(Level.ADMIN)
def change_project(call: Call, project: str, body: schemas.ProjectChange):
    """Change what is named; one that is completed or archived has no machines that live."""
    return _changed(call, call.project(project), **body.model_dump(exclude_unset=True))


@router.delete("/projects/{project}", response_model=schemas.Project, **doc(404, 409, 412))
@needs(Level.ADMIN)
def archive_project(call: Call, project: str):
    """Archive a project: it gets no machines any more. Its ledger and its checkpoints stay."""
    return _changed(call, call.project(project), status="archived")


def _changed(call: Call, found: Project, **values) -> dict:
    before = projects.view(call.session, found)
    call.unchanged_since(before)
    view = projects.view(call.session, projects.change(call.session, found, **values))
    call.audit(
        "change", "project", uuid=found.uuid, name=found.name, project_uuid=found.uuid, before=before, after=view
    )
    return view


@router.post("/projects/{project}/reset", response_model=schemas.Project, **doc(404, 409))
@needs(Level.OPERATE)
def reset_project(call: Call, project: str):
    """Let a project have machines again, after so many had failed that it got no new ones."""
    found = call.project(project)
    throttle.reset(call.session, found)
    view = projects.view(call.session, found)
    call.audit("reset", "project", uuid=found.uuid, name=found.name, project_uuid=found.uuid, after=view)
    return view


@router.get("/projects/{project}/usage", response_model=schemas.TodayUsage, **doc(404))
@needs(Level.READ)
def project_usage_today(call: Call, project: str):
    """What a project has used today (in its own time zone), and its budgets."""
    found = call.project(project)
    today = periods.day_of(call.session, found.uuid)
    rows = usage_views.by_day(call.session, found.uuid, today)
    return {
        "project": found.name,
        "day": today,
        "resources": [row for row in rows if row["day"] == today],
        "budgets": budgets_of(call, found),
    }


@router.get("/projects/{project}/checkpoints", response_model=schemas.Page[schemas.Checkpoint], **doc(404))
@needs(Level.READ)
def project_checkpoints(call: Call, project: str, limit: paging.Limit = 100, cursor: paging.Cursor = None):
    """A project's checkpoints, the newest first."""
    query = select(Checkpoint).where(Checkpoint.project_uuid == call.project(project).uuid)
    columns = (Checkpoint.created_at, Checkpoint.uuid)
    return paging.by_time(call.session, query, columns, cursor, limit, lambda row: views.checkpoint(call.session, row))


def budgets_of(call: Call, project: Project) -> list[dict]:
    """The budgets that hold now, with the day on which each runs out."""
    rows = allocations.present(call.session, project.uuid)
    return [allocations.view(row) | {"runs_out": reports.runs_out(call.session, row)} for row in rows]


@router.get("/projects/{project}/budgets", response_model=schemas.Page[schemas.BudgetInFull], **doc(404))
@needs(Level.READ)
def list_budgets(call: Call, project: str, limit: paging.Limit = 100, cursor: paging.Cursor = None):
    """The budgets that hold now."""
    return paging.of_list(budgets_of(call, call.project(project)), cursor, limit)


@router.get("/projects/{project}/budgets/history", response_model=schemas.Page[schemas.Budget], **doc(404))
@needs(Level.READ)
def budget_history(call: Call, project: str, limit: paging.Limit = 100, cursor: paging.Cursor = None):
    """The periods of a project's budgets, the newest first."""
    found = call.project(project)
    rows = allocations.history(call.session, found.uuid, 10_000)
    return paging.of_list([allocations.view(row) for row in rows], cursor, limit)


@router.put(_BUDGET, response_model=schemas.Budget, **doc(404))
@needs(Level.ADMIN)
def set_budget(call: Call, project: str, resource: schemas.Resource, period: schemas.Period, body: schemas.BudgetSet):
    """Limit a resource, from the present period on; what was used in it counts."""
    found = call.project(project)
    before = _budget_of(call, found, resource, period)
    made = allocations.set_budget(
        call.session,
        found.uuid,
        body.amount,
        resource=resource,
        period=period,
        auto_reset=body.auto_reset,
        soft_percent=body.soft_percent,
        week_start=call.settings.week_start,
    )
    return _budget(call, "set", found, before, allocations.view(made))


@router.post(f"{_BUDGET}/top-up", response_model=schemas.BudgetToppedUp, **doc(404, 409))
@needs(Level.ADMIN)
def top_up_budget(call: Call, project: str, resource: schemas.Resource, period: schemas.Period, body: schemas.TopUp):
    """Add to the present period's budget. Machines that were paused for it go on."""
    found = call.project(project)
    before = _budget_of(call, found, resource, period)
    made = allocations.top_up(call.session, found.uuid, body.amount, resource=resource, period=period)
    view = _budget(call, "top up", found, before, allocations.view(made))
    return Answer(
        view,
        remembered=view | {"resumed": []},
        after=lambda: {"resumed": enforcement.resume_project(call.settings, found.uuid)},
    )


@router.delete(_BUDGET, **doc(404, status=204))
@needs(Level.ADMIN)
def remove_budget(call: Call, project: str, resource: schemas.Resource, period: schemas.Period):
    """End a budget. Without any budget of money nothing can be spent."""
    found = call.project(project)
    before = _budget_of(call, found, resource, period)
    allocations.remove(call.session, found.uuid, resource=resource, period=period)
    _budget(call, "remove", found, before)
    return Answer(None, 204)


def _budget_of(call: Call, project: Project, resource: str, period: str) -> dict | None:
    found = allocations.find(call.session, project.uuid, resource=resource, period=period)
    return allocations.view(found) if found is not None else None


def _budget(call: Call, action: str, project: Project, before: dict | None, after: dict | None = None) -> dict | None:
    """Written down under a name that says which of the project's budgets it is: of a change, only that is kept."""
    which = after or before or {}
    name = f"{project.name}: {which.get('period')} {which.get('resource')}"
    what = {"uuid": project.uuid, "project_uuid": project.uuid, "name": name}
    call.audit(action, "budget", **what, before=before, after=after)
    return after


@router.get("/projects/{project}/grants", response_model=schemas.Page[schemas.GrantOf], **doc(404))
@needs(Level.ADMIN)
def list_grants(call: Call, project: str, limit: paging.Limit = 100, cursor: paging.Cursor = None):
    """Who is let into a project. Admins are in all of them."""
    query = (
        select(User.name, User.uuid, ProjectGrant.role)
        .join(ProjectGrant, ProjectGrant.user_uuid == User.uuid)
        .where(ProjectGrant.project_uuid == call.project(project).uuid)
        .order_by(User.name)
    )
    rows = [{"user": name, "user_uuid": uuid, "role": role} for name, uuid, role in call.session.execute(query)]
    return paging.of_list(rows, cursor, limit)


@router.put("/projects/{project}/grants/{user}", response_model=schemas.GrantOf, **doc(404))
@needs(Level.ADMIN)
def grant(call: Call, project: str, user: str, body: schemas.GrantIn):
    """Let a user see a project (viewer), or also work in it (operator)."""
    found, whom = call.project(project), users.find(call.session, user)
    role = users.grants_of(call.session, whom.uuid).get(found.uuid)
    before = {"role": role} if role is not None else None
    users.grant(call.session, whom, found, body.role)
    view = {"user": whom.name, "user_uuid": whom.uuid, "role": body.role}
    what = {"uuid": found.uuid, "name": found.name, "project_uuid": found.uuid}
    call.audit("grant", "project", **what, before=before, after=view)
    return view


@router.delete("/projects/{project}/grants/{user}", **doc(404, status=204))
@needs(Level.ADMIN)
def withdraw_grant(call: Call, project: str, user: str):
    """Let a user into a project no more."""
    found, whom = call.project(project), users.find(call.session, user)
    role = users.grants_of(call.session, whom.uuid).get(found.uuid)
    users.withdraw(call.session, whom, found)
    before = {"user": whom.name, "user_uuid": whom.uuid, "role": role}
    call.audit("withdraw", "project", uuid=found.uuid, name=found.name, project_uuid=found.uuid, before=before)
    return Answer(None, 204)


@router.get("/alerts", response_model=schemas.Page[schemas.Alert], tags=["resources"], **doc(404))
@needs(Level.READ)
def list_alerts(
    call: Call,
    project: Annotated[str | None, Query(max_length=255, description="Of this project only.")] = None,
    since: Annotated[schemas.Day | None, Query(description="From this day on.")] = None,
    limit: paging.Limit = 100,
    cursor: paging.Cursor = None,
):
    """The levels that budgets have reached, the newest first."""
    only = call.project(project).uuid if project else None
    rows = alerts.views(call.session, only, limit=10_000, visible=call.caller.visible(Project.uuid))
    return paging.of_list([row for row in rows if since is None or row["created_at"].date() >= since], cursor, limit)
