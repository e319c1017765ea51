"""200 connections from a guest to its hub, or to another NAMESPACE ADDRESS PORT, kept busy.

Runs in the test host until something comes by its standard input; then says how many are still good, how many times
each was used, and the longest time that one round took.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

from guest_world import HUB, inside

NUMBER = 200


def main() -> None:
    name, address, port = sys.argv[1:] or ("hub", HUB, "8000")
    with inside(name):
        listener = socket.create_server(("", int(port)), backlog=2 * NUMBER)
    clients, servers = [], []
    for _ in range(NUMBER):
        with inside("g1"):
            client = socket.socket()
        client.settimeout(5)
        client.connect((address, int(port)))
        server, _ = listener.accept()
        server.settimeout(5)
        clients.append(client)
        servers.append(server)
    print("ready", flush=True)
    rounds, longest, broken = 0, 0.0, set()
    while not select.select([sys.stdin], [], [], 0.05)[0]:
        start = time.monotonic()
        for number, (client, server) in enumerate(zip(clients, servers, strict=True)):
            try:
                client.sendall(b"ask")
                assert server.recv(3) == b"ask"
                server.sendall(b"answer")
                assert client.recv(6) == b"answer"
            except (OSError, AssertionError):
                broken.add(number)
        rounds += 1
        longest = max(longest, time.monotonic() - start)
    print(json.dumps({"good": NUMBER - len(broken), "rounds": rounds, "longest": longest}), flush=True)


if __name__ == "__main__":
    main()
