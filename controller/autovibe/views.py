"""Rows as plain data, the same for `--json` and for the API."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Numeric, Text, case, cast, func, literal_column, select
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session

from autovibe import jsonform, manifests
from autovibe.async_db import Statement
from autovibe.models import Checkpoint, Machine, MachineEvent, Operation, Project, Template


def name_of(session: Session, model: type[Project] | type[Machine], uuid: UUID | None) -> str | None:
    """A project's or machine's name, asked for once in a session: a list's rows mostly share theirs."""
    if uuid is None:
        return None
    names = session.info.setdefault("names", {})
    if uuid not in names:
        names[uuid] = session.scalar(select(model.name).where(model.uuid == uuid))
    return names[uuid]


#: A machine's view, by the columns that it comes from.
_MACHINE: dict[str, Any] = {
    "uuid": Machine.uuid,
    "name": Machine.name,
    "project": Project.name,
    "type": Machine.machine_type,
    "status": Machine.status,
    "outcome": Machine.outcome,
    "pause_reason": Machine.pause_reason,
    "vm_id": Machine.vm_id,
    "node": Machine.node,
    "progress": Machine.current_progress,
    "error": Machine.error_message,
    "api_calls": Machine.api_calls,
    "max_cad": Machine.max_cad,
    "parent_checkpoint": Machine.parent_checkpoint_uuid,
    "last_checkpoint": Machine.last_checkpoint_uuid,
    "checkpoint_count": Machine.checkpoint_count,
    "spawned_at": Machine.spawned_at,
    "enrolled_at": Machine.enrolled_at,
    "terminated_at": Machine.terminated_at,
}


def machine(session: Session, row: Machine) -> dict[str, Any]:
    """One machine."""
    project = name_of(session, Project, row.project_uuid)
    return {name: project if name == "project" else getattr(row, column.key) for name, column in _MACHINE.items()}


def as_json(columns: dict[str, Any]) -> Any:
    """A view as JSON that Postgres writes: a list of them is many times faster so. Money is text, as in all views."""
    pairs = [part for name, column in columns.items() for part in (literal_column(f"'{name}'"), _shown(column))]
    return func.json_build_object(*pairs)


def _shown(column: Any) -> Any:
    is_exact = isinstance(column.type, Numeric) and column.type.asdecimal
    return cast(column, Text) if is_exact else column


#: What a list of machines can be limited to, by the name of what it is compared with.
_MACHINES_WHERE = {
    "visible": Machine.project_uuid == sa.any_(sa.bindparam("visible", type_=sa.ARRAY(sa.Uuid))),
    "project": Machine.project_uuid == sa.bindparam("project", type_=sa.Uuid),
    "statuses": Machine.status == sa.any_(sa.bindparam("statuses", type_=sa.ARRAY(Text))),
    # In the text, so that an index of those alone can serve.
    "living": Machine.status != literal_column("'terminated'"),
    "type": Machine.machine_type == sa.bindparam("type", type_=Text),
    "name": Machine.name == sa.bindparam("name", type_=Text),
    "after": sa.tuple_(Machine.spawned_at, Machine.uuid)
    < sa.tuple_(sa.bindparam("at", type_=Machine.spawned_at.type), sa.bindparam("after", type_=sa.Uuid)),
}


@lru_cache(maxsize=1 << len(_MACHINES_WHERE))
def machines(where: frozenset[str]) -> Statement:
    """`limit` machines as `json`, the newest first; with the conditions that are named, and what they compare with."""
    page = (
        select(*(column.label(name) for name, column in _MACHINE.items()))
        .join(Project, Project.uuid == Machine.project_uuid)
        .where(*(_MACHINES_WHERE[name] for name in sorted(where)))
        .order_by(Machine.spawned_at.desc(), Machine.uuid.desc())
        .limit(sa.bindparam("limit", type_=sa.Integer))
        # Else Postgres would write all that it sorts.
        .subquery("page")
    )
    shown = cast(as_json({name: page.c[name] for name in _MACHINE}), Text).label("json")
    columns = (page.c.spawned_at, page.c.uuid)
    return Statement(select(shown, *columns).order_by(*(column.desc() for column in columns)))


