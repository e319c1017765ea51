"""Projects: they own a greediness, budgets and a tree of checkpoints."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from autovibe import allocations, lookup, periods
from autovibe.errors import Conflict, Invalid, NotFound
from autovibe.ledger import amount_of
from autovibe.models import Machine, Project


class NoSuchProject(NotFound):
    """There is no such project."""

    code = "no_such_project"
    default_hint = "`autovibe project list` shows those that exist."


class ProjectExists(Conflict):
    """There is a project with this name already."""

    code = "project_exists"


class InvalidProject(Invalid):
    """That project cannot be made."""

    code = "invalid_project"


def create(
    session: Session,
    name: str,
    *,
    budget_cad: Decimal,
    greediness: Decimal = Decimal("0.5"),
    description: str | None = None,
    time_zone: str = "UTC",
) -> Project:
    """Make a project and its hard total budget. Its days begin at midnight in its time zone."""
    project = Project(
        name=_checked_name(name),
        greediness=_checked_greediness(greediness),
        description=description,
        time_zone=periods.checked_zone(time_zone),
    )
    try:
        with session.begin_nested():
            session.add(project)
            session.flush()
    except IntegrityError as error:
        if "projects_name_key" in str(error.orig):
            raise ProjectExists(f"There is a project named {project.name!r} already") from None
        raise
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


def view(session: Session, project: Project) -> dict[str, Any]:
    """A project with its budgets, as plain data; `budget` is the total one in CAD."""
    rows = [allocations.view(row) for row in allocations.present(session, project.uuid)]
    total = [row for row in rows if (row["resource"], row["period"]) == ("money", "total")]
    machines = sa.select(sa.func.count()).where(Machine.project_uuid == project.uuid)
    return {
        "uuid": project.uuid,
        "name": project.name,
        "status": project.status,
        "greediness": project.greediness,
        "description": project.description,
        "machines": session.scalar(machines),
        "initial_checkpoint": project.initial_checkpoint_uuid,
        "current_checkpoint": project.current_checkpoint_uuid,
        "created_at": project.created_at,
        "time_zone": project.time_zone,
        "budget": total[0] if total else None,
        "budgets": rows,
    }


def _checked_name(name: str) -> str:
    name = name.strip()
    if not name:
        raise InvalidProject("A project needs a name")
    if len(name) > 255 or not name.isprintable():
        raise InvalidProject("A project's name has at most 255 characters, all of them printable")
    if _as_uuid(name):
        raise InvalidProject("A project's name must not look like a uuid: projects are found by either")
    return name


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
