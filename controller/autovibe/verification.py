"""Whether the checkpoints that the database calls verified still exist on Proxmox: one look for many.

A verify operation lists the VMs with their snapshots. What is not among them is `missing`; it is said, never removed.
What comes back is `verified` again. Or it tries one checkpoint: a machine is started from it, the files of its
workspace are compared with the manifest, and it is removed again.
"""

from __future__ import annotations

import logging
import re
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from autovibe import checkpoints, machine_vms, operations
from autovibe.errors import Conflict
from autovibe.models import Checkpoint, MachineEvent, Operation, Project
from autovibe.settings import Settings

log = logging.getLogger(__name__)

_THERE = ("verified", "missing")
#: Where the agent's workspace is in a guest.
WORKSPACE = "/workspace"
#: Files that a trial reads: their paths are one command line.
SAMPLE = 200
#: `sha256sum` writes other names in another form; a name that was no Unicode is not known any more.
_NAMEABLE = re.compile(r"[^\\\n\r\ufffd]{1,300}")


class NotVerifiable(Conflict):
    """There is nothing on Proxmox that could be looked for."""

    code = "not_verifiable"


def ask(session: Session, checkpoint: Checkpoint | None = None, project: Project | None = None) -> Operation:
    """Queue a look for one checkpoint, a project's, or all; one that is queued already is the answer, too."""
    if checkpoint is not None and checkpoint.verification_status not in _THERE:
        raise NotVerifiable(f"Checkpoint {checkpoint.uuid} is {checkpoint.verification_status}")
    # A promoted snapshot lives on two VMs: then all are listed.
    alone = checkpoint is not None and checkpoint.template_vm_id is None
    variables = {"machine_vm_id": checkpoint.vm_id} if alone else {}
    only = project.uuid if project is not None else None
    query = select(Operation).where(Operation.kind == "verify", Operation.status == "queued")
    for queued in session.scalars(query):
        if queued.params["vars"] in ({}, variables) and queued.project_uuid in (None, only) and not is_trial(queued):
            return queued
    return operations.enqueue(session, "verify", project_uuid=only, params={"vars": variables})


def ask_trial(session: Session, settings: Settings, checkpoint: Checkpoint) -> Operation:
    """Queue a trial of one checkpoint: does a machine start from it, and has it the files that the manifest names?"""
    checkpoints.no_hub(session, checkpoint)
    if checkpoint.verification_status != "verified":
        raise NotVerifiable(f"Checkpoint {checkpoint.uuid} is {checkpoint.verification_status}, not verified")
    if checkpoint.template_vm_id is not None or checkpoint.carrier == "template":
        source: dict[str, Any] = {"vm_id": checkpoint.template_vm_id or checkpoint.vm_id}
    elif checkpoint.carrier == "snapshot":
        source = {"vm_id": checkpoint.vm_id, "snapshot": checkpoint.proxmox_snapshot_id}
    else:
        raise NotVerifiable(f"Checkpoint {checkpoint.uuid} is a {checkpoint.carrier}; it has to be restored first")
    return operations.enqueue(
        session,
        "verify",
        project_uuid=checkpoint.project_uuid,
        checkpoint_uuid=checkpoint.uuid,
        params={
            "vars": {
                "machine_vm_id": machine_vms.next_vm_id(session, settings),
                "machine_name": f"trial-{checkpoint.uuid.hex[:12]}",
                "machine_uuid": str(checkpoint.uuid),
                "machine_source": source,
                "machine_full": "snapshot" in source,
                "machine_verify_files": [f"{WORKSPACE}/{file['path']}" for file in sample(checkpoint.file_manifest)],
            }
        },
    )


def is_trial(operation: Operation) -> bool:
    """Whether a verify operation tries one checkpoint."""
    return "machine_verify_files" in operation.params["vars"]


