"""Users, what they are granted, their keys and logins, and the audit log."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, BigInteger, Identity, Integer, String, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from autovibe.models.base import Base, CreatedAt, Key, reference


class User(Base):
    """A person, or a program with keys. role: admin, operator, viewer."""

    __tablename__ = "users"

    uuid: Mapped[Key]
    name: Mapped[str] = mapped_column(String(63), unique=True)
    role: Mapped[str] = mapped_column(String(20))
    password_hash: Mapped[str | None] = mapped_column(Text)
    disabled_at: Mapped[datetime | None]
    last_login_at: Mapped[datetime | None]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]


class ProjectGrant(Base):
    """What a user who is no admin may do in a project. role: operator, viewer."""

    __tablename__ = "project_grants"

    user_uuid: Mapped[UUID] = reference("users.uuid", primary_key=True)
    project_uuid: Mapped[UUID] = reference("projects.uuid", primary_key=True)
    role: Mapped[str] = mapped_column(String(20))
    created_at: Mapped[CreatedAt]


class ApiKey(Base):
    """A key of a user, known by its prefix. scope: metrics, read, operate, admin; the user's own role bounds it."""

    __tablename__ = "api_keys"

    uuid: Mapped[Key]
    user_uuid: Mapped[UUID] = reference("users.uuid")
    name: Mapped[str] = mapped_column(String(100))
    prefix: Mapped[str] = mapped_column(String(16), unique=True)
    key_hash: Mapped[str] = mapped_column(String(64))
    scope: Mapped[str] = mapped_column(String(20))
    project_uuid: Mapped[UUID | None] = reference("projects.uuid")
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    created_at: Mapped[CreatedAt]


class LoginSession(Base):
    """One login, with the hash of the refresh token that is good now."""

    __tablename__ = "login_sessions"

    uuid: Mapped[Key]
    user_uuid: Mapped[UUID] = reference("users.uuid")
    refresh_hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[CreatedAt]
    refreshed_at: Mapped[datetime | None]
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class LoginFailure(Base):
    """Logins that failed in a row, of a name from an address."""

    __tablename__ = "login_failures"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    address: Mapped[str] = mapped_column(String(64), primary_key=True)
    failures: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    locked_until: Mapped[datetime | None]
    last_at: Mapped[CreatedAt]


class AuditLine(Base):
    """One change that somebody asked for. Never changed, never deleted."""

    __tablename__ = "audit_log"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[CreatedAt]
    actor: Mapped[str] = mapped_column(Text)
    user_uuid: Mapped[UUID | None] = reference("users.uuid")
    key_uuid: Mapped[UUID | None] = reference("api_keys.uuid")
    address: Mapped[str | None] = mapped_column(Text)
    request_id: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text)
    object_type: Mapped[str] = mapped_column(Text)
    object_uuid: Mapped[UUID | None]
    object_name: Mapped[str | None] = mapped_column(Text)
    project_uuid: Mapped[UUID | None] = reference("projects.uuid")
    before: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    after: Mapped[dict[str, Any] | None] = mapped_column(JSONB)


class RequestReplay(Base):
    """What a POST with an Idempotency-Key was answered."""

    __tablename__ = "request_replays"

    caller: Mapped[str] = mapped_column(Text, primary_key=True)
    idempotency_key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    answer: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    created_at: Mapped[CreatedAt]
