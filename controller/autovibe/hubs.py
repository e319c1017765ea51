"""The hub's own VM: a machine of type hub, of which nothing but checkpoints is made.

It is adopted, not made: a run of Ansible marks it with this installation's identity, if it has the SMBIOS uuid that
this computer sees as its own. Nothing else proves that a VM id that somebody names is the hub, so each checkpoint asks
for the same proof.
"""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5
from zoneinfo import ZoneInfo

from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from autovibe import checkpoints, db, machine_vms, machines, metering, operations, projects
from autovibe.errors import Conflict
from autovibe.models import HUB, Checkpoint, Machine, Operation, Project
from autovibe.settings import Settings

#: What a guest sees as its VM's SMBIOS uuid; root alone may read it.
PRODUCT_UUID = Path("/sys/class/dmi/id/product_uuid")
#: Its machine's name, and its project's where none is named.
NAME = "hub"
#: A hub whose last checkpoint is older is not well.
LATE = timedelta(hours=48)
#: After the first try of a daily checkpoint has failed; twice that after the next.
RETRY = timedelta(hours=1)
DAILY_TRIES = 3


class Unproven(Conflict):
    """It cannot be proven which VM this hub runs in."""

    code = "hub_unproven"


class NotAdopted(Conflict):
    """This hub's own VM is not adopted."""

    code = "hub_not_adopted"
    default_hint = "`autovibe hub adopt VMID` does it once."


def own_uuid(settings: Settings) -> UUID:
    """The SMBIOS uuid of the computer that this process runs on: the setting's, else the kernel's word. Unproven."""
    if settings.hub_smbios_uuid is not None:
        return settings.hub_smbios_uuid
    try:
        return UUID(PRODUCT_UUID.read_text(encoding="ascii").strip())
    except PermissionError:
        raise Unproven(
            "Nothing proves which VM this hub runs in: its user may not read the SMBIOS uuid",
            f"Set AUTOVIBE_HUB_SMBIOS_UUID to what `sudo cat {PRODUCT_UUID}` says there, and start the hub again.",
        ) from None
    except (OSError, ValueError):
        raise Unproven(
            f"Nothing proves which VM this hub runs in: {PRODUCT_UUID} says no uuid",
            "Only a hub in a VM of Proxmox can be adopted.",
        ) from None


def find(session: Session) -> Machine | None:
    """The hub's machine, None while it is not adopted."""
    return session.get(Machine, _machine_uuid(session))


def adopt(
    session: Session, settings: Settings, vm_id: int, *, node: str | None = None, project: str | None = None
) -> Operation:
    """Ask that this VM be marked as the one that the hub runs in. Again, it finds all as it is, or moves the hub there.

    Its machine and checkpoints belong to `project`, which is made when there is none: by default `hub`. Once adopted
    they stay there. Raises Unproven; what Ansible finds to be wrong is the operation's error.
    """
    proof = own_uuid(settings)
    machine = find(session)
    wanted = _project_name(session, project) if project is not None else None
    owner = session.get_one(Project, machine.project_uuid).name if machine is not None else wanted or NAME
    if wanted not in (None, owner):
        raise Conflict(f"The hub belongs to project {owner} already", "Leave the project out.")
    taken = session.scalars(select(Machine).where(Machine.vm_id == vm_id, Machine.machine_type != HUB)).first()
    if taken is not None:
        raise Conflict(f"VM {vm_id} is that of machine {taken.name}, not this hub's")
    for queued in session.scalars(select(Operation).where(Operation.kind == "adopt", Operation.status == "queued")):
        if (queued.params["vars"]["machine_vm_id"], queued.params["project"]) == (vm_id, owner):
            return queued
    variables = {
        "machine_vm_id": vm_id,
        "machine_uuid": str(_machine_uuid(session)),
        "machine_tags": [f"type-{HUB}"],
        "hub_smbios_uuid": str(proof),
        "proxmox_node": node or "",
    }
    return operations.enqueue(session, "adopt", params={"project": owner, "vars": variables})


