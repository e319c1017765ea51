"""The lab's own process: serves the API until it is told to go. Started by `control.up`, not by hand."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from autovibe_lab import site, tls
from autovibe_lab.auth import Secrets, kept
from autovibe_lab.latency import PROFILES, Delays
from autovibe_lab.listener import Listener
from autovibe_lab.model import server as model
from autovibe_lab.node import BRIDGES, Node
from autovibe_lab.paths import LabPaths, Network
from autovibe_lab.server import Server

HOST = "127.0.0.1"
DEFAULT_PORT, DEFAULT_HUB_PORT = 18006, 18000


@dataclass
class Settings:
    """How one lab is run. `accel` is `kvm` or `tcg`; for `site` see the module of that name, for the rest
    `latency.Delays`."""

    state: Path
    port: int = DEFAULT_PORT
    hub_port: int = DEFAULT_HUB_PORT
    accel: str = "tcg"
    login_delay: float = 3
    lock_timeout: float = 10
    null_guests: bool = False
    bare_guests: bool = False
    hang_delay: float = 5
    latency: str = "off"
    time_scale: float = 1
    nodes: int = 1
    pve_version: int = 8
    site: str = "full"

    def delays(self) -> Delays:
        return Delays(self.latency, self.time_scale, self.lock_timeout, self.login_delay, self.hang_delay)


class Lab:
    """A running lab in this process: for the daemon, and for tests."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.paths = LabPaths(settings.state)
        network = Network(settings.hub_port)
        shared = {"accel": settings.accel, "delays": settings.delays(), "null_guests": settings.null_guests}
        shared |= {"bare_guests": settings.bare_guests, "pve_version": settings.pve_version}
        self.node = Node(self.paths, network, **shared)
        for number in range(2, settings.nodes + 1):
            name = f"pve{number}"
            Node(self.paths.of_node(name), network, name=name, cluster=self.node.cluster, **shared)
        self.nodes = list(self.node.cluster.nodes.values())
        if settings.site == "bare":
            self.node.storages.config.as_installed()
        site.prepare(self.node.access, settings.site, self.node.storages.config.all, BRIDGES)
        self.secrets = Secrets.load(settings.state)
        tls.make(settings.state, self.node.name)
        self.server = Server(self.node, self.secrets)
        self.runner = web.AppRunner(self.server.application(), access_log=None, shutdown_timeout=1)
        self.model = web.AppRunner(
            model.create_app(kept(settings.state / "model-key"), bill_file=settings.state / "model-bill.jsonl"),
            access_log=None,
            shutdown_timeout=1,
        )
        self.listener: Listener | None = None
        self.port = settings.port

    async def start(self) -> None:
        """Listen (port 0: any that is free), adopt what runs, then say so in `endpoint.json`."""
        for node in self.nodes:
            await node.adopt()
        await self._start_model()
        await self.runner.setup()
        self.listener = Listener(self.runner.server, tls.context(self.paths.state))
        self.port = self.listener.start(HOST, self.settings.port)
        endpoint = {"host": HOST, "port": self.port, "node": self.node.name, "hub_port": self.settings.hub_port}
        endpoint |= {"pid": os.getpid(), "accel": self.settings.accel}
        endpoint["nodes"] = [node.name for node in self.nodes]
        _write(self.paths.state / "port", str(self.port))
        _write(self.paths.state / "endpoint.json", json.dumps(endpoint))

    async def _start_model(self) -> None:
        """The demo model, on any free port: for a hub that has no provider's key."""
        await self.model.setup()
        await web.TCPSite(self.model, HOST, 0, backlog=1024).start()
        _write(self.paths.state / "model-port", f"{self.model.addresses[0][1]}\n")

    async def close(self) -> None:
        """Stop answering. Guests go on running; who wants them gone has stopped them before."""
        for node in self.nodes:
            await node.close()
        await self.model.cleanup()
        if self.listener:
            await self.listener.close()
        await self.runner.cleanup()


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.new")
    part.write_text(text)
    part.replace(path)


@contextlib.contextmanager
def only_one(state: Path) -> object:
    """One daemon a state folder: a lock that ends with the process."""
    with open(state / "daemon.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"another lab runs on {state}")
        yield


async def serve(settings: Settings) -> None:
    lab = Lab(settings)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    if site.POOL not in lab.node.pools.all:
        lab.node.pools.create(site.POOL, "The machines of autovibe")
    try:
        await lab.start()
    except OSError as error:
        sys.exit(f"port {settings.port} on {HOST} can't be used: {error.strerror or error}")
    await stopped.wait()
    await lab.close()


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--hub-port", type=int, default=DEFAULT_HUB_PORT)
    parser.add_argument("--accel", choices=("kvm", "tcg"), default="tcg")
    parser.add_argument("--login-delay", type=float, default=3)
    parser.add_argument("--lock-timeout", type=float, default=10)
    parser.add_argument("--hang-delay", type=float, default=5)
    parser.add_argument("--latency", choices=tuple(PROFILES), default="off")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--null-guests", action="store_true", help="no processes and no disks, on any storage")
    parser.add_argument("--bare-guests", action="store_true", help="null guests without an operating system")
    parser.add_argument("--time-scale", type=float, default=1)
    parser.add_argument("--pve-version", type=int, choices=(8, 9), default=8)
    parser.add_argument("--site", choices=site.SITES, default="least", help="what the lab's own token may do")
    settings = Settings(**vars(parser.parse_args()))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    with only_one(settings.state):
        asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