#: A machine's operations as `operation` shows them, oldest first.
_OPERATIONS = (
    select(
        func.coalesce(
            func.json_agg(
                aggregate_order_by(
                    as_json(
                        {
                            "uuid": Operation.uuid,
                            "kind": Operation.kind,
                            "status": Operation.status,
                            "error": case((Operation.status == "failed", Operation.error)),
                            "attempts": Operation.attempts,
                            "run": Operation.run_uuid,
                            "checkpoint": Operation.checkpoint_uuid,
                            "created_at": Operation.created_at,
                            "started_at": Operation.started_at,
                            "finished_at": Operation.finished_at,
                            "seconds": func.round(
                                func.extract("epoch", Operation.finished_at - Operation.created_at), 3
                            ),
                        }
                    ),
                    Operation.seq,
                )
            ),
            literal_column("'[]'::json"),
        )
    )
    .where(Operation.machine_uuid == Machine.uuid)
    .scalar_subquery()
)
_MACHINE_IN_FULL = select(
    cast(
        as_json(
            _MACHINE
            | {
                "prompt": Machine.original_prompt,
                "model": Machine.assignment["model"],
                "command": Machine.assignment["command"],
                "limits": Machine.resource_constraints,
                "result": func.nullif(Machine.result, literal_column("'{}'::jsonb")),
                "operations": _OPERATIONS,
            }
        ),
        Text,
    ).label("json"),
    sa.type_coerce(Machine.manifest, sa.LargeBinary).label("manifest"),
    Machine.project_uuid,
).join(Project, Project.uuid == Machine.project_uuid)
#: One machine in full, as `in_full` takes it: `machine` is its uuid.
MACHINE_IN_FULL = Statement(_MACHINE_IN_FULL.where(Machine.uuid == sa.bindparam("machine", type_=sa.Uuid)))
_PIECE = 500


def in_full(written: str, manifest: bytes | None) -> bytes:
    """A machine with its prompt, its result, its files and its operations, as JSON."""
    files = (manifests.unpack(manifest) or {}).get("files", [])
    # In pieces: while one is written, no other thread runs.
    pieces = (jsonform.dumps(files[n : n + _PIECE])[1:-1] for n in range(0, len(files), _PIECE))
    return b'%s,"files":[%s]}' % (written.encode().removesuffix(b"}"), b",".join(pieces))


def machine_in_full(session: Session, row: Machine) -> dict[str, Any]:
    """The same as plain data."""
    found = session.execute(_MACHINE_IN_FULL.where(Machine.uuid == row.uuid)).one()
    return json.loads(in_full(found.json, found.manifest and bytes(found.manifest)))


def operation(row: Operation) -> dict[str, Any]:
    """One operation."""
    return {
        "uuid": row.uuid,
        "kind": row.kind,
        "status": row.status,
        "error": row.error if row.status == "failed" else None,
        "attempts": row.attempts,
        "run": row.run_uuid,
        "checkpoint": row.checkpoint_uuid,
        "created_at": row.created_at,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "seconds": seconds(row),
    }


def operation_in_full(row: Operation) -> dict[str, Any]:
    """One operation, with its machine, what it made or found, and the end of the task log that Proxmox wrote."""
    made = row.result or {}
    is_look = row.kind == "verify" and row.status == "succeeded"
    task_log = made.get("task_log") or []
    lines = [str(line) for line in task_log] if isinstance(task_log, list) else []
    return operation(row) | {
        "machine": row.machine_uuid,
        "template": made.get("template") if row.kind == "template" else None,
        "verification": made if is_look else None,
        "task_log": lines[-20:],
    }


def seconds(row: Operation) -> float | None:
    """From asked to ended."""
    return round((row.finished_at - row.created_at).total_seconds(), 3) if row.finished_at else None


def checkpoint_in_full(session: Session, row: Checkpoint) -> dict[str, Any]:
    """One checkpoint, with its files and what it cost to reach."""
    from autovibe import reports

    return checkpoint(session, row) | {
        "cad_to_reach": reports.checkpoint_cost(session, row.uuid),
        "context": row.creation_context,
        "manifest": row.file_manifest or {"files": [], "truncated": False},
    }


def checkpoint(session: Session, row: Checkpoint) -> dict[str, Any]:
    """One checkpoint, without its files."""
    return {
        "uuid": row.uuid,
        "type": row.checkpoint_type,
        "status": row.verification_status,
        "project": name_of(session, Project, row.project_uuid),
        "machine": name_of(session, Machine, row.creating_machine_uuid),
        "machine_uuid": row.creating_machine_uuid,
        "parent": row.parent_checkpoint_uuid,
        "carrier": row.carrier,
        "vm_id": row.vm_id,
        "node": row.node,
        "snapshot": row.proxmox_snapshot_id,
        "template_vm_id": row.template_vm_id,
        "files": row.file_count,
        "size_bytes": row.size_bytes,
        "tags": row.tags,
        "milestone": row.milestone,
        "description": row.description,
        "created_at": row.created_at,
        "verified_at": row.verified_at,
    }


def template(row: Template) -> dict[str, Any]:
    """One version of a template."""
    return {
        "uuid": row.uuid,
        "name": row.name,
        "status": row.status,
        "vm_id": row.vm_id,
        "node": row.node,
        "inputs": row.inputs,
        "created_at": row.created_at,
    }


def event(row: MachineEvent) -> dict[str, Any]:
    """One line of a machine's log."""
    return {"id": row.id, "at": row.at, "kind": row.kind, "text": row.text}


def events(session: Session, row: Machine, *, after: int = 0, limit: int = 1000) -> list[MachineEvent]:
    """The machine's log after an event's id, oldest first."""
    return list(
        session.scalars(
            select(MachineEvent)
            .where(MachineEvent.machine_uuid == row.uuid, MachineEvent.id > after)
            .order_by(MachineEvent.id)
            .limit(limit)
        )
    )
