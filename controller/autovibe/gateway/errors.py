"""Errors of the gateway, in Anthropic's form."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi.responses import JSONResponse

#: A header that Anthropic's SDKs and Claude Code obey: do not send this request again.
NO_RETRY = {"x-should-retry": "false"}


class GatewayError(Exception):
    """An answer that the gateway gives itself: HTTP status, Anthropic's error type, message, headers."""

    def __init__(self, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.headers = status, kind, message, dict(headers or {})

    def response(self) -> JSONResponse:
        body = {"type": "error", "error": {"type": self.kind, "message": self.message}}
        return JSONResponse(body, self.status, self.headers)


def bad_request(message: str) -> GatewayError:
    return GatewayError(400, "invalid_request_error", message)


def bad_token(message: str) -> GatewayError:
    return GatewayError(401, "authentication_error", message)


def unknown_model(message: str) -> GatewayError:
    """A model without a price is never forwarded, for it would be free."""
    return GatewayError(404, "not_found_error", message, NO_RETRY)


def budget_gone(message: str) -> GatewayError:
    """402 makes Claude Code stop at once and cleanly."""
    return GatewayError(402, "billing_error", message, NO_RETRY)


def budget_busy(message: str, retry_after: int = 5) -> GatewayError:
    """There is money, but calls under way hold it: worth another try."""
    return GatewayError(429, "rate_limit_error", message, {"retry-after": str(retry_after)})


def provider_failed(message: str, status: int = 502, *, retry: bool = True) -> GatewayError:
    return GatewayError(status, "api_error", message, {} if retry else NO_RETRY)
