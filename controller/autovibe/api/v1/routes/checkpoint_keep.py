"""/api/v1: how checkpoints are compared, looked for, kept and removed; the tree that they are."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Response
from sqlalchemy import select

from autovibe import checkpoints, contents, manifests, policies, pruning, trees, verification, views
from autovibe.access import Level
from autovibe.api.v1 import paging, schemas
from autovibe.api.v1.calls import Answer, ApiRoute, Call, doc, needs
from autovibe.api.v1.routes import PREFIX
from autovibe.models import Checkpoint, Operation, Project

router = APIRouter(prefix=PREFIX, tags=["checkpoints"], route_class=ApiRoute)

OneProject = Annotated[str | None, Query(max_length=255, description="Of this project only.")]
Everything = Annotated[bool, Query(description="Also those that were pruned or have failed.")]
_DRAWING = {
    200: {
        "description": "SVG, or DOT for Graphviz.",
        "content": {"image/svg+xml": {}, "text/vnd.graphviz": {}},
    }
}
_MEDIA = {"svg": "image/svg+xml", "dot": "text/vnd.graphviz"}


@router.get("/checkpoints/{checkpoint}/diff", response_model=schemas.Diff, **doc(404, 409))
@needs(Level.READ)
def diff(
    call: Call,
    checkpoint: str,
    to: Annotated[str, Query(max_length=255, description="The checkpoint that it is compared with.")],
    form: Annotated[
        Literal["stat", "files", "content"], Query(description="How many files; which; also their changed lines.")
    ] = "files",
):
    """Which files are different from this checkpoint to another one, of any project that you see."""
    rows = [call.checkpoint(checkpoint), call.checkpoint(to)]
    found = manifests.diff(*checkpoints.manifests_of(call.session, *rows))
    shown: dict[str, Any] = {"stat": found.stat()} | ({"whole": found.whole} if form == "stat" else asdict(found))
    if form == "content":
        shown["content"] = contents.unified(call.session, call.settings, *rows, found)
    return shown


@router.post("/checkpoints/{checkpoint}/verify", response_model=schemas.Started, **doc(404, 409, status=202))
@needs(Level.OPERATE)
def verify_checkpoint(call: Call, checkpoint: str, body: schemas.Verify | None = None):
    """Ask Proxmox whether a checkpoint still exists; or try it. The operation's `verification` says what was found."""
    found = call.checkpoint(checkpoint)
    if body is not None and body.trial:
        operation = verification.ask_trial(call.session, call.settings, found)
    else:
        operation = verification.ask(call.session, found)
    return _asked(call, operation, "checkpoint", uuid=found.uuid, project_uuid=found.project_uuid)


@router.post("/projects/{project}/verify", response_model=schemas.Started, tags=["projects"], **doc(404, status=202))
@needs(Level.OPERATE)
def verify_project(call: Call, project: str):
    """Ask Proxmox whether a project's checkpoints still exist."""
    found = call.project(project)
    operation = verification.ask(call.session, project=found)
    return _asked(call, operation, "project", uuid=found.uuid, name=found.name, project_uuid=found.uuid)


@router.post("/hub/verify", response_model=schemas.Started, tags=["hub"], **doc(status=202))
@needs(Level.ADMIN)
def verify_all(call: Call):
    """Ask Proxmox whether all checkpoints still exist."""
    call.everything("Ask for one project's: POST /api/v1/projects/…/verify.")
    return _asked(call, verification.ask(call.session), "hub")


def _asked(call: Call, operation: Operation, object_type: str, **what: Any) -> Answer:
    view = views.operation(operation)
    call.audit("verify", object_type, **what, after={"operation": operation.uuid})
    return Answer({"operation": view}, 202)


@router.delete("/checkpoints/{checkpoint}", response_model=schemas.CheckpointStarted, **doc(404, 409, 412, status=202))
@needs(Level.OPERATE)
def delete_checkpoint(call: Call, checkpoint: str):
    """Remove a checkpoint; refused while something stands on it, or needs it."""
    found = call.checkpoint(checkpoint)
    before = views.checkpoint(call.session, found)
    call.unchanged_since(views.checkpoint_in_full(call.session, found))
    operation = pruning.delete(call.session, found)
    view = views.checkpoint(call.session, found)
    call.audit("delete", "checkpoint", uuid=found.uuid, project_uuid=found.project_uuid, before=before, after=view)
    return Answer({"checkpoint": view, "operation": views.operation(operation)}, 202)


