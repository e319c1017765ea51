"""The providers: where they are, with which key, for which models, which headers go there and come back."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import aiohttp

from autovibe.gateway.errors import NO_RETRY, GatewayError, bad_request, unknown_model
from autovibe.settings import ProviderSetting, Settings

log = logging.getLogger("autovibe.gateway")

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
PASSED_BACK = ("content-type", "request-id", "x-request-id", "retry-after", "x-should-retry", "cache-control")
PASSED_BACK_PREFIXES = ("anthropic-ratelimit-", "x-ratelimit-")
MESSAGES, CHAT = "messages", "chat"
KEPT_SECONDS = 1.0


@dataclass(frozen=True)
class Provider:
    """Where calls go: `root` is what stands before `/messages` and `/chat/completions`. The key is in memory only.

    See `settings.ProviderSetting` for the rest.
    """

    name: str
    root: str
    key: str | None = field(repr=False)
    speaks: frozenset[str]
    models: tuple[str, ...] = ("*",)
    prices: str = "anthropic"
    max_tokens_field: str = "max_tokens"
    default_max_tokens: int = 8192
    image_tokens: int | None = None

    def serves(self, model: str) -> bool:
        return any(fnmatchcase(model, pattern) for pattern in self.models)


class Providers:
    """The providers of an installation: those of its settings, then Anthropic, or the demo model without its key.

    Files (keys, the demo model's port) are read again every second.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._read_at = float("-inf")
        self._known: list[Provider] = []

    def all(self) -> list[Provider]:
        if time.monotonic() - self._read_at > KEPT_SECONDS:
            given = [_given(one) for one in self._settings.providers]
            builtin = _builtin(self._settings)
            self._known = given + ([builtin] if builtin else [])
            self._read_at = time.monotonic()
        return self._known

    def serving(self, api: str, model: str | None = None) -> Provider:
        """The first that speaks this API and serves this model; GatewayError when there is none."""
        known = self.all()
        if not known:
            message = (
                "The hub has no AI provider: set ANTHROPIC_API_KEY at the hub, or start the demo model with the lab"
            )
            raise GatewayError(503, "api_error", message, NO_RETRY)
        for one in known:
            if api in one.speaks and (model is None or one.serves(model)):
                return one
        raise unknown_model(f"No provider of this hub serves model {model!r:.100} by this API")


def _given(setting: ProviderSetting) -> Provider:
    anthropic, key = setting.kind == "anthropic", None
    if setting.key_file is not None:
        try:
            key = setting.key_file.expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            log.error("provider %s: its key file %s cannot be read", setting.name, setting.key_file)
            message = f"The hub cannot read the key of the AI provider ({setting.name}); the hub's owner has to set it"
            raise GatewayError(503, "api_error", message, NO_RETRY) from None
    return Provider(
        setting.name,
        setting.url.rstrip("/") + ("/v1" if anthropic else ""),
        key,
        frozenset({MESSAGES if anthropic else CHAT}),
        tuple(setting.models),
        setting.price_provider,
        setting.max_tokens_field,
        setting.default_max_tokens,
        setting.image_tokens,
    )


def _builtin(settings: Settings) -> Provider | None:
    """Anthropic, which speaks chat completions too (documented: for OpenAI's SDK), or the demo model."""
    both = frozenset({MESSAGES, CHAT})
    if settings.anthropic_api_key is not None:
        key = settings.anthropic_api_key.get_secret_value()
        return Provider("anthropic", f"{settings.upstream_url.rstrip('/')}/v1", key, both)
    url, key_file = settings.demo_model_url, settings.demo_model_key_file or settings.lab_dir / "model-key"
    try:
        url = url or f"http://127.0.0.1:{int((settings.lab_dir / 'model-port').read_text(encoding='ascii'))}"
        key = key_file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return Provider("demo model", f"{url.rstrip('/')}/v1", key, both)


#: The connection was never made: nothing was sent.
NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
FAILURES = (aiohttp.ClientError, TimeoutError, OSError)
#: Redirects are not followed: they could carry the key elsewhere.
STAY = {"allow_redirects": False}
RELAY_TIMEOUT = aiohttp.ClientTimeout(30)


def client(settings: Settings) -> aiohttp.ClientSession:
    """One pool of connections for a process."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=15),
        timeout=aiohttp.ClientTimeout(None, sock_connect=10, sock_read=settings.upstream_timeout_seconds),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )


def chat_headers(given: Mapping[str, str], to: Provider) -> dict[str, str]:
    """The headers of a forwarded chat completion: the provider's key, nothing of the machine's but its agent."""
    headers = {
        "content-type": "application/json",
        "accept-encoding": "identity",
        "user-agent": given.get("user-agent", "autovibe")[:200],
    }
    return headers | ({"authorization": f"Bearer {to.key}"} if to.key else {})


def messages_headers(given: Mapping[str, str], to: Provider) -> dict[str, str]:
    """The headers of a forwarded message: the provider's key, nothing of the machine's but version, betas and agent."""
    version = given.get("anthropic-version", VERSIONS[0])
    if version not in VERSIONS:
        raise bad_request(f"anthropic-version: {version!r:.40} is not supported here (known: {', '.join(VERSIONS)})")
    headers = {
        **({"x-api-key": to.key} if to.key else {}),
        "anthropic-version": version,
        "content-type": "application/json",
        "accept-encoding": "identity",
        "user-agent": given.get("user-agent", "autovibe")[:200],
    }
    asked = {beta.strip() for beta in given.get("anthropic-beta", "").split(",")}
    if allowed := sorted(asked & BETAS):
        headers["anthropic-beta"] = ",".join(allowed)
    return headers


def response_headers(given: Mapping[str, str]) -> dict[str, str]:
    lower = ((name.lower(), value) for name, value in given.items())
    return {name: value for name, value in lower if name in PASSED_BACK or name.startswith(PASSED_BACK_PREFIXES)}
