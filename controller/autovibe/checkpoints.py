"""Checkpoints: nodes of a project's tree, each on a carrier (a snapshot of a VM, or a template).

Proxmox makes linked clones of templates only: a snapshot that is branched from is promoted first (a full clone that
becomes a template, once).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import select
from sqlalchemy.orm import Session

from autovibe import lookup, manifests, operations
from autovibe.errors import Conflict, Invalid
from autovibe.models import HUB, Checkpoint, Machine, Operation, Project, Template

TYPES = ("genesis", "automatic", "manual", "final", "hub_daily")


class CheckpointNotReady(Conflict):
    """Nothing can start from this checkpoint."""

    code = "checkpoint_not_ready"


def find(session: Session, text: str | UUID, project: Project | None = None) -> Checkpoint:
    """By uuid or uuid prefix."""
    scope = {"project_uuid": project.uuid} if project is not None else {}
    return lookup.find(session, Checkpoint, text, "checkpoint", **scope)


def listed(session: Session, *, project: Project | None = None) -> list[Checkpoint]:
    """Checkpoints, oldest first."""
    query = select(Checkpoint).order_by(Checkpoint.created_at, Checkpoint.uuid)
    if project is not None:
        query = query.where(Checkpoint.project_uuid == project.uuid)
    return list(session.scalars(query))


class HubCheckpoint(Conflict):
    """The checkpoint is of the hub's own VM: a machine that starts from it would be a second hub."""

    code = "hub_checkpoint"
    default_hint = "Nothing starts from it here."


class NoManifest(Conflict):
    """Nobody has said which files stand in this checkpoint."""

    code = "no_manifest"


def manifests_of(session: Session, *checkpoints: Checkpoint) -> list[dict[str, Any]]:
    """Their manifests; a genesis has an empty workspace. NoManifest."""
    for row in checkpoints:
        if not row.file_manifest and row.checkpoint_type != "genesis":
            raise NoManifest(f"Checkpoint {row.uuid} has no manifest", "A pruned one has none any more.")
    return [row.file_manifest or manifests.EMPTY for row in checkpoints]


def set_milestone(session: Session, checkpoint: Checkpoint, milestone: bool) -> Checkpoint:
    """Mark a checkpoint as one that is kept for ever, or no more."""
    checkpoint = session.get_one(Checkpoint, checkpoint.uuid, with_for_update=True, populate_existing=True)
    checkpoint.milestone = milestone
    session.flush()
    return checkpoint


def start(
    session: Session,
    machine: Machine,
    checkpoint_type: str,
    *,
    description: str | None = None,
    context: str | None = None,
    manifest: dict[str, Any] | None = None,
) -> Checkpoint:
    """A checkpoint that is to be made of a machine: `pending`."""
    checkpoint = Checkpoint(
        uuid=uuid4(),
        project_uuid=machine.project_uuid,
        parent_checkpoint_uuid=machine.last_checkpoint_uuid or machine.parent_checkpoint_uuid,
        creating_machine_uuid=machine.uuid,
        checkpoint_type=checkpoint_type,
        file_manifest=manifest or {},
        description=description,
        creation_context=context,
    )
    session.add(checkpoint)
    session.flush()
    return checkpoint


def take_over(
    session: Session,
    operation: Operation,
    checkpoint_type: str,
    description: str | None,
    context: str | None,
    manifest: dict[str, Any] | None,
) -> Checkpoint:
    """Let a checkpoint that is queued be the one that is asked for now, too: a person's word counts more."""
    checkpoint = session.get_one(Checkpoint, operation.checkpoint_uuid, with_for_update=True, populate_existing=True)
    if checkpoint.checkpoint_type == "automatic":
        checkpoint.checkpoint_type = checkpoint_type
    said = [checkpoint.description, description]
    checkpoint.description = "; ".join(dict.fromkeys(filter(None, said))) or None
    checkpoint.creation_context = context or checkpoint.creation_context
    if manifest and manifest.get("files"):
        checkpoint.file_manifest = manifest
    request = {**operation.params["vars"]["machine_checkpoint"], **variables(checkpoint)}
    operation.params = {**operation.params, "vars": {**operation.params["vars"], "machine_checkpoint": request}}
    session.flush()
    return checkpoint


def variables(checkpoint: Checkpoint) -> dict[str, Any]:
    """How a playbook is told which checkpoint to make: the name is the checkpoint's own, so a rerun finds it."""
    return {
        "name": f"av-{checkpoint.uuid.hex}",
        "description": f"autovibe checkpoint={checkpoint.uuid} type={checkpoint.checkpoint_type}",
    }


_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
TAGS_MOST = 20


def tag(session: Session, checkpoint: Checkpoint, add: Iterable[str] = (), remove: Iterable[str] = ()) -> Checkpoint:
    """Give and take tags; a tag is a word of a checkpoint, not unique."""
    wanted = [one for one in checkpoint.tags if one not in set(remove)]
    for one in add:
        if not _TAG.fullmatch(one):
            raise Invalid(
                f"{one!r:.80} is not a tag", "Letters, digits, . _ and -, at most 63, a letter or digit first."
            )
        wanted += [one] if one not in wanted else []
    if len(wanted) > TAGS_MOST:
        raise Invalid(f"A checkpoint has at most {TAGS_MOST} tags")
    checkpoint.tags = wanted
    session.flush()
    return checkpoint