def sample(manifest: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Files that can be compared, at most `SAMPLE`, evenly from the whole list."""
    files = [file for file in (manifest or {}).get("files", []) if file["sha256"] and _NAMEABLE.fullmatch(file["path"])]
    step = -(-len(files) // SAMPLE) or 1
    return files[::step]


def record_trial(session: Session, operation: Operation) -> None:
    """Compare the files that were read with the manifest; the operation's result becomes a summary."""
    checkpoint = session.get_one(Checkpoint, operation.checkpoint_uuid, with_for_update=True)
    read = {}
    for line in ((operation.result or {}).get("exec") or {}).get("stdout", "").splitlines():
        digest, _, path = line.partition("  ")
        read[path.removeprefix(f"{WORKSPACE}/")] = digest
    wanted = sample(checkpoint.file_manifest)
    different = [file["path"] for file in wanted if read.get(file["path"]) != file["sha256"]]
    operation.result = {"compared": len(wanted), "different": different}
    tried = {"at": operation.finished_at.isoformat(), "compared": len(wanted), "different": len(different)}
    checkpoint.metadata_ = {**checkpoint.metadata_, "tried": tried}
    session.flush()


def unusable(operation: Operation, result: dict[str, Any] | None) -> str | None:
    """Why a list of VMs says nothing: one without any VM at all is a lost permission, not a lost server."""
    if not (result or {}).get("machines") and not operation.params["vars"]:
        return "Proxmox shows no VM at all; the token's permissions may be gone. Nothing is called missing"
    return None


def record(session: Session, operation: Operation) -> None:
    """Compare what was listed with what is recorded; the operation's result becomes a summary."""
    listed = {int(vm["vm_id"]): vm for vm in operation.result["machines"]}
    summary: dict[str, Any] = {"checked": 0, "missing": [], "found_again": []}
    for checkpoint in _concerned(session, operation):
        summary["checked"] += 1
        there = exists(checkpoint, listed)
        if there:
            checkpoint.verified_at = operation.finished_at
        if there == (checkpoint.verification_status == "verified"):
            continue
        checkpoint.verification_status = "verified" if there else "missing"
        summary["found_again" if there else "missing"].append(str(checkpoint.uuid))
        _say(session, checkpoint, there)
    operation.result = summary
    session.flush()


def exists(checkpoint: Checkpoint, listed: dict[int, dict[str, Any]]) -> bool:
    """Whether a checkpoint is among the listed VMs. One that has lost one of two carriers goes on with the other."""
    template = checkpoint.template_vm_id is not None and _is_template(listed, checkpoint.template_vm_id)
    if checkpoint.template_vm_id is not None and not template:
        checkpoint.template_vm_id = None
    if checkpoint.carrier == "template":
        return _is_template(listed, checkpoint.vm_id)
    if checkpoint.carrier != "snapshot":
        return True  # a backup lives elsewhere
    if checkpoint.proxmox_snapshot_id in _snapshots(listed.get(checkpoint.vm_id)):
        return True
    if template:
        checkpoint.carrier, checkpoint.vm_id = "template", checkpoint.template_vm_id
        checkpoint.template_vm_id = None
    return template


def _concerned(session: Session, operation: Operation) -> list[Checkpoint]:
    """Those that were made before the look began: it need not have seen a later one."""
    began: datetime = operation.claimed_at or operation.created_at
    query = select(Checkpoint).where(Checkpoint.verification_status.in_(_THERE), Checkpoint.verified_at < began)
    vm_id = operation.params["vars"].get("machine_vm_id")
    if vm_id is not None:
        query = query.where(Checkpoint.vm_id == vm_id, Checkpoint.template_vm_id.is_(None))
    if operation.project_uuid is not None:
        query = query.where(Checkpoint.project_uuid == operation.project_uuid)
    return list(session.scalars(query.order_by(Checkpoint.uuid).with_for_update()))


def _is_template(listed: dict[int, dict[str, Any]], vm_id: int | None) -> bool:
    return bool(vm_id in listed and listed[vm_id]["template"])


def _snapshots(vm: dict[str, Any] | None) -> set[str]:
    """The names of a VM's whole snapshots: one that was broken off cannot be gone back to."""
    return {one["name"] for one in (vm or {}).get("snapshots", []) if "snapstate" not in one}


def _say(session: Session, checkpoint: Checkpoint, there: bool) -> None:
    what = f"{checkpoint.checkpoint_type} checkpoint {checkpoint.uuid}"
    text = f"{what} is there again" if there else f"{what} is missing: Proxmox has it no more"
    (log.warning if there else log.error)("%s", text)
    if checkpoint.creating_machine_uuid is not None:
        kind = "system" if there else "error"
        session.add(MachineEvent(machine_uuid=checkpoint.creating_machine_uuid, kind=kind, text=text))
