"""The application that people talk to. It shares no listener with the guests' one, `autovibe.api.app`."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware

from autovibe import ca
from autovibe.api.v1 import errors, openapi
from autovibe.api.v1.doors import Doors
from autovibe.api.v1.middleware import Requests
from autovibe.api.v1.routes import (
    checkpoint_keep,
    checkpoints,
    events,
    hub,
    machine_files,
    machines,
    money,
    projects,
    resources,
    users,
)
from autovibe.async_db import Pool
from autovibe.settings import Settings

ROUTES = (machines, machine_files, checkpoints, checkpoint_keep, projects, resources, money, users, hub, events)


def create_app(settings: Settings) -> FastAPI:
    """The application for these settings. Starts nothing: `server` runs it, and its notifications."""
    app = FastAPI(
        title="autovibe",
        version=version("autovibe"),
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=True,
    )
    app.state.settings = settings
    app.state.pool = Pool(settings, "autovibe people")
    app.state.doors = Doors(settings)
    app.state.streams = events.Streams()
    errors.add_handlers(app)
    for module in ROUTES:
        app.router.routes.extend(module.router.routes)
    app.router.routes.extend(hub.monitoring.routes)
    app.add_api_route("/ca.pem", ca_certificate, methods=["GET"], include_in_schema=False)
    openapi.install(app)
    if settings.api_cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.api_cors_origins),
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=[
                "Authorization",
                "Content-Type",
                "Idempotency-Key",
                "If-Match",
                "If-None-Match",
                "X-Request-ID",
            ],
            expose_headers=["ETag", "Location", "Retry-After", "X-Request-ID", "Idempotency-Replayed"],
        )
    app.add_middleware(Requests)
    return app


def ca_certificate(request: Request) -> Response:
    """The hub's CA certificate. Whoever asks checks it against the fingerprint that `autovibe hub show` prints."""
    return Response(ca.ensure_for(request.app.state.settings).ca_pem, media_type="application/x-pem-file")
