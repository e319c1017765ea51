"""Errors that a person reads: one sentence of what happened, to what, and what to do.

A subclass's docstring is its message's default. At the edges an error becomes one line and an exit code
(`exit_code`), or an HTTP status (`http_status`) with `{"error": {"type": code, "message": …}}`.
"""

from __future__ import annotations

from typing import Any, ClassVar


class AutovibeError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 400
    exit_code: ClassVar[int] = 1
    default_hint: ClassVar[str | None] = None

    def __init__(self, message: str | None = None, hint: str | None = None, **details: Any) -> None:
        self.message = message or (type(self).__doc__ or "").split("\n\n")[0].strip()
        self.hint = hint if hint is not None else self.default_hint
        self.details = details
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message.rstrip('.')}. {self.hint}" if self.hint else self.message


class NotFound(AutovibeError):
    """There is no such thing."""

    code = "not_found"
    http_status = 404


class Invalid(AutovibeError):
    """The input is not valid."""

    code = "invalid"
    http_status = 422
    exit_code = 2


class Conflict(AutovibeError):
    """That exists already."""

    code = "conflict"
    http_status = 409


class SettingsError(AutovibeError):
    """The settings are wrong."""

    code = "settings"
    http_status = 500
    exit_code = 2


class DatabaseError(AutovibeError):
    """The database cannot be used."""

    code = "database"
    http_status = 503


class DatabaseUnreachable(DatabaseError):
    """Postgres cannot be reached."""

    code = "database_unreachable"
    default_hint = "Start it, or check AUTOVIBE_DATABASE_URL."


class DatabaseBusy(DatabaseError):
    """The hub is too busy: its database has not answered in time."""

    code = "busy"
    default_hint = "Try again in some seconds."


class DatabaseNotMigrated(DatabaseError):
    """The database is not migrated."""

    code = "database_not_migrated"
    default_hint = "Run `autovibe db upgrade`."
