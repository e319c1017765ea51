"""Users, their keys and logins; the audit log."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from autovibe.api.v1.schemas.base import Body, View, formed, text

Role = Literal["admin", "operator", "viewer"]
GrantRole = Literal["operator", "viewer"]
Scope = Literal["metrics", "read", "operate", "admin"]


class UserNew(Body):
    name: formed(63, "[a-z0-9]([a-z0-9._@-]{0,61}[a-z0-9])?", "a name has a-z, 0-9 and . _ @ - between them")
    role: Role
    password: text(1024, 12) | None = None


class UserChange(Body):
    role: Role | None = None
    disabled: bool | None = None
    password: text(1024, 12) | None = None


class GrantIn(Body):
    role: GrantRole


class Grant(BaseModel):
    project: str
    project_uuid: UUID
    role: str


class GrantOf(BaseModel):
    user: str
    user_uuid: UUID
    role: str


class User(View):
    uuid: UUID
    name: str
    role: str
    has_password: bool
    disabled_at: datetime | None
    last_login_at: datetime | None
    created_at: datetime
    keys: int
    grants: list[Grant]


class KeyNew(Body):
    name: text(100, 1)
    scope: Scope = "operate"
    days: int | None = Field(90, ge=1, le=3650, description="How long it is good; null: for ever.")
    project: text(255, 1) | None = Field(None, description="Good for this project only.")
    user: text(63, 1) | None = Field(None, description="Whose key; an admin may name another user.")


class Key(View):
    uuid: UUID
    prefix: str
    name: str
    user: str
    scope: str
    project: str | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


class KeyMade(Key):
    key: str | None = Field(description="The key itself: it is shown this once, and not when the request is repeated.")


class Login(Body):
    name: text(63, 1)
    password: text(1024, 1)


class Refresh(Body):
    refresh_token: text(200, 1)


class LoggedIn(BaseModel):
    access_token: str
    token_type: Literal["bearer"]
    expires_in: int = Field(description="Seconds")
    refresh_token: str


class Me(BaseModel):
    """Who asks, and what they may do."""

    name: str
    role: str
    level: str
    user: UUID | None
    key: UUID | None
    projects: list[Grant] | None = Field(description="Null: all of them.")


class AuditLine(View):
    id: int
    at: datetime
    actor: str
    user: UUID | None
    key: UUID | None
    address: str | None
    request_id: str
    action: str
    object_type: str
    object_uuid: UUID | None
    object_name: str | None
    project: UUID | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
