"""Projects: they own a greediness, budgets and a tree of checkpoints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from autovibe import allocations, lookup, periods, views
from autovibe.async_db import Statement
from autovibe.errors import Conflict, Invalid, NotFound
from autovibe.ledger import amount_of
from autovibe.models import Machine, Project

STATUSES = ("active", "paused", "completed", "archived")
#: What becomes of its machines when a project's budget is used up.
WHEN_EXHAUSTED = ("pause", "end")


class NoSuchProject(NotFound):
    """There is no such project."""

    code = "no_such_project"
    default_hint = "`autovibe project list` shows those that exist."


class ProjectExists(Conflict):
    """There is a project with this name already."""

    code = "project_exists"


class ProjectBusy(Conflict):
    """The project has machines that have not ended."""

    code = "project_busy"
    default_hint = "End them first: `autovibe machine terminate`."


class InvalidProject(Invalid):
    """That project cannot be made."""

    code = "invalid_project"


def create(
    session: Session,
    name: str,
    *,
    budget_cad: Decimal | None,
    greediness: Decimal = Decimal("0.5"),
    description: str | None = None,
    time_zone: str = "UTC",
    when_exhausted: str = "pause",
    models: Sequence[str] = (),
) -> Project:
    """Make a project and its hard total budget. Its days begin at midnight in its time zone.

    budget_cad: None is no budget; then nothing in it can be paid for.

    when_exhausted: whether its machines `pause` or `end` when its budget is used up. `models`: those that
    its machines may use (* stands for any characters); with none given, all.
    """
    project = Project(
        name=checked_name(name),
        greediness=_checked_greediness(greediness),
        description=description,
        time_zone=periods.checked_zone(time_zone),
        when_exhausted=_checked_end(when_exhausted),
        models=_checked_models(models),
    )
    try:
        with session.begin_nested():
            session.add(project)
            session.flush()
    except IntegrityError as error:
        if "projects_name_key" in str(error.orig):
            raise ProjectExists(f"There is a project named {project.name!r} already") from None
        raise
    if budget_cad is not None:
        allocations.create(session, project.uuid, budget_cad)
    session.refresh(project)
    return project


def get(session: Session, name_or_uuid: str | UUID) -> Project:
    """A project by its name, its uuid, or the first characters of that. Raises NoSuchProject."""
    try:
        return lookup.find(session, Project, name_or_uuid, "project")
    except NotFound:
        raise NoSuchProject(f"There is no project {str(name_or_uuid)!r:.100}") from None


def all_of(session: Session) -> list[Project]:
    """All projects, by name."""
    return list(session.scalars(sa.select(Project).order_by(Project.name)))


def change(session: Session, project: Project, **values: Any) -> Project:
    """Change `greediness`, `description`, `status` or `models`; only what is named. ProjectBusy, InvalidProject.

    `models` hold from the next call on.
    """
    project = session.get_one(Project, project.uuid, with_for_update=True, populate_existing=True)
    if values.get("greediness") is not None:
        project.greediness = _checked_greediness(values["greediness"])
    if "description" in values:
        project.description = values["description"]
    if values.get("models") is not None:
        project.models = _checked_models(values["models"])
    if values.get("status") is not None:
        _may_become(session, project, values["status"])
        project.status = values["status"]
    session.flush()
    session.refresh(project)
    return project


def _may_become(session: Session, project: Project, status: str) -> None:
    if status not in STATUSES:
        raise InvalidProject(f"There is no project status {status[:40]!r}", f"Statuses: {', '.join(STATUSES)}.")
    living = sa.select(sa.func.count()).where(Machine.project_uuid == project.uuid, Machine.status != "terminated")
    if status in ("completed", "archived") and (count := session.scalar(living)):
        raise ProjectBusy(f"Project {project.name} has {count} machines that have not ended")


#: A project's view, but for its machines and budgets, by the columns that it comes from.
_VIEW: dict[str, Any] = {
    "uuid": Project.uuid,
    "name": Project.name,
    "status": Project.status,
    "greediness": Project.greediness,
    "description": Project.description,
    "initial_checkpoint": Project.initial_checkpoint_uuid,
    "current_checkpoint": Project.current_checkpoint_uuid,
    "created_at": Project.created_at,
    "time_zone": Project.time_zone,
    "when_exhausted": Project.when_exhausted,
    "models": Project.models,
}
#: What a list of projects can be limited to, by the name of what it is compared with.
_WHERE = {
    "project": Project.uuid == sa.bindparam("project", type_=sa.Uuid),
    "visible": Project.uuid == sa.any_(sa.bindparam("visible", type_=sa.ARRAY(sa.Uuid))),
    "name": Project.name == sa.bindparam("name", type_=sa.Text),
    "status": Project.status == sa.bindparam("status", type_=sa.Text),
    "after": sa.tuple_(Project.created_at, Project.uuid)
    < sa.tuple_(sa.bindparam("at", type_=Project.created_at.type), sa.bindparam("after", type_=sa.Uuid)),
}


def _views(where: frozenset[str]) -> sa.Select[Any]:
    """`limit` projects, newest first, as `json`; `stale`: a present row of their budgets is yet to be made."""
    day = sa.cast(sa.func.timezone(Project.time_zone, sa.func.now()), sa.Date)
    page = (
        sa.select(*(column.label(name) for name, column in _VIEW.items()), day.label("day"))
        .where(*(_WHERE[name] for name in sorted(where)))
        .order_by(Project.created_at.desc(), Project.uuid.desc())
        .limit(sa.bindparam("limit", type_=sa.Integer))
        .subquery("page")
    )
    machines = sa.select(sa.func.count()).where(Machine.project_uuid == page.c.uuid).scalar_subquery()
    budgets = allocations.written(page.c.uuid, page.c.day)
    shown = views.as_json({name: page.c[name] for name in _VIEW} | {"machines": machines} | budgets)
    stale = periods.to_roll("page.uuid", "page.day")
    columns = (page.c.created_at, page.c.uuid)
    query = sa.select(sa.cast(shown, sa.Text).label("json"), *columns, page.c.day, stale.label("stale"))
    return query.order_by(*(column.desc() for column in columns))


@lru_cache(maxsize=1 << len(_WHERE))
def written(where: frozenset[str]) -> Statement:
    """`_views`, with the conditions that are named, and what they compare with."""
    return Statement(_views(where))


_ONE = _views(frozenset({"project"}))


def view(session: Session, project: Project) -> dict[str, Any]:
    """A project with its budgets, as plain data; `budget` is the total one in CAD."""
    periods.roll(session, project.uuid, periods.day_of(session, project.uuid))
    session.flush()
    return json.loads(session.execute(_ONE, {"project": project.uuid, "limit": 1}).one().json)


def checked_name(name: str) -> str:
    """The name, if a project can have it; InvalidProject."""
    name = name.strip()
    if not name:
        raise InvalidProject("A project needs a name")
    if len(name) > 255 or not name.isprintable():
        raise InvalidProject("A project's name has at most 255 characters, all of them printable")
    if _as_uuid(name):
        raise InvalidProject("A project's name must not look like a uuid: projects are found by either")
    return name


def _checked_end(value: str) -> str:
    if value not in WHEN_EXHAUSTED:
        raise InvalidProject(f"When its budget is used up a machine can {' or '.join(WHEN_EXHAUSTED)}, not {value!r}")
    return value


def _checked_models(models: Sequence[str]) -> list[str] | None:
    for model in models:
        if not model.strip() or len(model) > 200 or not model.isprintable():
            raise InvalidProject(f"{model[:50]!r} is not the name of a model, or a pattern of names")
    return [model.strip() for model in models] or None


def _checked_greediness(value: Decimal) -> Decimal:
    greediness = amount_of(value, "greediness")
    if greediness > 1 or greediness != round(greediness, 2):
        raise InvalidProject(f"The greediness must be between 0 and 1 with two decimals, not {greediness}")
    return greediness


def _as_uuid(text: str | UUID) -> UUID | None:
    try:
        return UUID(str(text))
    except ValueError:
        return None