@router.get("/projects/{project}/prune", response_model=schemas.Page[schemas.Verdict], tags=["projects"], **doc(404))
@needs(Level.READ)
def preview_pruning(call: Call, project: str, limit: paging.Limit = 100, cursor: paging.Cursor = None):
    """What the project's policy says of each checkpoint that is there, the newest first. Nothing is changed."""
    page = paging.of_list(pruning.plan(call.session, call.project(project)), cursor, limit)
    shown = [views.checkpoint(call.session, one.checkpoint) | {"reason": one.reason} for one in page["items"]]
    return page | {"items": shown}


@router.post("/projects/{project}/prune", response_model=schemas.Pruning, tags=["projects"], **doc(404, status=202))
@needs(Level.OPERATE)
def prune(call: Call, project: str):
    """Remove the checkpoints that the project's policy does not keep."""
    found = call.project(project)
    queued = pruning.prune(call.session, found)
    gone = [UUID(text) for operation in queued for text in operation.params["checkpoints"]]
    call.audit(
        "prune", "project", uuid=found.uuid, name=found.name, project_uuid=found.uuid, after={"checkpoints": gone}
    )
    return Answer({"checkpoints": gone, "operations": [views.operation(one) for one in queued]}, 202)


@router.get("/projects/{project}/policy", response_model=schemas.Policy, tags=["projects"], **doc(404))
@needs(Level.READ)
def show_policy(call: Call, project: str):
    """When a project's machines are checkpointed, and how long that is kept."""
    return _policy(call.project(project))


@router.patch("/projects/{project}/policy", response_model=schemas.Policy, tags=["projects"], **doc(404, 412))
@needs(Level.ADMIN)
def change_policy(call: Call, project: str, body: schemas.PolicyChange):
    """Change what is given of it; it holds from now on, also for what was made before."""
    found = call.session.get_one(
        Project, call.project(project).uuid, with_for_update={"key_share": True}, populate_existing=True
    )
    before = _policy(found)
    call.unchanged_since(before)
    made, kept = (one.model_dump(exclude_none=True) for one in (body.made, body.kept))
    policies.change(found, made=made, kept=kept)
    view = _policy(found)
    what = {"uuid": found.uuid, "name": found.name, "project_uuid": found.uuid}
    call.audit("change policy", "project", **what, before=before, after=view)
    return view


def _policy(project: Project) -> dict[str, Any]:
    return {
        "made": policies.as_words(policies.of(policies.Making(), project.checkpoint_policy)),
        "kept": policies.as_words(policies.keeping(project)),
    }


@router.get("/tree", response_model=schemas.Page[schemas.TreeNode], **doc(404))
@needs(Level.READ)
def tree(
    call: Call,
    project: OneProject = None,
    everything: Everything = False,
    limit: paging.Limit = 100,
    cursor: paging.Cursor = None,
):
    """How checkpoints descend from each other and what each cost; parents come before their children."""
    nodes = list(trees.walk(_forest(call, project, everything)))
    page = paging.of_list(nodes, cursor, limit)
    shown = [
        views.checkpoint(call.session, node.row)
        | {"tree_parent": parent.row.uuid if parent else None, "own_cad": node.own, "cad_to_reach": node.reach}
        for node, parent in page["items"]
    ]
    return page | {"items": shown}


@router.get("/tree/drawing", response_class=Response, **doc(404, more=_DRAWING))
@needs(Level.READ)
def draw_tree(
    call: Call,
    form: Annotated[Literal["svg", "dot"], Query(description="A drawing, or Graphviz's language.")] = "svg",
    project: OneProject = None,
    everything: Everything = False,
):
    """The tree as a drawing."""
    drawn = {"svg": trees.svg, "dot": trees.dot}[form](call.session, _forest(call, project, everything))
    headers = {"Cache-Control": "private, no-cache", "Content-Security-Policy": "default-src 'none'; style-src 'none'"}
    return Answer(Response(drawn, headers=headers, media_type=_MEDIA[form]))


def _forest(call: Call, project: str | None, everything: bool) -> list[trees.Node]:
    query = select(Checkpoint).where(call.caller.visible(Checkpoint.project_uuid))
    if project is not None:
        query = query.where(Checkpoint.project_uuid == call.project(project).uuid)
    return trees.forest(call.session, call.session.scalars(query).all(), everything=everything)
