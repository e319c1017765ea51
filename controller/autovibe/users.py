"""Users: people, and programs with keys. An admin may do everything; the others what they are granted in projects."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from autovibe import access, lookup, passwords
from autovibe.errors import Conflict, Invalid, NotFound
from autovibe.models import ApiKey, LoginSession, Project, ProjectGrant, User

_NAME = re.compile(r"[a-z0-9]([a-z0-9._@-]{0,61}[a-z0-9])?")


class UserExists(Conflict):
    """There is a user with this name already."""

    code = "user_exists"


class LastAdmin(Conflict):
    """This is the last admin who can be one."""

    code = "last_admin"
    default_hint = "Make somebody else an admin first."


class NoSuchGrant(NotFound):
    """The user has no grant in this project."""

    code = "no_such_grant"


def create(session: Session, name: str, *, role: str, password: str | None = None) -> User:
    """Make a user. Without a password there is no login, but there can be keys."""
    if not _NAME.fullmatch(name):
        raise Invalid(
            f"{name[:80]!r} is not a user name", "Use a-z, 0-9 and . _ @ - between them, at most 63 characters."
        )
    _check_role(role)
    hashed = passwords.hashed(password) if password is not None else None
    made = session.scalars(
        insert(User).values(name=name, role=role, password_hash=hashed).on_conflict_do_nothing().returning(User)
    ).first()
    if made is None:
        raise UserExists(f"There is a user named {name} already")
    return made


def find(session: Session, text: str | UUID) -> User:
    """By name, uuid or uuid prefix."""
    return lookup.find(session, User, text, "user")


def change(
    session: Session, user: User, *, role: str | None = None, disabled: bool | None = None, password: str | None = None
) -> User:
    """Change a user; one who is disabled, or gets another password, is logged out everywhere. LastAdmin."""
    # In one order: two admins who disable each other at the same time must not both succeed.
    admins = session.scalars(select(User).where(User.role == "admin").order_by(User.uuid).with_for_update()).all()
    user = session.get_one(User, user.uuid, with_for_update=True, populate_existing=True)
    if role is not None:
        _check_role(role)
    loses = (role is not None and role != "admin") or disabled is True
    others = [one for one in admins if one.uuid != user.uuid and one.disabled_at is None]
    if user.role == "admin" and user.disabled_at is None and loses and not others:
        raise LastAdmin(f"{user.name} is the last admin")
    if role is not None:
        user.role = role
    if disabled is not None:
        user.disabled_at = (user.disabled_at or datetime.now(UTC)) if disabled else None
    if password is not None:
        user.password_hash = passwords.hashed(password)
    if disabled or password is not None:
        session.execute(
            update(LoginSession)
            .where(LoginSession.user_uuid == user.uuid, LoginSession.revoked_at.is_(None))
            .values(revoked_at=func.now())
        )
    session.flush()
    session.refresh(user)
    return user


def grant(session: Session, user: User, project: Project, role: str) -> ProjectGrant:
    """Let a user see a project (viewer), or also work in it (operator). Again, it changes the role."""
    if role not in access.GRANTS:
        raise Invalid(f"There is no grant {role[:40]!r}", f"Grants: {', '.join(access.GRANTS)}.")
    statement = insert(ProjectGrant).values(user_uuid=user.uuid, project_uuid=project.uuid, role=role)
    statement = statement.on_conflict_do_update(index_elements=["user_uuid", "project_uuid"], set_={"role": role})
    return session.scalars(statement.returning(ProjectGrant), execution_options={"populate_existing": True}).one()


def withdraw(session: Session, user: User, project: Project) -> None:
    """Take a grant back. NoSuchGrant."""
    of = (ProjectGrant.user_uuid == user.uuid, ProjectGrant.project_uuid == project.uuid)
    if session.execute(delete(ProjectGrant).where(*of)).rowcount == 0:
        raise NoSuchGrant(f"{user.name} has no grant in project {project.name}")


def grants_of(session: Session, user_uuid: UUID) -> dict[UUID, str]:
    """project -> role."""
    query = select(ProjectGrant.project_uuid, ProjectGrant.role).where(ProjectGrant.user_uuid == user_uuid)
    return dict(session.execute(query).all())


def view(session: Session, user: User) -> dict[str, Any]:
    """A user as plain data; never the password's hash."""
    rows = session.execute(
        select(Project.uuid, Project.name, ProjectGrant.role)
        .join(ProjectGrant, ProjectGrant.project_uuid == Project.uuid)
        .where(ProjectGrant.user_uuid == user.uuid)
        .order_by(Project.name)
    ).all()
    keys = select(func.count()).where(ApiKey.user_uuid == user.uuid, ApiKey.revoked_at.is_(None))
    return {
        "uuid": user.uuid,
        "name": user.name,
        "role": user.role,
        "has_password": user.password_hash is not None,
        "disabled_at": user.disabled_at,
        "last_login_at": user.last_login_at,
        "created_at": user.created_at,
        "keys": session.scalar(keys),
        "grants": [{"project": name, "project_uuid": uuid, "role": role} for uuid, name, role in rows],
    }


def _check_role(role: str) -> None:
    if role not in access.ROLES:
        raise Invalid(f"There is no role {role[:40]!r}", f"Roles: {', '.join(access.ROLES)}.")
