"""/api/v1/machines/{machine}/files, /file, /archive and /patch: what a machine has left behind."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from autovibe import machine_files, workspaces
from autovibe.access import Level
from autovibe.api.v1 import schemas
from autovibe.api.v1.calls import Answer, ApiRoute, Call, doc, needs
from autovibe.api.v1.routes import PREFIX

router = APIRouter(prefix=PREFIX, tags=["machines"], route_class=ApiRoute)

_ARCHIVE = "application/gzip"
_PIECE_BYTES = 1 << 18


@router.get("/machines/{machine}/files", response_model=schemas.MachineFiles, **doc(404, 409))
@needs(Level.READ)
def list_machine_files(
    call: Call,
    machine: str,
    folder: Annotated[str, Query(max_length=4096, description="Only what is below it.")] = "",
):
    """The files of the workspace of a machine whose work has ended."""
    archive = machine_files.workspace(call.session, call.settings, call.machine(machine))
    return {"items": workspaces.listed(archive, folder)}


@router.get("/machines/{machine}/file", response_model=schemas.MachineFileContent, **doc(404, 409))
@needs(Level.READ)
def show_machine_file(
    call: Call,
    machine: str,
    name: Annotated[str, Query(max_length=4096, description="Its path in the workspace.")] = "",
):
    """One file of a machine's workspace."""
    archive = machine_files.workspace(call.session, call.settings, call.machine(machine))
    content = workspaces.content(archive, name)
    return {"path": name, "content_base64": base64.b64encode(content).decode()}


@router.get(
    "/machines/{machine}/archive",
    response_class=StreamingResponse,
    **doc(404, 409, more={200: {"description": "A tar archive, packed by gzip.", "content": {_ARCHIVE: {}}}}),
)
@needs(Level.READ)
def machine_archive(call: Call, machine: str):
    """All files of a machine's workspace. They come as the machine has left them: trust no name in the archive."""
    found = call.machine(machine)
    # Opened here: what is removed meanwhile is sent to its end.
    file = machine_files.workspace(call.session, call.settings, found).open("rb")
    headers = {
        "Content-Length": str(os.fstat(file.fileno()).st_size),
        "Content-Disposition": f'attachment; filename="{found.name}.tar.gz"',
        "Cache-Control": "private, no-cache",
    }
    return Answer(StreamingResponse(_pieces(file), headers=headers, media_type=_ARCHIVE))


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


@router.get("/machines/{machine}/patch", response_model=schemas.MachinePatch, **doc(404, 409))
@needs(Level.READ)
def show_machine_patch(call: Call, machine: str):
    """What a machine has changed of what it started from: an empty workspace, or its parent's at its end."""
    made = machine_files.patch(call.session, call.settings, call.machine(machine))
    return {"patch_base64": base64.b64encode(made).decode()}
