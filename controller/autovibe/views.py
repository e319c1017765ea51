"""Rows as plain data, the same for `--json` and for the API."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from autovibe.models import Checkpoint, Machine, MachineEvent, Operation, Project, Template


def machine(session: Session, row: Machine) -> dict[str, Any]:
    """One machine."""
    project = session.get_one(Project, row.project_uuid)
    return {
        "uuid": row.uuid,
        "name": row.name,
        "project": project.name,
        "type": row.machine_type,
        "status": row.status,
        "outcome": row.outcome,
        "vm_id": row.vm_id,
        "node": row.node,
        "progress": row.current_progress,
        "error": row.error_message,
        "api_calls": row.api_calls,
        "parent_checkpoint": row.parent_checkpoint_uuid,
        "last_checkpoint": row.last_checkpoint_uuid,
        "checkpoint_count": row.checkpoint_count,
        "spawned_at": row.spawned_at,
        "enrolled_at": row.enrolled_at,
        "terminated_at": row.terminated_at,
    }


def machine_in_full(session: Session, row: Machine) -> dict[str, Any]:
    """One machine with its prompt, its result, its files and its operations."""
    asked = session.scalars(select(Operation).where(Operation.machine_uuid == row.uuid).order_by(Operation.seq))
    return machine(session, row) | {
        "prompt": row.original_prompt,
        "model": (row.assignment or {}).get("model"),
        "command": (row.assignment or {}).get("command"),
        "limits": row.resource_constraints,
        "result": row.result or None,
        "files": (row.file_modifications or {}).get("files", []),
        "operations": [operation(one) for one in asked],
    }


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


def seconds(row: Operation) -> float | None:
    """From asked to ended."""
    return round((row.finished_at - row.created_at).total_seconds(), 3) if row.finished_at else None


def checkpoint(session: Session, row: Checkpoint) -> dict[str, Any]:
    """One checkpoint, without its files."""
    made_by = session.get(Machine, row.creating_machine_uuid) if row.creating_machine_uuid else None
    return {
        "uuid": row.uuid,
        "type": row.checkpoint_type,
        "status": row.verification_status,
        "project": session.get_one(Project, row.project_uuid).name,
        "machine": made_by.name if made_by else None,
        "machine_uuid": row.creating_machine_uuid,
        "parent": row.parent_checkpoint_uuid,
        "carrier": row.carrier,
        "vm_id": row.vm_id,
        "node": row.node,
        "snapshot": row.proxmox_snapshot_id,
        "template_vm_id": row.template_vm_id,
        "files": len((row.file_manifest or {}).get("files", [])),
        "size_bytes": row.size_bytes,
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
