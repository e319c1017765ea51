"""`GET /v1/models` as OpenAI's clients read it: what the providers serve and what has a price here."""

from __future__ import annotations

import asyncio
import time
from fnmatch import fnmatchcase
from typing import Any

import aiohttp

from autovibe import prices
from autovibe.gateway import upstream
from autovibe.gateway.reserving import Transactions

KEPT_SECONDS = 60.0
ASKING = aiohttp.ClientTimeout(5)


class Catalogue:
    """The models of all providers, asked for anew once a minute."""

    def __init__(self, gateway: Any) -> None:
        self._gateway = gateway
        self._read_at = float("-inf")
        self._known: list[dict[str, Any]] = []

    async def page(self, allowed: list[str] | None) -> dict[str, Any]:
        """The list, as far as the patterns of the caller's project allow."""
        data = [one for one in await self._all() if allowed is None or any(fnmatchcase(one["id"], a) for a in allowed)]
        return {"object": "list", "data": data}

    async def _all(self) -> list[dict[str, Any]]:
        if time.monotonic() - self._read_at > KEPT_SECONDS:
            speaking = [one for one in self._gateway.providers.all() if upstream.CHAT in one.speaks]
            found = await asyncio.gather(*map(self._models_of, speaking))
            models: dict[str, str] = {}
            for provider, names in zip(speaking, found, strict=True):
                for name in names:
                    models.setdefault(name, provider.name)
            self._known = [
                {"id": name, "object": "model", "created": 0, "owned_by": owner} for name, owner in models.items()
            ]
            self._read_at = time.monotonic()
        return self._known

    async def _models_of(self, provider: upstream.Provider) -> list[str]:
        """Those that it names itself or that the settings name, as far as they have a price."""
        named = [pattern for pattern in provider.models if "*" not in pattern]
        told = [name for name in await self._asked(provider) if provider.serves(name)]
        return await self._gateway.db(_priced, list(dict.fromkeys(named + told)), provider.prices)

    async def _asked(self, provider: upstream.Provider) -> list[str]:
        headers = upstream.chat_headers({}, provider) | upstream.messages_headers({}, provider)
        try:
            async with self._gateway.client.get(
                f"{provider.root}/models", headers=headers, timeout=ASKING, **upstream.STAY
            ) as response:
                data = (await response.json(content_type=None))["data"] if response.status == 200 else []
            return [one["id"] for one in data if isinstance(one.get("id"), str)]
        except (*upstream.FAILURES, ValueError, KeyError, TypeError, AttributeError):
            return []


def _priced(transactions: Transactions, names: list[str], provider: str) -> list[str]:
    kept = []
    with transactions() as session:
        for name in names:
            try:
                prices.tiers_of(session, name, provider=provider)
            except prices.UnknownModel:
                continue
            kept.append(name)
    return kept
