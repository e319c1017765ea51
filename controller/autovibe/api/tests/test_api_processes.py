"""Several processes serve the machines' port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from ipaddress import ip_network

import pytest
import uvicorn
from autovibe import listening, supervise
from autovibe.api import servers
from autovibe.api.v1 import server
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


def guests(app) -> uvicorn.Config:
    return uvicorn.Config(app, http=servers.BoundedConnections, ws="none", lifespan="off", log_config=None)


def people(app) -> uvicorn.Config:
    return server.configured(app, load_settings(api_bind="127.0.0.1", api_tls=False))


@pytest.mark.parametrize("configured", [guests, people])
def test_who_opens_connection_after_connection_keeps_nobody_else_out(monkeypatch, configured):
    monkeypatch.setattr(servers, "CONNECTIONS_OF_ONE", 3)
    monkeypatch.setattr(servers, "is_counted", lambda address, proxies: address == "127.0.0.2")

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
        hub = servers.HubServer(configured(app))
        serving = asyncio.create_task(hub.serve([listener]))
        while not hub.started:
            await asyncio.sleep(0)
        found = [await answered(address) for address in ["127.0.0.2"] * 5 + ["127.0.0.3"] * 5]
        kept[0].close()
        while servers.BoundedConnections.of["127.0.0.2"] > 2:
            await asyncio.sleep(0)
        found.append(await answered("127.0.0.2"))
        hub.should_exit = True
        await serving
        return found

    kept: list[asyncio.StreamWriter] = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        found = asyncio.run(main())
    assert found == [True] * 3 + [False] * 2 + [True] * 5 + [True]
    assert not servers.BoundedConnections.of


@pytest.mark.parametrize(
    ("address", "is_one"), [("192.0.2.7", True), ("127.0.0.1", False), ("10.0.0.3", False), ("", False)]
)
def test_what_comes_through_a_proxy_is_many_clients(address, is_one):
    assert servers.is_counted(address, servers.behind([ip_network("10.0.0.0/24")]).proxies) is is_one


def test_each_process_has_a_name_of_its_own():
    names = [child.name for child in supervise.children(settings_for(3, 18000)) if child.module == "autovibe.api"]
    assert names == ["api", "api-2", "api-3"]
