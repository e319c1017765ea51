"""The hub's application: the agents' API, the AI gateway, and what a stranger may ask."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from sqlalchemy import text

from autovibe import ca, db, gateway
from autovibe.api import agent
from autovibe.api.errors import add_handlers
from autovibe.api.limits import BodyLimit, RateLimit
from autovibe.api.metrics import Measured
from autovibe.settings import Settings, load_settings


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application for these settings. Starts nothing and opens nothing: the database is asked by the first call."""
    # The guests' port says nothing about itself: no docs, no OpenAPI.
    app = FastAPI(title="autovibe hub", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.settings = settings or load_settings()
    app.state.rate_limit = RateLimit()
    app.add_middleware(BodyLimit, settings=app.state.settings)
    app.add_middleware(Measured)
    add_handlers(app)
    app.add_api_route("/ca.pem", ca_certificate, methods=["GET"])
    app.add_api_route("/healthz", health, methods=["GET"])
    app.include_router(agent.router)
    app.include_router(gateway.router)
    return app


def ca_certificate(request: Request) -> Response:
    """The hub's CA certificate. Whoever asks checks it against the fingerprint that it was given another way."""
    return Response(ca.ensure_for(request.app.state.settings).ca_pem, media_type="application/x-pem-file")


def health(request: Request) -> dict[str, str]:
    """Whether the hub can work: its database answers and has the right schema (503 otherwise)."""
    with db.session_scope(request.app.state.settings) as session:
        session.execute(text("SELECT 1"))
    return {"status": "ok"}
