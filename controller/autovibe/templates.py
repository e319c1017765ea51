"""Templates: what a project's first machine is cloned from. Versions of one name differ in their inputs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from autovibe import operations
from autovibe.errors import Invalid, NotFound
from autovibe.models import Installation, Operation, Template
from autovibe.settings import Settings

#: What role and lab build by themselves: the guest image, and a guest that is only a record (for tests and benchmarks).
GUEST_DISK = "local:import/autovibe-guest.qcow2"
NULL_NAME, NULL_DISK, NULL_STORAGE = "autovibe-null", "null:1", "null"


class NoTemplate(NotFound):
    """There is no such template."""

    code = "no_template"


def ensure(
    session: Session,
    settings: Settings,
    name: str | None = None,
    *,
    disk_source: str | None = None,
    storage: str | None = None,
    bridge: str | None = None,
    null: bool = False,
) -> Operation:
    """Queue the building of a template, or return the one under way for this name. What stands already stays."""
    name = name or (NULL_NAME if null else settings.default_template)
    if under_way := _under_way(session, name, find=False):
        return under_way
    found: dict[str, Any] = {
        "template_name": name,
        "vm_template_installation": str(session.scalars(select(Installation.uuid)).one()),
        "template_disk_source": disk_source or (NULL_DISK if null else GUEST_DISK),
        "template_cores": settings.default_cores,
        "template_memory": settings.default_memory,
    }
    if storage or null:
        found["template_storage"] = storage or NULL_STORAGE
    if bridge:
        found["template_bridge"] = bridge
    return operations.enqueue(session, "template", params={"vars": found})


def take_in(session: Session, settings: Settings, name: str | None = None) -> Operation:
    """Queue a look for a template that a playbook or a person has made on Proxmox; its newest version is recorded."""
    name = name or settings.default_template
    wanted = {"template_name": name, "template_find": True}
    return _under_way(session, name, find=True) or operations.enqueue(session, "template", params={"vars": wanted})


def _under_way(session: Session, name: str, *, find: bool) -> Operation | None:
    asked = Operation.params["vars"]
    return session.scalars(
        select(Operation).where(
            Operation.kind == "template",
            Operation.status.in_(("queued", "running")),
            asked["template_name"].astext == name,
            asked.has_key("template_find") == find,
        )
    ).first()


def ready(session: Session, name: str) -> Template:
    """The newest version of a template that machines can be cloned from, or NoTemplate."""
    found = session.scalars(
        select(Template)
        .where(Template.name == name, Template.status == "ready", Template.vm_id.is_not(None))
        .order_by(Template.created_at.desc())
    ).first()
    if found is None:
        raise NoTemplate(
            f"There is no template {name}",
            "Build it with `autovibe template build`; `autovibe template import` takes in one that Proxmox has.",
        )
    return found


def listed(session: Session) -> list[Template]:
    """All versions, newest first."""
    return list(session.scalars(select(Template).order_by(Template.name, Template.created_at.desc())))


def record(session: Session, made: dict[str, Any]) -> Template:
    """Record what the playbook returned: {"name", "vm_id", "node", "inputs"}. Older versions of the name retire."""
    if not made.get("vm_id"):
        raise Invalid(f"The playbook returned no VM id for template {made.get('name')}")
    # One that is of no known inputs is a version of its own.
    inputs = str(made.get("inputs") or f"vm {made['vm_id']}")[:64]
    session.execute(
        update(Template)
        .where(Template.name == made["name"], Template.inputs != inputs, Template.status == "ready")
        .values(status="retired")
    )
    # A VM id is one version's only: a template that was built again under the same id has replaced the old one.
    session.execute(
        update(Template)
        .where(Template.vm_id == made["vm_id"], (Template.name != made["name"]) | (Template.inputs != inputs))
        .values(vm_id=None, status="retired")
    )
    template = session.scalars(select(Template).where(Template.name == made["name"], Template.inputs == inputs)).first()
    if template is None:
        template = Template(name=made["name"], inputs=inputs)
        session.add(template)
    template.vm_id = made["vm_id"]
    template.node = made.get("node")
    template.status = "ready"
    session.flush()
    return template
