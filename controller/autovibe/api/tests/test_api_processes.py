"""Several processes serve the machines' port."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
import uvicorn
from autovibe import listening, supervise
from autovibe.api import servers
from autovibe.listening import CannotListen, machines_socket
from autovibe.settings import load_settings
from autovibe.tests.ports import free_port


def settings_for(processes: int, port: int):
    return load_settings(hub_processes=processes, hub_port=port)


def test_the_port_is_shared_only_where_there_are_several_processes():
    port = free_port()
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(machines_socket(settings_for(2, port))).listen()
        with pytest.raises(CannotListen):
            listening.check(settings_for(2, port))
    with machines_socket(settings_for(1, port)) as alone:
        alone.listen()
        with pytest.raises(CannotListen):
            machines_socket(settings_for(1, port))


def test_who_opens_connection_after_connection_keeps_nobody_else_out(monkeypatch):
    monkeypatch.setattr(servers, "CONNECTIONS_OF_ONE", 3)
    monkeypatch.setattr(servers, "is_counted", lambda address: address == "127.0.0.2")

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def answered(address: str) -> bool:
        with contextlib.suppress(ConnectionError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
            kept.append(writer)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            return (await reader.read(12)).endswith(b" 204")
        return False

    async def main() -> list[bool]:
        config = uvicorn.Config(app, http=servers.BoundedConnections, ws="none", lifespan="off", log_config=None)
        server = servers.HubServer(config)
        serving = asyncio.create_task(server.serve([listener]))
        while not server.started:
            await asyncio.sleep(0)
        found = [await answered(address) for address in ["127.0.0.2"] * 5 + ["127.0.0.3"] * 5]
        kept[0].close()
        while servers.BoundedConnections.of["127.0.0.2"] > 2:
            await asyncio.sleep(0)
        found.append(await answered("127.0.0.2"))
        server.should_exit = True
        await serving
        return found

    kept: list[asyncio.StreamWriter] = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        found = asyncio.run(main())
    assert found == [True] * 3 + [False] * 2 + [True] * 5 + [True]
    assert not servers.BoundedConnections.of


def test_each_process_has_a_name_of_its_own():
    names = [child.name for child in supervise.children(settings_for(3, 18000)) if child.module == "autovibe.api"]
    assert names == ["api", "api-2", "api-3"]
