"""/api/v1/machines/{machine}/files, /file and /patch: what a machine has left behind."""

from __future__ import annotations

import base64
from typing import Annotated

from fastapi import APIRouter, Query

from autovibe import machine_files
from autovibe.access import Level
from autovibe.api.v1 import schemas
from autovibe.api.v1.calls import ApiRoute, Call, doc, needs
from autovibe.api.v1.routes import PREFIX

router = APIRouter(prefix=PREFIX, tags=["machines"], route_class=ApiRoute)


@router.get("/machines/{machine}/files", response_model=schemas.MachineFiles, **doc(404, 409))
@needs(Level.READ)
def list_machine_files(
    call: Call,
    machine: str,
    folder: Annotated[str, Query(max_length=4096, description="Only what is below it.")] = "",
):
    """The files of the workspace of a machine whose work has ended."""
    archive = machine_files.workspace(call.session, call.settings, call.machine(machine))
    return {"items": machine_files.listed(archive, folder)}


@router.get("/machines/{machine}/file", response_model=schemas.MachineFileContent, **doc(404, 409))
@needs(Level.READ)
def show_machine_file(
    call: Call,
    machine: str,
    name: Annotated[str, Query(max_length=4096, description="Its path in the workspace.")] = "",
):
    """One file of a machine's workspace."""
    archive = machine_files.workspace(call.session, call.settings, call.machine(machine))
    content = machine_files.content(archive, name)
    return {"path": name, "content_base64": base64.b64encode(content).decode()}


@router.get("/machines/{machine}/patch", response_model=schemas.MachinePatch, **doc(404, 409))
@needs(Level.READ)
def show_machine_patch(call: Call, machine: str):
    """What a machine has changed of what it started from: an empty workspace, or its parent's at its end."""
    made = machine_files.patch(call.session, call.settings, call.machine(machine))
    return {"patch_base64": base64.b64encode(made).decode()}
