"""A machine's VM: its id, and the host variables that say which one it is and what it is like."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

from sqlalchemy import or_, select, text
from sqlalchemy.orm import Session

from autovibe import slots
from autovibe.errors import Conflict
from autovibe.models import HUB, Installation, Machine, Project, VmMeter
from autovibe.settings import Settings


class HubMachine(Conflict):
    """The machine is the hub itself."""

    code = "hub_machine"
    default_hint = "`autovibe hub checkpoint` makes a checkpoint of it."


def next_vm_id(session: Session, settings: Settings) -> int:
    """A VM id that this installation has never used, `vm_id_first` or above: the range only grows."""
    while _is_taken(session, vm_id := _next_of_range(session, settings)):
        pass
    return vm_id


def _is_taken(session: Session, vm_id: int) -> bool:
    """Whether it is that of a VM which did not get it here: a hub's own has any id, and may have left it since."""
    machine = select(Machine.uuid).where(Machine.vm_id == vm_id).exists()
    meter = select(VmMeter.vm_id).where(VmMeter.vm_id == vm_id).exists()
    return session.scalars(select(or_(machine, meter))).one()


def _next_of_range(session: Session, settings: Settings) -> int:
    vm_id = session.scalar(text("SELECT nextval('vm_ids')::integer"))
    if vm_id >= settings.vm_id_first:
        return vm_id
    session.execute(text("SELECT pg_advisory_xact_lock(hashtext('autovibe vm_ids'))"))
    vm_id = session.scalar(text("SELECT nextval('vm_ids')::integer"))
    if vm_id < settings.vm_id_first:
        vm_id = session.scalar(text("SELECT setval('vm_ids', :first)::integer"), {"first": settings.vm_id_first})
    return vm_id


def installation_id(session: Session) -> UUID:
    """The id that stands in the description of every VM of ours."""
    return session.scalars(select(Installation.uuid)).one()


def variables(machine: Machine) -> dict[str, Any]:
    """The host variables that say which VM it is, for every playbook."""
    return {"machine_vm_id": machine.vm_id, "machine_name": machine.name, "machine_uuid": str(machine.uuid)}


def spawn_variables(
    session: Session, settings: Settings, machine: Machine, source: dict[str, Any] | None
) -> dict[str, Any]:
    """The host variables that say what the VM is like. `source`: what it is a clone of, `full` or linked."""
    slot = slots.acquire(session, settings, machine.uuid)
    found = variables(machine) | {
        "machine_tags": tags(session.get_one(Project, machine.project_uuid), machine.machine_type),
        "machine_cores": machine.resource_constraints["cores"],
        "machine_memory": machine.resource_constraints["memory"],
        "machine_mac": slot.mac,
        "machine_ip": slots.address(settings, slot),
        "machine_start": True,
    }
    if source is None:
        return found
    source = dict(source)
    return found | {"machine_full": source.pop("full", False), "machine_source": source}


def tags(project: Project, machine_type: str) -> list[str]:
    """Tags that people, the inventory plugin and `usage_info` find a project's VMs by; `[a-z0-9_.-]` on Proxmox."""
    slug = re.sub(r"[^a-z0-9_.]+", "-", project.name.lower()).strip("-.") or project.uuid.hex
    return [f"project-{slug}", f"type-{machine_type}"]


def no_hub(machine: Machine) -> None:
    """HubMachine for the VM in which this hub runs: it cannot stop itself, and go on."""
    if machine.machine_type == HUB:
        raise HubMachine(f"Machine {machine.name} is the VM in which this hub runs; it is only checkpointed")
