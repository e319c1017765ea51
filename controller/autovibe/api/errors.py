"""One form for every error: {"error": {"type": code, "message": sentence}}; under /v1/ with Anthropic's outer type."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from autovibe.errors import AutovibeError

CODES = {400: "bad_request", 401: "bad_token", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}

log = logging.getLogger(__name__)


def error_body(path: str, code: str, message: str) -> dict:
    """The body of an error for that path."""
    body: dict = {"error": {"type": code, "message": message}}
    return {"type": "error", **body} if path.startswith("/v1/") else body


def add_handlers(app: FastAPI) -> None:
    """Answers every exception in the one form; nothing of its inside is told."""

    def answer(request: Request, status: int, code: str, message: str) -> JSONResponse:
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
        return JSONResponse(error_body(request.url.path, code, message), status, headers)

    @app.exception_handler(AutovibeError)
    def ours(request: Request, error: AutovibeError) -> JSONResponse:
        if error.http_status >= 500:
            log.error("%s %s: %s", request.method, request.url.path, error)
        return answer(request, error.http_status, error.code, error.message)

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> JSONResponse:
        return answer(request, error.status_code, CODES.get(error.status_code, "error"), str(error.detail))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(request, 422, "invalid", "The request is not valid")

    @app.exception_handler(OperationalError)
    def database(request: Request, error: OperationalError) -> JSONResponse:
        log.error("%s %s: database: %s", request.method, request.url.path, type(error.orig).__name__)
        return answer(request, 503, "database_unreachable", "The hub's database does not answer")

    @app.exception_handler(Exception)
    def unexpected(request: Request, error: Exception) -> JSONResponse:
        return answer(request, 500, "internal", "Something went wrong in the hub; its log says what")
