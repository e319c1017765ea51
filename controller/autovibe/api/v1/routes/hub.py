"""/api/v1/hub and /api/v1/templates; /health and /metrics, which monitoring asks."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from sqlalchemy import func, select, text

from autovibe import ca, db, hubs, jobs, machine_vms, supervise, templates, views
from autovibe.access import Level
from autovibe.api.metrics import add_guests
from autovibe.api.v1 import metrics, paging, schemas
from autovibe.api.v1.calls import Answer, ApiRoute, Call, doc, needs
from autovibe.api.v1.routes import PREFIX
from autovibe.api.v1.routes.resources import machines_by_status, operations_by_status
from autovibe.errors import AutovibeError
from autovibe.listening import reachable
from autovibe.models import Operation, Template
from autovibe.settings import Settings

router = APIRouter(prefix=PREFIX, route_class=ApiRoute)
#: Not under /api/v1: monitoring expects them at the root.
monitoring = APIRouter(route_class=ApiRoute, tags=["monitoring"])

_TEXT = {200: {"description": "Prometheus's text format.", "content": {"text/plain": {}}}}
STARTED_AT = datetime.now(UTC)
#: Work that has waited so long has no worker.
WAITS_SECONDS = 60


@router.get("/hub", response_model=schemas.Hub, tags=["hub"], **doc())
@needs(Level.READ)
def hub(call: Call):
    """What this hub is, and what it does now."""
    return {
        "version": version("autovibe"),
        "installation": machine_vms.installation_id(call.session),
        "schema_revision": db.SCHEMA_REVISION,
        "database_version": call.session.scalar(text("SHOW server_version")),
        "default_model": call.settings.default_model,
        "default_template": call.settings.default_template,
        "ca_sha256": ca.ensure_for(call.settings).ca_sha256,
        "started_at": STARTED_AT,
        "machines": machines_by_status(call),
        "operations": operations_by_status(call),
        "vm": _own_vm(call),
    }


def _own_vm(call: Call) -> dict[str, Any] | None:
    """The hub's own VM, for who may see the project that it belongs to."""
    machine = hubs.find(call.session)
    is_seen = machine is not None and call.caller.level_in(machine.project_uuid) is not None
    return hubs.view(call.session) if is_seen else None


@router.post("/hub/adopt", response_model=schemas.Started, tags=["hub"], **doc(409, status=202))
@needs(Level.ADMIN)
def adopt_hub(call: Call, body: schemas.HubAdoption):
    """Register the VM in which this hub runs. It gets an identity and tags, if its SMBIOS uuid is this computer's."""
    operation = hubs.adopt(call.session, call.settings, body.vm_id, node=body.node, project=body.project)
    view = views.operation(operation)
    call.audit("adopt", "hub", name=f"VM {body.vm_id}", after=body.model_dump() | {"operation": operation.uuid})
    return Answer({"operation": view}, 202)


@router.post("/hub/checkpoint", response_model=schemas.CheckpointStarted, tags=["hub"], **doc(409, status=202))
@needs(Level.ADMIN)
def checkpoint_hub(call: Call, body: schemas.HubCheckpointAsked | None = None):
    """Make a checkpoint of the VM in which this hub runs. Its filesystems are frozen for some seconds."""
    made, operation = hubs.checkpoint(call.session, call.settings, label=body.label if body else None)
    view = views.checkpoint(call.session, made)
    call.audit("create", "checkpoint", uuid=made.uuid, name="hub", project_uuid=made.project_uuid, after=view)
    return Answer({"checkpoint": view, "operation": views.operation(operation)}, 202)


@router.get("/templates", response_model=schemas.Page[schemas.Template], tags=["templates"], **doc())
@needs(Level.READ)
def list_templates(call: Call, limit: paging.Limit = 100, cursor: paging.Cursor = None):
    """What first machines are cloned from, and its versions; the newest first."""
    columns = (Template.created_at, Template.uuid)
    return paging.by_time(call.session, select(Template), columns, cursor, limit, views.template)


@router.post("/templates", response_model=schemas.Started, tags=["templates"], **doc(409, status=202))
@needs(Level.ADMIN)
def build_template(call: Call, body: schemas.TemplateAsked):
    """Build a template on Proxmox, or find that it stands already."""
    operation = templates.ensure(
        call.session,
        call.settings,
        body.name,
        disk_source=body.disk,
        storage=body.storage,
        bridge=body.bridge,
        null=body.null,
    )
    view = views.operation(operation)
    call.audit("build", "template", name=operation.params["vars"]["template_name"], after=body.model_dump() | view)
    return Answer({"operation": view}, 202)


