"""The node's port: HTTPS, and for who speaks plain HTTP to it the way to HTTPS."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import Callable

#: The first byte of a TLS handshake.
HANDSHAKE = b"\x16"
#: Seconds for a client to say its first word.
PATIENCE = 60
LONGEST_HEAD = 65536


class Listener:
    """Accepts connections; those that begin with a TLS handshake go to protocols made by `factory`."""

    def __init__(self, factory: Callable[[], asyncio.Protocol], context: ssl.SSLContext) -> None:
        self.factory = factory
        self.context = context
        self._accepting: asyncio.Task | None = None
        self._greeted: set[asyncio.Task] = set()
        self._socket: socket.socket | None = None

    def start(self, host: str, port: int) -> int:
        """Listen, on any free port where `port` is 0; returns the port. Raises OSError."""
        self._socket = socket.create_server((host, port), backlog=1024)
        self._socket.setblocking(False)
        self._accepting = asyncio.get_running_loop().create_task(self._accept(self._socket))
        return self._socket.getsockname()[1]

    async def close(self) -> None:
        """Listen no longer; connections that stand are the factory's."""
        tasks = [task for task in (self._accepting, *self._greeted) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError:  # no file descriptor is left just now, or the client has gone
                await asyncio.sleep(0.05)
                continue
            task = loop.create_task(self._greet(connection))
            self._greeted.add(task)
            task.add_done_callback(self._greeted.discard)

    async def _greet(self, connection: socket.socket) -> None:
        """Look at the first byte, without taking it."""
        connection.setblocking(False)
        taken = False
        try:
            async with asyncio.timeout(PATIENCE):
                await _readable(connection)
                first = connection.recv(1, socket.MSG_PEEK)
                taken = first == HANDSHAKE
                if taken:
                    loop = asyncio.get_running_loop()
                    await loop.connect_accepted_socket(self.factory, connection, ssl=self.context)
                elif first:
                    await _redirect(connection)
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # a client that went away, or a handshake that failed
        finally:
            if not taken:
                connection.close()


async def _readable(connection: socket.socket) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection)


async def _redirect(connection: socket.socket) -> None:
    """Answer one plain request with the same address under https."""
    loop, head = asyncio.get_running_loop(), b""
    while b"\r\n\r\n" not in head and len(head) < LONGEST_HEAD:
        more = await loop.sock_recv(connection, 4096)
        if not more:
            return
        head += more
    path = re.match(rb"\S+ (\S+)", head)
    host = re.search(rb"(?im)^host: *(\S+)", head)
    if not path or not host:
        return
    body = b"Moved Permanently"
    answer = b"HTTP/1.1 301 Moved Permanently\r\nConnection: close\r\nLocation: https://%b%b\r\n" % (host[1], path[1])
    answer += b"Content-Length: %d\r\nContent-Type: text/plain\r\n\r\n%b" % (len(body), body)
    await loop.sock_sendall(connection, answer)
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
