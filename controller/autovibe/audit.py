"""The audit log: every change that somebody asked for, written in the transaction of the change."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from autovibe import jsonform
from autovibe.access import Caller
from autovibe.models import AuditLine


def record(
    session: Session,
    caller: Caller,
    request_id: str,
    action: str,
    object_type: str,
    *,
    uuid: UUID | None = None,
    name: str | None = None,
    project_uuid: UUID | None = None,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    """Write a line. Of `before` and `after` only what differs is kept, when there are both."""
    if before is not None and after is not None:
        differs = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        before = {key: value for key, value in before.items() if key in differs}
        after = {key: value for key, value in after.items() if key in differs}
    session.add(
        AuditLine(
            actor=caller.name,
            user_uuid=caller.user_uuid,
            key_uuid=caller.key_uuid,
            address=caller.address,
            request_id=request_id,
            action=action,
            object_type=object_type,
            object_uuid=uuid,
            object_name=name,
            project_uuid=project_uuid,
            before=jsonform.plain(before),
            after=jsonform.plain(after),
        )
    )


def view(row: AuditLine) -> dict[str, Any]:
    """A line as plain data."""
    return {
        "id": row.id,
        "at": row.at,
        "actor": row.actor,
        "user": row.user_uuid,
        "key": row.key_uuid,
        "address": row.address,
        "request_id": row.request_id,
        "action": row.action,
        "object_type": row.object_type,
        "object_uuid": row.object_uuid,
        "object_name": row.object_name,
        "project": row.project_uuid,
        "before": row.before,
        "after": row.after,
    }
