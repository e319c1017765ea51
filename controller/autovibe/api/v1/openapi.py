"""The OpenAPI document: what FastAPI knows of the paths, and what `calls` adds to them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

DESCRIPTION = """
Who asks shows an API key (`autovibe key create`) or an access token (`/api/v1/auth/login`) as `Authorization: Bearer`.

* Lists are pages: `limit`, `cursor`; the answer has `items` and `next_cursor`.
* Every answer to a GET has an `ETag`; with `If-None-Match` it is 304 while nothing has changed, and a PATCH or DELETE
  with `If-Match` is 412 when something has.
* Every POST but the logins takes an `Idempotency-Key`: the same request with the same key is done once, and answered
  alike for a day to who may still do it.
* Every error has one form. Every answer has an `X-Request-ID`, which the audit log knows the request by.
* Money is an exact decimal, written as a string. Times are UTC.
"""
_IDEMPOTENCY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same request with the same key is done once.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}
_IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "The ETag that you have.",
    "schema": {"type": "string"},
}
_IF_MATCH = {**_IF_NONE_MATCH, "name": "If-Match", "description": "The ETag of what you mean to change."}
_NOT_MODIFIED = {"description": "It has not changed."}


def install(app: FastAPI) -> None:
    """Make `app.openapi()` tell the truth."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _made(app)
        return app.openapi_schema

    app.openapi = openapi


def _made(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes)
    schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes["bearer"] = {"type": "http", "scheme": "bearer", "description": "An API key, or an access token."}
    for route in api_routes(app):
        for method in route.methods:
            _complete(document["paths"][route.path_format][method.lower()], method, route)
    for unused in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(unused, None)
    return document


def api_routes(app: FastAPI) -> list[APIRoute]:
    """The routes that are documented."""
    return [route for route in app.routes if isinstance(route, APIRoute) and route.include_in_schema]


def _complete(operation: dict[str, Any], method: str, route: APIRoute) -> None:
    answers = operation["responses"]
    # What is wrong with a request is 400 here, in the one form.
    answers.pop("422", None)
    if "requestBody" in operation:
        answers["415"] = {**answers["400"], "description": "The body is not said to be JSON."}
    parameters = operation.setdefault("parameters", [])
    if getattr(route.endpoint, "level", None) is None:
        operation["security"] = []
        return
    operation["security"] = [{"bearer": []}]
    if method == "POST":
        parameters.append(_IDEMPOTENCY)
        why = "The Idempotency-Key was used for something else, or is in use: Retry-After says when to come again."
        answers.setdefault("409", {**answers["400"], "description": why})
    elif method == "GET" and "application/json" in answers["200"].get("content", {}):
        parameters.append(_IF_NONE_MATCH)
        answers["304"] = _NOT_MODIFIED
        answers["200"]["headers"] = {"ETag": {"schema": {"type": "string"}}}
    elif "412" in answers:
        parameters.append(_IF_MATCH)