@router.post("/templates/import", response_model=schemas.Started, tags=["templates"], **doc(409, status=202))
@needs(Level.OPERATE)
def import_template(call: Call, body: schemas.TemplateImport):
    """Look for a template on Proxmox that a playbook or a person has made there, and take it in."""
    name = body.name or call.settings.default_template
    operation = templates.take_in(call.session, call.settings, name)
    view = views.operation(operation)
    call.audit("import", "template", name=name, after=view)
    return Answer({"operation": view}, 202)


@monitoring.get("/health", response_model=schemas.Health, responses={503: {"model": schemas.Health}})
def health(request: Request) -> Response:
    """Whether the hub can work: each thing that it needs. 503 when one of them fails."""
    from autovibe import jsonform

    checks = [_database(request.app.state.settings), *_others(request)]
    worst = {check["state"] for check in checks}
    status = "failed" if "failed" in worst else "degraded" if "warning" in worst else "ok"
    content = jsonform.dumps({"status": status, "checks": checks})
    headers = {"Cache-Control": "no-store"}
    return Response(content, 503 if status == "failed" else 200, headers, media_type="application/json")


def _check(name: str, state: str, message: str) -> dict[str, str]:
    return {"name": name, "state": state, "message": message}


def _database(settings: Settings) -> dict[str, str]:
    try:
        with db.session_scope(settings) as session:
            session.execute(text("SELECT 1"))
    except (AutovibeError, db.SQLAlchemyError):
        return _check("database", "failed", "The database does not answer, or has another schema.")
    return _check("database", "ok", f"schema {db.SCHEMA_REVISION}")


def _machines(settings: Settings) -> dict[str, str]:
    """Whether machines are answered: by processes of their own, which `autovibe up` starts."""
    address = reachable(settings.hub_bind), settings.hub_port
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return _check("machines", "failed", "nobody answers at their port")
    return _check("machines", "ok", "their port is answered")


def _others(request: Request) -> list[dict[str, str]]:
    settings = request.app.state.settings
    listening = request.app.state.doors.notifications.connected
    held = supervise.status(settings)
    checks = [
        _check(
            "notifications", *(("ok", "listening") if listening else ("warning", "not listening: events come late"))
        ),
        _check("supervisor", *(("ok", "up") if held else ("warning", "`autovibe up` does not run here"))),
    ]
    if held:
        checks.append(_machines(settings))
    try:
        with db.session_scope(settings) as session:
            overdue = [job["name"] for job in jobs.views(session) if job["overdue"]]
            own_vm = hubs.view(session)
            oldest = session.scalar(
                select(func.extract("epoch", func.now() - func.min(Operation.created_at))).where(
                    Operation.status == "queued", Operation.depends_on_uuid.is_(None)
                )
            )
    except (AutovibeError, db.SQLAlchemyError):
        return checks
    waits = oldest is not None and oldest > WAITS_SECONDS
    said = f"an operation has waited {oldest:.0f} s" if waits else "nothing waits long"
    late = f"overdue: {', '.join(overdue)}" if overdue else "nothing is overdue"
    if own_vm is not None:
        # Everybody may read this: which VM it is, they need not know.
        made = ("warning", "the last checkpoint is late") if own_vm["late"] else ("ok", "no checkpoint is late")
        checks.append(_check("hub checkpoint", *made))
    return [
        *checks,
        _check("worker", "warning" if waits else "ok", said),
        _check("scheduler", "warning" if overdue else "ok", late),
    ]


@monitoring.get("/metrics", response_class=Response, **doc(more=_TEXT))
@needs(Level.METRICS)
def prometheus(call: Call):
    """What Prometheus reads, with a key of an admin whose scope may be `metrics`."""
    call.everything("The metrics tell of all of them: use a key of an admin, with scope metrics.")
    registry = CollectorRegistry()
    registry.register(metrics.Database(call.settings))
    add_guests(registry, call.settings)
    content = generate_latest(metrics.requests) + generate_latest(registry)
    return Answer(Response(content, media_type=CONTENT_TYPE_LATEST))
