"""/nodes: the one node and its load."""

from __future__ import annotations

import os
import shutil
import time

import psutil

from autovibe_lab.api.routes import Call, route
from autovibe_lab.node import BRIDGES, Node

VERSION = {"version": "8.4.21", "release": "8.4", "repoid": "2606ac850d46da29"}


@route("GET", "/")
async def index(call: Call) -> object:
    return [{"subdir": name} for name in ("version", "cluster", "nodes", "storage", "access", "pools")]


@route("GET", "/nodes")
async def nodes(call: Call) -> object:
    return [_entry(node) for node in call.node.cluster.nodes.values()]


def _entry(node: Node) -> dict:
    entry = {"type": "node", "id": f"node/{node.name}", "node": node.name, "level": ""}
    if node.name in node.cluster.offline:
        return entry | {"status": "offline"}
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(node.paths.state)
    entry |= {"status": "online", "cpu": psutil.cpu_percent() / 100, "maxcpu": psutil.cpu_count(), "mem": memory.used}
    entry |= {"maxmem": memory.total, "disk": disk.used, "maxdisk": disk.total}
    return entry | {"uptime": int(time.monotonic() - node.started)}


@route("GET", "/nodes/{node}/version")
async def version(call: Call) -> object:
    return VERSION


@route("GET", "/nodes/{node}/time")
async def clock(call: Call) -> object:
    return {"time": int(time.time()), "localtime": int(time.time()), "timezone": "Etc/UTC"}


@route("GET", "/nodes/{node}/status")
async def status(call: Call) -> object:
    memory, disk, swap = psutil.virtual_memory(), shutil.disk_usage(call.node.paths.state), psutil.swap_memory()
    system, cpus = os.uname(), psutil.cpu_count()
    return {
        "pveversion": f"pve-manager/{VERSION['version']}/{VERSION['repoid']}",
        "kversion": f"{system.sysname} {system.release} {system.version}",
        "uptime": int(time.monotonic() - call.node.started),
        "cpu": psutil.cpu_percent() / 100,
        "wait": 0,
        "loadavg": [f"{load:.2f}" for load in os.getloadavg()],
        "cpuinfo": {"cpus": cpus, "cores": cpus, "sockets": 1, "model": "embedded"},
        "memory": {"total": memory.total, "used": memory.used, "free": memory.free},
        "swap": {"total": swap.total, "used": swap.used, "free": swap.free},
        "rootfs": {"total": disk.total, "used": disk.used, "free": disk.free, "avail": disk.free},
        "ksm": {"shared": 0},
    }


@route("GET", "/nodes/{node}/network")
async def network(call: Call) -> object:
    return [
        {"iface": name, "type": "bridge", "active": 1, "autostart": 1, "method": "manual", "bridge_ports": ""}
        for name in BRIDGES
    ]


@route("GET", "/nodes/{node}/lxc")
async def containers(call: Call) -> object:
    return []
