"""Errors of the gateway, in the form of the API that was called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi.responses import JSONResponse

#: A header that the providers' SDKs and Claude Code obey: do not send this request again.
NO_RETRY = {"x-should-retry": "false"}


class GatewayError(Exception):
    """An answer that the gateway gives itself: HTTP status, Anthropic's error type, message, headers."""

    def __init__(self, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.headers = status, kind, message, dict(headers or {})

    def response(self, form: ErrorForm) -> JSONResponse:
        return JSONResponse(form(self), self.status, self.headers)


ErrorForm = Callable[[GatewayError], dict[str, Any]]


def messages_form(error: GatewayError) -> dict[str, Any]:
    """As the Messages API words it."""
    return {"type": "error", "error": {"type": error.kind, "message": error.message}}


def chat_form(error: GatewayError) -> dict[str, Any]:
    """As the chat completions API words it."""
    kind, code = {
        "billing_error": ("insufficient_quota", "insufficient_quota"),
        "not_found_error": ("invalid_request_error", "model_not_found"),
        "authentication_error": ("invalid_request_error", "invalid_api_key"),
    }.get(error.kind, (error.kind, None))
    return {"error": {"message": error.message, "type": kind, "param": None, "code": code}}


def bad_request(message: str) -> GatewayError:
    return GatewayError(400, "invalid_request_error", message)


def bad_token(message: str) -> GatewayError:
    return GatewayError(401, "authentication_error", message)


def unknown_model(message: str) -> GatewayError:
    """A model without a price or a provider is never forwarded, for it would be free."""
    return GatewayError(404, "not_found_error", message, NO_RETRY)


def budget_gone(message: str) -> GatewayError:
    """402 makes Claude Code stop at once and cleanly."""
    return GatewayError(402, "billing_error", message, NO_RETRY)


def budget_busy(message: str, retry_after: int = 5) -> GatewayError:
    """There is money, but calls under way hold it: worth another try."""
    return GatewayError(429, "rate_limit_error", message, {"retry-after": str(retry_after)})


def too_many(message: str, retry_after: int) -> GatewayError:
    """A limit of one machine's calls."""
    return GatewayError(429, "rate_limit_error", message, {"retry-after": str(retry_after)})


def provider_failed(message: str, status: int = 502, *, retry: bool = True) -> GatewayError:
    return GatewayError(status, "api_error", message, {} if retry else NO_RETRY)
