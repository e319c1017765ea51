"""A proxy for a test host's apt: it listens on the host's loopback and connects from this machine."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 3142
_CLONE_NEWNET = 0x40000000


class _Handler(BaseHTTPRequestHandler):
    """`GET http://…` as apt asks for it; nothing else."""

    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        headers = {name: value for name in ("Range", "If-Modified-Since", "If-Range") if (value := self.headers[name])}
        try:
            answer = urllib.request.urlopen(urllib.request.Request(self.path, headers=headers), timeout=60)
        except urllib.error.HTTPError as error:
            answer = error
        except OSError as error:
            self.send_error(502, str(error))
            return
        with answer:
            self.send_response(answer.status)
            for name in ("Content-Length", "Content-Type", "Last-Modified", "Content-Range"):
                if value := answer.headers[name]:
                    self.send_header(name, value)
            self.end_headers()
            while data := answer.read(1 << 16):
                self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _socket_in(pid: int) -> socket.socket:
    """A listening socket of the process's network namespace. A thread goes there to make it, and ends."""
    made: list[socket.socket | OSError] = []

    def make() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            if libc.setns(namespace, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            made.append(socket.create_server(("127.0.0.1", PORT)))
        except OSError as error:
            made.append(error)
        finally:
            os.close(namespace)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


@contextmanager
def serve_mirror(pid: int) -> Iterator[str]:
    """The proxy's URL, valid inside the network namespace of `pid`."""
    server = ThreadingHTTPServer(("127.0.0.1", PORT), _Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = _socket_in(pid)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{PORT}"
    finally:
        server.shutdown()
        server.server_close()
