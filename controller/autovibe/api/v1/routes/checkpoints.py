"""/api/v1/checkpoints."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import select

from autovibe import checkpoints, machines, views
from autovibe.access import Level
from autovibe.api.v1 import paging, schemas
from autovibe.api.v1.calls import Answer, ApiRoute, Call, doc, needs
from autovibe.api.v1.routes import PREFIX
from autovibe.api.v1.routes.machines import started
from autovibe.errors import Conflict
from autovibe.models import Checkpoint, Machine, Project

router = APIRouter(prefix=PREFIX, tags=["checkpoints"], route_class=ApiRoute)


class NoMachine(Conflict):
    """No machine made this checkpoint."""

    code = "no_machine"
    default_hint = "Start a new machine from it."


@router.get("/checkpoints", response_model=schemas.Page[schemas.Checkpoint], **doc(404))
@needs(Level.READ)
def list_checkpoints(
    call: Call,
    project: Annotated[str | None, Query(max_length=255, description="Of this project only.")] = None,
    machine: Annotated[str | None, Query(max_length=255, description="Made by this machine only.")] = None,
    milestone: Annotated[bool | None, Query(description="Only milestones, or only others.")] = None,
    tag: Annotated[str | None, Query(max_length=63, description="With this tag only.")] = None,
    limit: paging.Limit = 100,
    cursor: paging.Cursor = None,
):
    """Checkpoints, the newest first. `parent` makes them a tree."""
    query = select(Checkpoint).where(call.caller.visible(Checkpoint.project_uuid))
    if project is not None:
        query = query.where(Checkpoint.project_uuid == call.project(project).uuid)
    if machine is not None:
        query = query.where(Checkpoint.creating_machine_uuid == call.machine(machine).uuid)
    if milestone is not None:
        query = query.where(Checkpoint.milestone == milestone)
    if tag is not None:
        query = query.where(Checkpoint.tags.contains([tag.replace("\0", "")]))
    columns = (Checkpoint.created_at, Checkpoint.uuid)
    return paging.by_time(call.session, query, columns, cursor, limit, lambda row: views.checkpoint(call.session, row))


@router.get("/checkpoints/{checkpoint}", response_model=schemas.CheckpointInFull, **doc(404))
@needs(Level.READ)
def show_checkpoint(call: Call, checkpoint: str):
    """A checkpoint with the files of its workspace, and what it cost to reach."""
    return views.checkpoint_in_full(call.session, call.checkpoint(checkpoint))


@router.patch("/checkpoints/{checkpoint}", response_model=schemas.Checkpoint, **doc(404, 412))
@needs(Level.OPERATE)
def change_checkpoint(call: Call, checkpoint: str, body: schemas.CheckpointChange):
    """Make a checkpoint a milestone, which is kept for ever, or not; give it tags, or take them away."""
    found = call.checkpoint(checkpoint)
    found = call.session.get_one(Checkpoint, found.uuid, with_for_update=True, populate_existing=True)
    before = views.checkpoint(call.session, found)
    call.unchanged_since(views.checkpoint_in_full(call.session, found))
    if body.milestone is not None:
        checkpoints.set_milestone(call.session, found, body.milestone)
    if body.add_tags or body.remove_tags:
        checkpoints.tag(call.session, found, body.add_tags, body.remove_tags)
    view = views.checkpoint(call.session, found)
    call.audit("change", "checkpoint", uuid=found.uuid, project_uuid=found.project_uuid, before=before, after=view)
    return view


@router.post(
    "/checkpoints/{checkpoint}/machines", response_model=schemas.MachineStarted, **doc(402, 404, 409, status=201)
)
@needs(Level.OPERATE)
def spawn_from_checkpoint(call: Call, checkpoint: str, body: schemas.SpawnFromCheckpoint):
    """Start a machine from a checkpoint, in its project."""
    found = call.checkpoint(checkpoint)
    return started(call, call.session.get_one(Project, found.project_uuid), found, body)


@router.post("/checkpoints/{checkpoint}/restore", response_model=schemas.MachineStarted, **doc(404, 409, status=202))
@needs(Level.OPERATE)
def restore_checkpoint(call: Call, checkpoint: str):
    """Take the machine that made a checkpoint back to it."""
    found = call.checkpoint(checkpoint)
    if found.creating_machine_uuid is None:
        raise NoMachine()
    machine = call.session.get_one(Machine, found.creating_machine_uuid)
    before = views.machine(call.session, machine)
    operation = machines.restore(call.session, call.settings, machine, found)
    call.session.refresh(machine)
    view = views.machine(call.session, machine)
    what = {"uuid": machine.uuid, "name": machine.name, "project_uuid": machine.project_uuid}
    call.audit("restore", "machine", **what, before=before, after=view | {"checkpoint": found.uuid})
    return Answer({"machine": view, "operation": views.operation(operation)}, 202)
