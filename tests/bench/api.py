"""The hub's API with a fleet of 1,000 machines: how long requests take, how many a second there can be, and what the
machines' heartbeats cost.

Lists and views are asked at `--rate` a second, whether the ones before are answered or not; their milliseconds count
from when they were due. Then 16 clients ask as fast as they are answered. Heartbeats come as they do from 1,000
machines each 10 seconds; they cost the part of a core that the hub's process uses, and Postgres beside it.

    make bench        or: python tests/bench/api.py --seconds 10
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Network
from pathlib import Path
from urllib.parse import urlparse

import load
import psutil
import sqlalchemy as sa
from autovibe import db, machines, postgres, projects, tokens
from autovibe.api.v1.tests.conftest import People, populate, running
from autovibe.models import Machine
from autovibe.settings import Settings
from autovibe.tests.conftest import running_server

MACHINES, EVERY_SECONDS = 1000, 10
CLIENTS = 16
HEARTBEAT_RUNS = 3

Call = Callable[[], Awaitable[None]]


def fleet(people: People, count: int) -> list[Machine]:
    """Machines that work, of one project; their VMs are only records."""
    large = people.settings.model_copy(update={"machine_network": IPv4Network("10.200.0.0/20")})
    with people.session() as session:
        project = projects.create(session, "fleet", budget_cad=10_000)
        for _ in range(count):
            machines.spawn(session, large, project=project, prompt="x")
    with people.session() as session:
        session.execute(sa.text("UPDATE operations SET status = 'succeeded', started_at = now(), finished_at = now()"))
        # Of the last month, not of one transaction.
        spread = "spawned_at = now() - random() * interval '30 days', enrolled_at = now()"
        session.execute(sa.text(f"UPDATE intelligent_machines SET status = 'working', {spread}"))  # noqa: S608
        return list(session.scalars(sa.select(Machine).where(Machine.project_uuid == project.uuid)))


async def steady(call: Call, rate: float, seconds: float) -> list[float]:
    """Milliseconds of calls that are due `rate` times a second."""
    took: list[float] = []

    async def one(due: float) -> None:
        await call()
        took.append((time.perf_counter() - due) * 1000)

    began, running_calls = time.perf_counter(), []
    for number in range(int(rate * seconds)):
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        running_calls.append(asyncio.create_task(one(due)))
    await asyncio.gather(*running_calls)
    return took


async def flat_out(call: Call, clients: int, seconds: float) -> float:
    """Calls a second of so many clients, each asking again as soon as it is answered."""
    end, done = time.monotonic() + seconds, 0

    async def client() -> None:
        nonlocal done
        while time.monotonic() < end:
            await call()
            done += 1

    await asyncio.gather(*(client() for _ in range(clients)))
    return done / seconds


class Wire:
    """HTTP/1.1 on some connections that are kept: a client whose own time does not count beside the server's."""

    def __init__(self, url: str, tls: ssl.SSLContext) -> None:
        self.host, self.tls = urlparse(url), tls
        self.idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self.all: list[asyncio.StreamWriter] = []

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, tls: ssl.SSLContext, connections: int = 64) -> AsyncIterator[Wire]:
        wire = cls(url, tls)
        try:
            for _ in range(connections):
                reader, writer = await asyncio.open_connection(wire.host.hostname, wire.host.port, ssl=tls)
                wire.all.append(writer)
                wire.idle.put_nowait((reader, writer))
            yield wire
        finally:
            for writer in wire.all:
                writer.close()

    async def send(self, request: bytes) -> None:
        reader, writer = await self.idle.get()
        writer.write(request)
        status = await load.answer(reader)
        assert status == 200, status
        self.idle.put_nowait((reader, writer))


def caller(wire: Wire, method: str, paths: list[str], keys: list[str]) -> Call:
    """A call of each path, with each key or token, in turn."""
    number = -1
    end = " HTTP/1.1\r\nHost: bench\r\nContent-Length: 0\r\nAuthorization: Bearer "
    count = max(len(paths), len(keys))
    requests = [f"{method} {paths[i % len(paths)]}{end}{keys[i % len(keys)]}\r\n\r\n".encode() for i in range(count)]

    async def call() -> None:
        nonlocal number
        number += 1
        await wire.send(requests[number % count])

    return call


