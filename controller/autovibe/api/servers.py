"""What both listeners of the hub's APIs share."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import resource
import socket
from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import ClassVar

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

IDLE_GRACE_SECONDS = 0.3
#: Of one guest, to one process; an agent and its CLI have about ten.
CONNECTIONS_OF_ONE = 256
OPEN_FILES = 1 << 16


class BoundedConnections(AutoHTTPProtocol):
    """HTTP for guests and strangers: who opens connection after connection, and says nothing, keeps nobody else out."""

    of: ClassVar[Counter[str]] = Counter()
    #: Proxies in front: behind one address there is everybody.
    proxies: ClassVar[tuple[IPv4Network | IPv6Network, ...]] = ()
    counted: str | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        if is_counted(address, self.proxies):
            self.counted = address
            self.of[address] += 1
            if self.of[address] > CONNECTIONS_OF_ONE:
                transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.counted is not None:
            self.of[self.counted] -= 1
            if not self.of[self.counted]:
                del self.of[self.counted]
            self.counted = None


def behind(networks: Iterable[IPv4Network | IPv6Network]) -> type[BoundedConnections]:
    """The same for a listener that these proxies stand in front of."""
    return type("BoundedConnections", (BoundedConnections,), {"proxies": tuple(networks)})


def is_counted(address: str, proxies: Iterable[IPv4Network | IPv6Network] = ()) -> bool:
    """Whether connections from there are one client's; the lab's guests all come from the host itself."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not found.is_loopback and not any(found in network for network in proxies)


def keep_loaded() -> None:
    """Let the garbage collector pass over all that there is by now, which stays as long as the process.

    Looking through it takes a good part of a second, in which nobody is answered, every few thousand requests.
    """
    gc.collect()
    gc.freeze()


def allow_many_files() -> None:
    """As many open files as the system lets this process have, up to `OPEN_FILES`: a connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class HubServer(uvicorn.Server):
    """uvicorn that does not wait for idle clients to say goodbye: a TLS close waits for the other side's."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.create_task(self._drop_idle())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _drop_idle(self) -> None:
        while True:
            await asyncio.sleep(IDLE_GRACE_SECONDS)
            for connection in list(self.server_state.connections):
                cycle = getattr(connection, "cycle", None)
                if cycle is None or cycle.response_complete:
                    connection.transport.abort()
