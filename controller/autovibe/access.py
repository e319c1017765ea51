"""Who asks, and what they may do.

A level is what is asked for: READ, OPERATE (start, stop, checkpoint machines), ADMIN (projects, money, users, keys). An
admin has all of them in every project; an operator or a viewer only in the projects that were granted, and there no
more than their own role and the grant's both allow. A key has no more than its scope, and only its project when it has
one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from autovibe.errors import AutovibeError


class Level(IntEnum):
    """What a request needs."""

    METRICS = 1
    READ = 2
    OPERATE = 3
    ADMIN = 4


ROLES = {"viewer": Level.READ, "operator": Level.OPERATE, "admin": Level.ADMIN}
GRANTS = {name: ROLES[name] for name in ("viewer", "operator")}
SCOPES = {"metrics": Level.METRICS, "read": Level.READ, "operate": Level.OPERATE, "admin": Level.ADMIN}


class Unauthenticated(AutovibeError):
    """Nobody is known by that key or token."""

    code = "unauthenticated"
    http_status = 401
    default_hint = "Send `Authorization: Bearer` with an API key or an access token."


class Forbidden(AutovibeError):
    """You may not do that."""

    code = "forbidden"
    http_status = 403
    default_hint = "Ask an admin of this hub for a role, or a key, that may."


@dataclass(frozen=True)
class Caller:
    """Who asks. `grants`: None is every project, else project -> level there. `level`: the most anywhere."""

    name: str
    level: Level
    grants: Mapping[UUID, Level] | None = None
    user_uuid: UUID | None = None
    key_uuid: UUID | None = None
    session_uuid: UUID | None = None
    role: str = "admin"
    address: str | None = field(default=None, compare=False)

    @property
    def identity(self) -> str:
        """What its requests are counted and remembered under."""
        return str(self.key_uuid or self.user_uuid or self.name)

    @property
    def is_local(self) -> bool:
        """Whether it is the owner of the hub's state folder, who needs no key."""
        return self.user_uuid is None

    def require(self, level: Level) -> None:
        """Forbidden unless it may do such things at all."""
        if self.level < level:
            raise Forbidden(f"{self.name} may not do that: it needs {_NEEDS[level]}")

    def level_in(self, project_uuid: UUID) -> Level | None:
        """What it may do in a project; None when it may not even know of it."""
        if self.grants is None:
            return self.level
        return self.grants.get(project_uuid)

    def require_in(self, project_uuid: UUID, level: Level) -> None:
        """Forbidden unless it may do such things in this project, which it can see."""
        if (self.level_in(project_uuid) or 0) < level:
            raise Forbidden(f"{self.name} may not do that in this project: it needs {_NEEDS[level]}")

    def visible(self, project_column: Any) -> Any:
        """The SQL condition for rows of projects that it can see."""
        return sa.true() if self.grants is None else project_column.in_(list(self.grants))


_NEEDS = {
    Level.METRICS: "a key of an admin",
    Level.READ: "scope read",
    Level.OPERATE: "role operator and scope operate",
    Level.ADMIN: "role admin and scope admin",
}

#: Who reaches the hub's own socket in its state folder, which only its owner can.
LOCAL = Caller(name="local", level=Level.ADMIN)


def caller(
    name: str,
    role: str,
    granted: Mapping[UUID, str],
    *,
    scope: str = "admin",
    only_project: UUID | None = None,
    **identity: Any,
) -> Caller:
    """The caller of a user with this role and these grants, through a key of this scope."""
    most = min(ROLES[role], SCOPES[scope])
    grants: dict[UUID, Level] | None = None
    if role != "admin":
        grants = {project: min(most, GRANTS[given]) for project, given in granted.items()}
    if only_project is not None:
        # A key for one project is no admin's key: what is not in a project is closed to it.
        inside = most if grants is None else grants.get(only_project)
        grants = {} if inside is None else {only_project: min(inside, Level.OPERATE)}
        most = min(most, Level.OPERATE)
    return Caller(name=name, level=most, grants=grants, role=role, **identity)