def no_hub(session: Session, checkpoint: Checkpoint) -> None:
    """HubCheckpoint for one of the hub's own VM, with all its secrets."""
    made_by = checkpoint.creating_machine_uuid
    if made_by is not None and session.get_one(Machine, made_by).machine_type == HUB:
        raise HubCheckpoint(f"Checkpoint {checkpoint.uuid} is one of the hub's own VM: it would be a second hub")


def cancel(session: Session, operation: Operation) -> None:
    """A checkpoint whose operation was cancelled before it began has failed."""
    if operation.kind in ("checkpoint", "pause", "hub_checkpoint") and operation.checkpoint_uuid:
        session.get_one(Checkpoint, operation.checkpoint_uuid).verification_status = "failed"


def verified(session: Session, checkpoint: Checkpoint, made: dict[str, Any]) -> None:
    """Record what a playbook returned of it: {"name", "vm_id", "node", "carrier", "size_bytes"}."""
    checkpoint.carrier = made["carrier"]
    checkpoint.vm_id = made["vm_id"]
    checkpoint.node = made.get("node")
    checkpoint.proxmox_snapshot_id = made.get("name") if made["carrier"] == "snapshot" else None
    checkpoint.size_bytes = made.get("size_bytes")
    if "frozen" in made:
        checkpoint.metadata_ = {**checkpoint.metadata_, "frozen": made["frozen"]}
    checkpoint.verification_status = "verified"
    checkpoint.verified_at = datetime.now(UTC)
    session.flush()


def genesis(session: Session, project: Project, template: Template) -> Checkpoint:
    """The root of the project's tree for this template version; made once."""
    session.get_one(Project, project.uuid, with_for_update={"key_share": True})
    found = session.scalars(
        select(Checkpoint).where(
            Checkpoint.project_uuid == project.uuid,
            Checkpoint.checkpoint_type == "genesis",
            Checkpoint.vm_id == template.vm_id,
        )
    ).first()
    if found is not None:
        return found
    checkpoint = Checkpoint(
        uuid=uuid4(),
        project_uuid=project.uuid,
        checkpoint_type="genesis",
        vm_id=template.vm_id,
        node=template.node,
        carrier="template",
        description=f"template {template.name}",
        verification_status="verified",
        verified_at=datetime.now(UTC),
        metadata_={"template": str(template.uuid)},
    )
    session.add(checkpoint)
    session.flush()
    if project.initial_checkpoint_uuid is None:
        project.initial_checkpoint_uuid = checkpoint.uuid
    return checkpoint


def clone_depth(session: Session, checkpoint: Checkpoint) -> int:
    """How many linked clones the disk of what is cloned from this checkpoint stands on: 0 for a disk of its own."""
    if checkpoint.carrier != "template" or checkpoint.creating_machine_uuid is None:
        return 0  # a template that was built, or is promoted by a full clone
    machine = session.get_one(Machine, checkpoint.creating_machine_uuid)
    return machine.metadata_.get("clone_depth", 0) if checkpoint.vm_id == machine.vm_id else 0


def clonable(session: Session, checkpoint: Checkpoint, new_vm_id: Callable[[], int]) -> tuple[int, Operation | None]:
    """The template to clone for this checkpoint, and the operation that makes it first when there is none yet."""
    no_hub(session, checkpoint)
    checkpoint = session.get_one(Checkpoint, checkpoint.uuid, with_for_update=True, populate_existing=True)
    if checkpoint.verification_status != "verified":
        raise CheckpointNotReady(f"Checkpoint {checkpoint.uuid} is {checkpoint.verification_status}, not verified")
    if checkpoint.template_vm_id is not None:
        return checkpoint.template_vm_id, None
    if checkpoint.carrier == "template":
        return checkpoint.vm_id, None
    if checkpoint.carrier != "snapshot":
        raise CheckpointNotReady(f"Checkpoint {checkpoint.uuid} is a {checkpoint.carrier}; it has to be restored first")
    promotion = promote(session, checkpoint, new_vm_id)
    return promotion.params["vars"]["machine_promote_vm_id"], promotion


def promote(session: Session, checkpoint: Checkpoint, new_vm_id: Callable[[], int]) -> Operation:
    """Queue the promotion of a snapshot to a template, or return the one that is under way."""
    no_hub(session, checkpoint)
    under_way = session.scalars(
        select(Operation).where(
            Operation.checkpoint_uuid == checkpoint.uuid,
            Operation.kind == "promote",
            Operation.status.in_(("queued", "running")),
        )
    ).first()
    if under_way is not None:
        return under_way
    machine = session.get_one(Machine, checkpoint.creating_machine_uuid)
    return operations.enqueue(
        session,
        "promote",
        machine_uuid=machine.uuid,
        project_uuid=checkpoint.project_uuid,
        checkpoint_uuid=checkpoint.uuid,
        params={
            "vars": {
                "machine_vm_id": checkpoint.vm_id,
                "machine_name": machine.name,
                "machine_uuid": str(machine.uuid),
                "machine_checkpoint": {"name": checkpoint.proxmox_snapshot_id},
                "machine_promote_vm_id": new_vm_id(),
            }
        },
    )