def adopted(session: Session, settings: Settings, operation: Operation) -> Machine:
    """Record the VM that an adoption has marked. Its disk is accounted from now on, as storage; what runs is not."""
    variables, seen = operation.params["vars"], operation.result["machines"][0]
    machine = session.get(Machine, UUID(variables["machine_uuid"]), with_for_update={"key_share": True})
    if machine is None:
        owner = _project(session, operation.params["project"])
        machine = Machine(uuid=UUID(variables["machine_uuid"]), machine_type=HUB, status="active")
        machine.project_uuid, machine.name = owner.uuid, _free_name(session, owner)
        session.add(machine)
    elif machine.vm_id != variables["machine_vm_id"]:
        metering.stopped(session, settings, machine.vm_id, state="ended")
    machine.vm_id, machine.node = variables["machine_vm_id"], seen["node"]
    machine.resource_constraints = {"cores": seen["cores"], "memory": seen["memory"]}
    machine.metadata_ = {**(machine.metadata_ or {}), "smbios_uuid": variables["hub_smbios_uuid"]}
    session.flush()
    disk_mib = int(seen["disk_bytes"] or 0) >> 20
    metering.store(session, settings, machine.vm_id, machine, disk_mib=disk_mib or None)
    operation.machine_uuid, operation.project_uuid = machine.uuid, machine.project_uuid
    machines.say(session, machine.uuid, f"VM {machine.vm_id} on {machine.node} is adopted: this hub runs in it")
    return machine


def checkpoint(
    session: Session, settings: Settings, *, checkpoint_type: str = "manual", label: str | None = None
) -> tuple[Checkpoint, Operation]:
    """Ask for a checkpoint of the hub's own VM: a snapshot without RAM, its filesystems frozen if its agent answers.

    checkpoint_type: manual or hub_daily. Raises NotAdopted, Unproven.
    """
    machine = find(session)
    if machine is None:
        raise NotAdopted("This hub's own VM is not adopted")
    machine = machines.locked(session, machine.uuid)
    proof = _proof(settings, machine)
    made = checkpoints.start(session, machine, checkpoint_type, description=label)
    return made, _ask(session, machine, made, proof)


def _proof(settings: Settings, machine: Machine) -> UUID:
    """This computer's SMBIOS uuid, which is that of the adopted VM. Unproven."""
    proof = own_uuid(settings)
    if str(proof) != machine.metadata_["smbios_uuid"]:
        raise Unproven(
            f"This hub does not run in VM {machine.vm_id} any more: its SMBIOS uuid is {proof}",
            "`autovibe hub adopt VMID` names the VM that it runs in now.",
        )
    return proof


def _ask(session: Session, machine: Machine, made: Checkpoint, proof: UUID) -> Operation:
    request = {**checkpoints.variables(made), "freeze": True, "ram": False}
    # On whatever node it is: it may have moved since.
    proven = {"hub_smbios_uuid": str(proof), "proxmox_node": ""}
    return operations.enqueue(
        session,
        "hub_checkpoint",
        machine_uuid=machine.uuid,
        project_uuid=machine.project_uuid,
        checkpoint_uuid=made.uuid,
        params={"vars": {**machine_vms.variables(machine), **proven, "machine_checkpoint": request}},
    )


def flush_database(settings: Settings) -> None:
    """Have Postgres write what it holds in memory, so that a hub that starts from the snapshot has little to redo.

    The snapshot is good without it, by the write-ahead log. Who is no superuser of the database may not ask for it.
    """
    try:
        with db.engine(settings).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("CHECKPOINT"))
    except DBAPIError:
        return


def daily(session: Session, settings: Settings, now: datetime | None = None) -> Operation | None:
    """Ask for today's checkpoint if it is time for it and it has not been made; once, however many were missed.

    One that has failed is tried again under its own name, twice: what Proxmox has made of it meanwhile is found.
    """
    machine, now = find(session), now or datetime.now(UTC)
    if machine is None or settings.hub_checkpoint_hour == "never":
        return None
    project = session.get_one(Project, machine.project_uuid)
    since = _last_time(now, settings.hub_checkpoint_hour, ZoneInfo(project.time_zone))
    if machine.spawned_at > since or operations.pending(session, machine.uuid, "hub_checkpoint"):
        return None
    mine = (Checkpoint.creating_machine_uuid == machine.uuid, Checkpoint.checkpoint_type == "hub_daily")
    query = select(Checkpoint).where(*mine, Checkpoint.created_at >= since).order_by(Checkpoint.created_at)
    made = session.scalars(query).all()
    if not made:
        return checkpoint(session, settings, checkpoint_type="hub_daily")[1]
    if any(one.verification_status != "failed" for one in made):
        return None
    return _retry(session, settings, machine, made[-1], now)


