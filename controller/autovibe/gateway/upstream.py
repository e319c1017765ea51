"""The provider: where it is, with which key, which headers go there and come back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

from autovibe.gateway.errors import GatewayError, bad_request
from autovibe.settings import Settings

VERSIONS = ("2023-06-01", "2026-10-21")
#: Betas that neither change a price nor let the provider do what has no bound. Others are left out of the header;
#: a field that needs one of those is refused by `fields.py`.
BETAS = frozenset(
    {
        "advanced-tool-use-2025-11-20",
        "claude-code-20250219",
        "context-management-2025-06-27",
        "effort-2025-11-24",
        "extended-cache-ttl-2025-04-11",
        "fine-grained-tool-streaming-2025-05-14",
        "inline-tools-2026-09-15",
        "interleaved-thinking-2025-05-14",
        "mid-conversation-system-2026-04-07",
        "mid-conversation-tool-changes-2026-07-01",
        "per-turn-control-2026-07-01",
        "prompt-caching-2024-07-31",
        "prompt-caching-scope-2026-01-05",
        "redact-thinking-2026-02-12",
        "structured-outputs-2025-12-15",
        "thinking-display-updates-2026-08-18",
        "thinking-token-count-2026-05-13",
        "tool-search-tool-2025-10-19",
    }
)
#: Response headers that a machine gets to see.
PASSED_BACK = ("content-type", "request-id", "retry-after", "x-should-retry", "cache-control")
PASSED_BACK_PREFIX = "anthropic-ratelimit-"


@dataclass(frozen=True)
class Provider:
    """Where calls go. The key is in memory only, and in no representation."""

    name: str
    url: str
    key: str = field(repr=False)


def provider(settings: Settings) -> Provider:
    """Anthropic when its key is set, else the demo model; GatewayError (503) when there is neither."""
    if settings.anthropic_api_key is not None:
        return Provider("anthropic", settings.upstream_url.rstrip("/"), settings.anthropic_api_key.get_secret_value())
    url, key_file = settings.demo_model_url, settings.demo_model_key_file or settings.lab_dir / "model-key"
    try:
        url = url or f"http://127.0.0.1:{int((settings.lab_dir / 'model-port').read_text(encoding='ascii'))}"
        key = key_file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        message = "The hub has no AI provider: set ANTHROPIC_API_KEY at the hub, or start the demo model with the lab"
        raise GatewayError(503, "api_error", message, {"x-should-retry": "false"}) from None
    return Provider("demo model", url.rstrip("/"), key)


def client(settings: Settings) -> httpx.AsyncClient:
    """One pool of connections for a process. Redirects are not followed: they could carry the key elsewhere."""
    return httpx.AsyncClient(
        timeout=httpx.Timeout(settings.upstream_timeout_seconds, connect=10, write=60, pool=30),
        limits=httpx.Limits(max_connections=512, max_keepalive_connections=64, keepalive_expiry=30),
        follow_redirects=False,
        trust_env=False,
    )


def request_headers(given: Mapping[str, str], to: Provider) -> dict[str, str]:
    """The headers of a forwarded request: the provider's key, nothing of the machine's but version, betas and agent."""
    version = given.get("anthropic-version", VERSIONS[0])
    if version not in VERSIONS:
        raise bad_request(f"anthropic-version: {version!r:.40} is not supported here (known: {', '.join(VERSIONS)})")
    headers = {
        "x-api-key": to.key,
        "anthropic-version": version,
        "content-type": "application/json",
        "accept-encoding": "identity",
        "user-agent": given.get("user-agent", "autovibe")[:200],
    }
    asked = {beta.strip() for beta in given.get("anthropic-beta", "").split(",")}
    if allowed := sorted(asked & BETAS):
        headers["anthropic-beta"] = ",".join(allowed)
    return headers


def response_headers(response: httpx.Response) -> dict[str, str]:
    return {
        name: value
        for name, value in response.headers.items()
        if name in PASSED_BACK or name.startswith(PASSED_BACK_PREFIX)
    }
