"""/api/v1/machines and /api/v1/operations."""

from __future__ import annotations

import functools
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from sqlalchemy import select

from autovibe import lookup, machines, templates, views
from autovibe.access import Level
from autovibe.api.v1 import paging, schemas
from autovibe.api.v1.calls import Answer, ApiRoute, Call, Reading, doc, needs, reads
from autovibe.api.v1.routes import PREFIX
from autovibe.models import Checkpoint, Machine, MachineEvent, Operation

router = APIRouter(prefix=PREFIX, tags=["machines"], route_class=ApiRoute)

Status = Literal["spawning", "active", "working", "checkpointing", "paused", "terminated"]
#: Bytes of a packed manifest that the event loop unpacks itself. A guest may send what gets a thousand times as long.
_LARGE = 4096
_SOUGHT = {
    202: {
        "model": schemas.TemplateSought,
        "description": "The template is not known yet, and looked for on Proxmox: ask again after that.",
    }
}


@router.post("/machines", response_model=schemas.MachineStarted, **doc(402, 404, 409, status=201, more=_SOUGHT))
@needs(Level.OPERATE)
def spawn_machine(call: Call, body: schemas.Spawn):
    """Start a machine. It is `spawning` until its agent has enrolled."""
    project = call.project(body.project)
    checkpoint = call.checkpoint(body.checkpoint, Level.READ, project) if body.checkpoint else None
    try:
        return started(call, project, checkpoint, body, body.template)
    except templates.NoTemplate:
        return _sought(call, body.template or call.settings.default_template)


def _sought(call: Call, name: str) -> Answer:
    """A look on Proxmox for a template that nobody has recorded: a playbook or a person may have made it."""
    operation = views.operation(templates.take_in(call.session, call.settings, name))
    call.audit("import", "template", name=name, after=operation)
    headers = {"Location": f"/api/v1/operations/{operation['uuid']}"}
    return Answer({"machine": None, "operation": operation}, 202, headers, once=False)


def started(call: Call, project, checkpoint, body: schemas.SpawnFromCheckpoint, template: str | None = None) -> Answer:
    """The machine that was asked for, and its spawn operation."""
    made = machines.spawn(
        call.session,
        call.settings,
        project=project,
        prompt=body.prompt,
        machine_type=body.type,
        template=template,
        checkpoint=checkpoint,
        name=body.name,
        files=[file.model_dump() for file in body.files],
        command=body.command,
        model=body.model,
        limits=body.limits.model_dump(exclude_none=True),
        checkpoint_policy=body.checkpoint_policy.model_dump(exclude_none=True) if body.checkpoint_policy else None,
        max_cad=body.max_cad,
    )
    view = views.machine(call.session, made)
    asked = select(Operation).where(Operation.machine_uuid == made.uuid, Operation.kind == "spawn")
    operation = call.session.scalars(asked.order_by(Operation.seq)).first()
    call.audit("spawn", "machine", uuid=made.uuid, name=made.name, project_uuid=project.uuid, after=view)
    data = {"machine": view, "operation": views.operation(operation)}
    return Answer(data, 201, {"Location": f"/api/v1/machines/{made.uuid}"})


@router.get("/machines", response_model=schemas.Page[schemas.Machine], **doc(404))
@reads(Level.READ)
async def list_machines(
    reading: Reading,
    project: Annotated[str | None, Query(max_length=255, description="Of this project only.")] = None,
    status: Annotated[list[Status] | None, Query(description="In one of these states only.")] = None,
    type: Annotated[str | None, Query(max_length=50, description="Of this type only.")] = None,
    name: Annotated[str | None, Query(max_length=63, description="With this name only.")] = None,
    ended: Annotated[bool, Query(description="Also those that have ended.")] = False,
    limit: paging.Limit = 100,
    cursor: paging.Cursor = None,
):
    """Machines, the newest first."""
    where = reading.visible()
    if project is not None:
        where["project"] = await reading.call(lambda call: call.project(project).uuid)
    if status:
        where["statuses"] = status
    elif not ended:
        where["living"] = True
    for column, wanted in (("type", type), ("name", name)):
        if wanted is not None:
            where[column] = wanted.replace("\0", "")
    columns = ("spawned_at", "uuid")
    return Answer(content=await paging.written(reading.pool, views.machines, where, columns, cursor, limit))


@router.get("/machines/{machine}", response_model=schemas.MachineInFull, **doc(404))
@reads(Level.READ)
async def show_machine(reading: Reading, machine: str):
    """A machine with its prompt, its result, its files and its operations."""
    try:
        uuid = UUID(machine.strip())
    except ValueError:
        uuid = await reading.call(lambda call: call.machine(machine).uuid)
    rows = await reading.pool.rows(views.MACHINE_IN_FULL, machine=uuid)
    if not rows or reading.caller.level_in(rows[0]["project_uuid"]) is None:
        raise lookup.missing("machine", machine)
    reading.caller.require_in(rows[0]["project_uuid"], reading.level)
    manifest = rows[0]["manifest"]
    make = functools.partial(views.in_full, rows[0]["json"], manifest)
    return Answer(content=make if manifest and len(manifest) > _LARGE else make())