def _retry(
    session: Session, settings: Settings, machine: Machine, failed: Checkpoint, now: datetime
) -> Operation | None:
    """Ask for this checkpoint again, if it is time for that and it has not been tried too often."""
    machine = machines.locked(session, machine.uuid)
    tried = Operation.kind == "hub_checkpoint", Operation.checkpoint_uuid == failed.uuid
    ends = session.scalars(select(Operation.finished_at).where(*tried)).all()
    if len(ends) >= DAILY_TRIES or now - max(ends) < RETRY * 2 ** (len(ends) - 1):
        return None
    proof = _proof(settings, machine)
    failed.verification_status = "pending"
    return _ask(session, machine, failed, proof)


def last_checkpoint(session: Session, machine: Machine) -> Checkpoint | None:
    """The newest checkpoint of the hub that is there."""
    there = (Checkpoint.creating_machine_uuid == machine.uuid, Checkpoint.verification_status == "verified")
    return session.scalars(select(Checkpoint).where(*there).order_by(Checkpoint.created_at.desc()).limit(1)).first()


def view(session: Session, now: datetime | None = None) -> dict[str, Any] | None:
    """The adopted VM and its newest checkpoint, as plain data; `late`: that is too old. None while not adopted."""
    machine = find(session)
    if machine is None:
        return None
    last = last_checkpoint(session, machine)
    since = last.created_at if last is not None else machine.spawned_at
    return {
        "vm_id": machine.vm_id,
        "node": machine.node,
        "machine": machine.uuid,
        "name": machine.name,
        "project": session.get_one(Project, machine.project_uuid).name,
        "adopted_at": machine.spawned_at,
        "checkpoint": last.uuid if last is not None else None,
        "checkpoint_at": last.created_at if last is not None else None,
        "frozen": last.metadata_.get("frozen") if last is not None else None,
        "late": (now or datetime.now(UTC)) - since > LATE,
    }


def said(found: dict[str, Any]) -> str:
    """A sentence of how the hub's checkpoints are, from its view."""
    if found["checkpoint"] is None:
        return f"VM {found['vm_id']} has no checkpoint"
    return f"the last checkpoint of VM {found['vm_id']} is of {found['checkpoint_at'].strftime('%Y-%m-%d %H:%M')} UTC"


def _last_time(now: datetime, hour: int, zone: ZoneInfo) -> datetime:
    """When it was that hour last, in that time zone."""
    day = now.astimezone(zone).date()
    at = datetime.combine(day, time(hour), zone)
    if at.astimezone(UTC) > now:
        at = datetime.combine(day - timedelta(days=1), time(hour), zone)
    return at.astimezone(UTC)


def _machine_uuid(session: Session) -> UUID:
    """The hub's machine follows from the installation: an adoption that was broken off is found by the next."""
    return uuid5(machine_vms.installation_id(session), HUB)


def _project_name(session: Session, wanted: str) -> str:
    """The name of the project that is meant; one that there is not yet is made once the VM is adopted."""
    try:
        return projects.get(session, wanted).name
    except projects.NoSuchProject:
        return projects.checked_name(wanted)


def _project(session: Session, name: str) -> Project:
    try:
        return projects.get(session, name)
    except projects.NoSuchProject:
        return projects.create(session, name, budget_cad=None, description="The hub's own checkpoints")


def _free_name(session: Session, project: Project) -> str:
    mine = select(Machine).where(Machine.project_uuid == project.uuid, Machine.name == NAME)
    return NAME if session.scalars(mine).first() is None else f"{NAME}-{project.uuid.hex[:8]}"
