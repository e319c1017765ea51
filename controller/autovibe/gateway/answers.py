"""A call's answer on its way to the client, which may be slower than the provider, or gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from autovibe.gateway.errors import GatewayError, provider_failed


class BrokenAnswer(ConnectionError):
    """The provider's answer broke off."""


class Answer:
    """What the client gets: status and headers once they are known, then the body as it arrives."""

    def __init__(self) -> None:
        self.head: asyncio.Future[tuple[int, dict[str, str]]] = asyncio.get_running_loop().create_future()
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.wanted = True
        self.whole = False

    def start(self, status: int, headers: dict[str, str]) -> None:
        if not self.head.done():
            self.head.set_result((status, headers))

    def fail(self, error: GatewayError) -> None:
        if not self.head.done():
            self.head.set_exception(error)
            self.head.exception()  # The client may be gone and never look.

    def put(self, chunk: bytes) -> None:
        if self.wanted:
            self._chunks.put_nowait(chunk)

    def end(self, error: GatewayError | None = None) -> None:
        """No more comes; without a head, the error is the answer."""
        self.fail(error or provider_failed("The gateway was stopped", 503))
        self._chunks.put_nowait(None)

    async def body(self) -> AsyncIterator[bytes]:
        """Raises BrokenAnswer at the end of what is not whole: an end in order would say that this was all of it."""
        while (chunk := await self._chunks.get()) is not None:
            yield chunk
        if not self.whole:
            raise BrokenAnswer