@router.post("/machines/{machine}/terminate", response_model=schemas.MachineStarted, **doc(404, 409, status=202))
@needs(Level.OPERATE)
def terminate_machine(call: Call, machine: str, body: schemas.Why | None = None):
    """End a machine: shut it down and keep it as its final checkpoint."""
    found = call.machine(machine)
    before = views.machine(call.session, found)
    reason = body.reason if body else None
    operation = machines.terminate(call.session, call.settings, found, reason=reason)
    return _operation_of(call, "terminate", found, operation, before, reason=reason)


@router.post("/machines/{machine}/checkpoints", response_model=schemas.CheckpointStarted, **doc(404, 409, status=202))
@needs(Level.OPERATE)
def checkpoint_machine(call: Call, machine: str, body: schemas.CheckpointAsked | None = None):
    """Make a checkpoint of a machine while it works."""
    found = call.machine(machine)
    description = body.description if body else None
    made, operation = machines.checkpoint(call.session, call.settings, found, description=description)
    view = views.checkpoint(call.session, made)
    call.audit("create", "checkpoint", uuid=made.uuid, name=found.name, project_uuid=found.project_uuid, after=view)
    return Answer({"checkpoint": view, "operation": views.operation(operation)}, 202)


@router.post("/machines/{machine}/pause", response_model=schemas.MachineStarted, **doc(404, 409, status=202))
@needs(Level.OPERATE)
def pause_machine(call: Call, machine: str):
    """Stop a machine and make a checkpoint of it, to go on from there later. Meanwhile only its disk costs."""
    found = call.machine(machine)
    before = views.machine(call.session, found)
    return _operation_of(call, "pause", found, machines.pause(call.session, call.settings, found), before)


@router.post("/machines/{machine}/resume", response_model=schemas.MachineStarted, **doc(402, 404, 409, status=202))
@needs(Level.OPERATE)
def resume_machine(call: Call, machine: str, body: schemas.ResumeAsked | None = None):
    """Start a machine again that was paused: its agent goes on with its work."""
    found = call.machine(machine)
    before = views.machine(call.session, found)
    max_cad = body.max_cad if body else None
    operation = machines.resume(call.session, call.settings, found, max_cad=max_cad)
    return _operation_of(call, "resume", found, operation, before)


@router.post("/machines/{machine}/restore", response_model=schemas.MachineStarted, **doc(404, 409, status=202))
@needs(Level.OPERATE)
def restore_machine(call: Call, machine: str, body: schemas.RestoreAsked):
    """Take a living machine back to one of its own checkpoints. Its tokens so far end at once."""
    found = call.machine(machine)
    before = views.machine(call.session, found)
    checkpoint = call.checkpoint(body.checkpoint, Level.READ)
    operation = machines.restore(call.session, call.settings, found, checkpoint)
    return _operation_of(call, "restore", found, operation, before, checkpoint=checkpoint.uuid)


def _operation_of(call: Call, action: str, machine: Machine, operation: Operation, before: dict, **more) -> Answer:
    call.session.refresh(machine)
    view = views.machine(call.session, machine)
    what = {"uuid": machine.uuid, "name": machine.name, "project_uuid": machine.project_uuid}
    asked = {key: value for key, value in more.items() if value is not None}
    call.audit(action, "machine", **what, before=before, after=view | {"operation": operation.uuid} | asked)
    return Answer({"machine": view, "operation": views.operation(operation)}, 202)


@router.get("/machines/{machine}/logs", response_model=schemas.Log, **doc(404))
@needs(Level.READ)
def machine_logs(
    call: Call,
    machine: str,
    after: Annotated[int | None, Query(ge=0, lt=2**63, description="Only lines after this one's id.")] = None,
    limit: paging.Limit = 100,
    cursor: paging.Cursor = None,
):
    """What a machine's agent has said, oldest first. `…/events` goes on as it speaks."""
    query = select(MachineEvent).where(MachineEvent.machine_uuid == call.machine(machine).uuid)
    if after is not None:
        query = query.where(MachineEvent.id > after)
    return paging.by_id(call.session, query, MachineEvent.id, cursor, limit, views.event)


@router.get("/machines/{machine}/operations", response_model=schemas.Page[schemas.Operation], **doc(404))
@needs(Level.READ)
def machine_operations(call: Call, machine: str, limit: paging.Limit = 100, cursor: paging.Cursor = None):
    """What was asked to be done to a machine, the newest first."""
    query = select(Operation).where(Operation.machine_uuid == call.machine(machine).uuid)
    show = views.operation
    return paging.by_id(call.session, query, Operation.seq, cursor, limit, show, newest_first=True)


@router.get("/operations/{operation}", response_model=schemas.OperationInFull, **doc(404))
@needs(Level.READ)
def show_operation(call: Call, operation: UUID):
    """Whether something that was asked for is done."""
    view = views.operation_in_full(call.operation(operation))
    if view["verification"] and call.caller.grants is not None:
        view["verification"] = _seen_by(call, view["verification"])
    return view


def _seen_by(call: Call, found: dict) -> dict:
    """What a look for all checkpoints has found, without those of other projects."""
    named = [UUID(one) for name in ("missing", "found_again") for one in found.get(name, [])]
    query = select(Checkpoint.uuid).where(Checkpoint.uuid.in_(named), call.caller.visible(Checkpoint.project_uuid))
    mine = {str(uuid) for uuid in call.session.scalars(query)}
    kept = {name: [one for one in found[name] if one in mine] for name in ("missing", "found_again") if name in found}
    return found | kept
