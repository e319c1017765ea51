"""One form for every error: {"error": {"code", "message", "hint", "details", "request_id", "time"}}."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from autovibe import jsonform
from autovibe.api.v1 import paths
from autovibe.errors import AutovibeError

CODES = {400: "bad_request", 401: "unauthenticated", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}
#: Postgres says so of a number, a time or a text that it cannot hold.
_DATA_ERRORS = "22"
#: Somebody else was first (a unique name), or what it names is gone.
_INTEGRITY_ERRORS = "23"

log = logging.getLogger(__name__)


class PreconditionFailed(AutovibeError):
    """It has changed since you read it."""

    code = "precondition_failed"
    http_status = 412
    default_hint = "Read it again, then send its new ETag as If-Match."


def body(scope: Scope, code: str, message: str, hint: str | None = None, details: dict | None = None) -> dict[str, Any]:
    """An error as the client gets it."""
    return {
        "error": {
            "code": code,
            "message": message,
            "hint": hint or None,
            "details": details or {},
            "request_id": scope.get("state", {}).get("request_id", ""),
            "time": datetime.now(UTC),
        }
    }


def response(
    scope: Scope, status: int, code: str, message: str, hint: str | None = None, details: dict | None = None
) -> Response:
    """The answer of an error; 401 says how to authenticate, 429, 503 and what has `retry_after` when to come again."""
    headers = {"Cache-Control": "no-store"}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    wait = (details or {}).get("retry_after", 1 if status in (429, 503) else None)
    if wait is not None:
        headers["Retry-After"] = str(wait)
    content = jsonform.dumps(body(scope, code, message, hint, details))
    return Response(content, status, headers, media_type="application/json")


def _methods(request: Request) -> str:
    """What is possible with the request's path."""
    fitting = (route for route in request.app.routes if route.matches(request.scope)[0] != Match.NONE)
    return ", ".join(sorted({method for route in fitting for method in route.methods}))


def add_handlers(app: FastAPI) -> None:
    """Answer every exception in the one form; nothing of its inside is told."""

    @app.exception_handler(AutovibeError)
    async def ours(request: Request, error: AutovibeError) -> Response:
        # Whatever is wrong with a request is 400 here.
        status = 400 if error.http_status == 422 else error.http_status
        if status >= 500:
            log.error("%s %s: %s", request.method, paths.shown(request.scope), error)
        return response(request.scope, status, error.code, error.message, error.hint, jsonform.plain(error.details))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        status, hint = error.status_code, None
        message, path = str(error.detail), paths.shown(request.scope)
        if status == 404:
            message, hint = f"There is no path {path}", "/openapi.json has them all."
        elif status == 405:
            message, hint = f"{request.method[:20]} is not possible with {path}", f"Possible: {_methods(request)}."
        answer = response(request.scope, status, CODES.get(status, "error"), message, hint)
        if status == 405:
            answer.headers["Allow"] = _methods(request)
        return answer

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        found = error.errors()
        first = found[0]
        place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
        said = [one["msg"].removeprefix("Value error, ") for one in found[:20]]
        places = (".".join(map(str, one["loc"])) for one in found)
        problems = [{"where": where, "problem": problem} for where, problem in zip(places, said, strict=False)]
        message = f"{place or 'The body'}: {said[0]}"
        if first["type"] == "json_invalid":
            message = f"The body is not JSON: {first['ctx']['error']}"
        return response(request.scope, 400, "invalid", message, details={"problems": problems})

    @app.exception_handler(DBAPIError)
    async def database(request: Request, error: DBAPIError) -> Response:
        state = getattr(error.orig, "pgcode", None) or ""
        if state.startswith(_DATA_ERRORS):
            return response(
                request.scope, 400, "invalid", "A value is out of range, or has characters that cannot be kept"
            )
        if state.startswith(_INTEGRITY_ERRORS):
            return response(
                request.scope, 409, "conflict", "Somebody else has changed this at the same time", "Try again."
            )
        log.error("%s %s: database: %s", request.method, paths.shown(request.scope), type(error.orig).__name__)
        if isinstance(error, OperationalError):
            return response(request.scope, 503, "database_unreachable", "The hub's database does not answer")
        log.exception("%s %s", request.method, paths.shown(request.scope), exc_info=error)
        return response(request.scope, 500, "internal", "Something went wrong in the hub; its log says what")

    @app.exception_handler(PoolTimeout)
    async def busy(request: Request, error: PoolTimeout) -> Response:
        return response(request.scope, 503, "busy", "The hub is too busy")

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return response(request.scope, 500, "internal", "Something went wrong in the hub; its log says what")
