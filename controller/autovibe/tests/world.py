"""A small world in the database, for tests of what machines and operations do."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

from autovibe import allocations, hubs, operations, records, templates
from autovibe.models import Project

LEASE = timedelta(seconds=60)
WORKER = "here/boot/1/1.0"


def morning():
    """A time zone in which it is between six and seven now: no day ends while a test looks some hours ahead."""
    ahead = 6 - datetime.now(UTC).hour
    ahead += 24 if ahead < -12 else 0
    return f"Etc/GMT{-ahead:+d}"


def project(session, name="demo", cad="5", time_zone="UTC"):
    made = Project(uuid=uuid4(), name=name, time_zone=time_zone)
    session.add(made)
    session.flush()
    if Decimal(cad) > 0:
        allocations.create(session, made.uuid, Decimal(cad))
    return made


def template(session, name="autovibe-guest", vm_id=9000, inputs="one"):
    return templates.record(session, {"name": name, "vm_id": vm_id, "node": "pve1", "inputs": inputs})


def hub(session, settings, vm_id=120, project=None):
    """The machine of a hub whose VM is adopted."""
    settings.hub_smbios_uuid = settings.hub_smbios_uuid or uuid4()
    hubs.adopt(session, settings, vm_id, project=project)
    do(session, settings, kind="adopt")
    return hubs.find(session)


def claim(session, *, kinds=operations.KINDS, limit=20, worker=WORKER):
    """The operations of a new run, or []."""
    run = operations.claim(session, worker, "here", kinds=kinds, limit=limit, lease=LEASE)
    return operations.of_run(session, run.uuid) if run else []


def made(operation, carrier="snapshot", vms=None):
    """What the playbook of this operation would return."""
    variables = operation.params["vars"]
    machine = {"vm_id": variables.get("machine_vm_id"), "node": "pve1", "status": "running", "created": True}
    checkpoint = {"vm_id": variables.get("machine_vm_id"), "node": "pve1", "carrier": carrier, "size_bytes": 1}
    if operation.kind == "adopt":
        seen = {"vm_id": machine["vm_id"], "node": "pve2", "cores": 4, "memory": 8192, "disk_bytes": 32 << 30}
        return {"machine": machine, "machines": [seen]}
    if operation.kind == "verify" and "machine_verify_files" in variables:
        return {"machine": machine, "exec": {"rc": 0, "stdout": "\n".join(vms or [])}}
    if operation.kind == "verify":
        return {"machines": list(vms or [])}
    if operation.kind == "prune":
        removed = [{**item, "exists": False} for item in variables["machine_prune"]]
        return {"machine": {"vm_id": variables["machine_vm_id"]}} if not removed else {"checkpoints": removed}
    if operation.kind == "promote":
        checkpoint |= {"vm_id": variables["machine_promote_vm_id"], "carrier": "template"}
    if operation.kind == "terminate" and variables["machine_final"]["kind"] == "none":
        return {"machine": {}}
    named = variables.get("machine_checkpoint") or variables.get("machine_final") or {}
    checkpoint["name"] = named.get("name")
    facts = dict.fromkeys(("spawn", "restore", "resume"), {"machine": machine})
    return facts.get(operation.kind, {"checkpoint": checkpoint})


def do(session, settings, *, kind=None, carrier="snapshot", error=None, error_class=None, vms=None):
    """Claim what comes next and end it as a run would; returns the operations."""
    done = claim(session, kinds=(kind,) if kind else operations.KINDS)
    for operation in done:
        result = None if error else made(operation, carrier, vms)
        records.end(
            session, settings, operation.uuid, run_uuid=operation.run_uuid,
            result=result, error=error, error_class=error_class,
        )  # fmt: skip
    if done:
        operations.end_run(session, done[0].run_uuid, "failed" if error else "succeeded", 0)
    return done