def said(name: str, took: list[float]) -> str:
    ordered = sorted(took)
    worst = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return f"  {name:<27} p50 {statistics.median(ordered):7.1f} ms   p99 {worst:7.1f} ms   ({len(ordered)} requests)"


def cpu_seconds(process: psutil.Process) -> float:
    try:
        return sum(process.cpu_times()[:4])
    except psutil.NoSuchProcess:
        return 0.0


class Cost:
    """What a server's processes and Postgres' use of the CPU, from when it is made."""

    def __init__(self, server: int, database: postgres.Server) -> None:
        postmaster = int((database.data / "postmaster.pid").read_text().split()[0])
        self._tops = [psutil.Process(server), psutil.Process(postmaster)]
        self._began, self._before = time.monotonic(), self._used()

    def _used(self) -> list[float]:
        # With what children that have ended have used: Postgres' are one for each connection.
        groups = ([top, *top.children(recursive=True)] for top in self._tops)
        return [sum(map(cpu_seconds, group)) for group in groups]

    def __str__(self) -> str:
        seconds = time.monotonic() - self._began
        server, database = ((now - then) / seconds for now, then in zip(self._used(), self._before, strict=True))
        return f"  {'':<27} {server:.1%} of a core in the hub's processes, {database:.1%} in Postgres"


async def people_api(
    people: People, database: postgres.Server, fleet_: list[Machine], rate: float, seconds: float
) -> None:
    paths = {
        "list of 100 machines": ["/api/v1/machines?limit=100"],
        "list of 20 machines": ["/api/v1/machines?limit=20"],
        "show a machine": [f"/api/v1/machines/{machine.uuid}" for machine in fleet_],
        "projects with budgets": ["/api/v1/projects"],
    }
    async with Wire.open(people.url, people.tls()) as wire:
        for name, wanted in paths.items():
            call = caller(wire, "GET", wanted, [people.keys["admin"]])
            await asyncio.gather(*(call() for _ in range(CLIENTS)))
            cost = Cost(people.process.pid, database)
            print(said(f"{name}, {rate:g}/s", await steady(call, rate, seconds)))
            print(cost)
            print(f"  {name:<27} {await flat_out(call, CLIENTS, seconds):7.1f} requests/s, {CLIENTS} clients")


async def heartbeats(people: People, database: postgres.Server, fleet_: list[Machine], seconds: float) -> None:
    """What a fleet's heartbeats cost: each of the machines has a connection of its own, as agents have."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "AUTOVIBE_STATE_DIR": str(people.settings.state_dir),
        "AUTOVIBE_DATABASE_URL": people.settings.database_url.get_secret_value(),
    }
    command = [sys.executable, "-m", "autovibe.api", "--port", str(port)]
    with (people.folder / "hub.log").open("ab") as log:
        hub = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        keys = [tokens.machine_token(one, people.settings) for one in fleet_]
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            await asyncio.sleep(0.1)
        async with Wire.open(f"https://127.0.0.1:{port}", people.tls(), len(keys)) as wire:
            call = caller(wire, "POST", ["/agent/v1/heartbeat"], keys)
            rate = len(keys) / EVERY_SECONDS
            await steady(call, rate, EVERY_SECONDS)
            for _ in range(HEARTBEAT_RUNS):
                cost = Cost(hub.pid, database)
                print(said(f"heartbeats, {rate:g}/s", await steady(call, rate, seconds)))
                print(cost)
    finally:
        hub.terminate()
        hub.wait(20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--rate", type=float, default=200, help="requests a second")
    parser.add_argument("--machines", type=int, default=MACHINES)
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="autovibe-bench-") as folder,
        running_server(postgres.find_programs(Settings(postgres_bin=None))) as server,
        running(server, Path(folder)) as people,
    ):
        populate(people)
        fleet_ = fleet(people, args.machines)
        print(f"The hub's API, {len(fleet_)} machines")
        asyncio.run(people_api(people, server, fleet_, args.rate, args.seconds))
        asyncio.run(heartbeats(people, server, fleet_, args.seconds))
        db.dispose(people.settings)


if __name__ == "__main__":
    main()
