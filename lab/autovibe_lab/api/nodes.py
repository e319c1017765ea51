"""/nodes: the one node and its load."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import ssl
import time
from pathlib import Path

import psutil

from autovibe_lab.api.routes import Call, route
from autovibe_lab.node import BRIDGES, Node

#: The processor that the node says it has.
CPU = {"model": "embedded", "mhz": "2000.000", "flags": "fpu", "hvm": ""}
#: The port of the node's first bridge, and its address.
PORT, ADDRESS = "eno1", "127.0.0.1"
PARTS = (
    "aplinfo apt capabilities ceph certificates config disks dns firewall hardware hosts journal lxc migrateall netstat"
    " network qemu query-url-metadata replication report rrd rrddata scan services spiceshell startall status stopall"
    " storage subscription suspendall syslog tasks termproxy time version vncshell vzdump wakeonlan sdn"
)
#: Machine types of QEMU 7.2 as Proxmox lists them, newest first; those of i440fx go further back.
MACHINES = "7.2 7.1 7.0 6.2 6.1 6.0 5.2 5.1 5.0 4.2 4.1+pve2 4.1+pve1 4.1 4.0 3.1 3.0 2.9 2.8 2.7 2.6 2.5 2.4"
OLDER = {"q35": " 2.12 2.11 2.10 4.0.1", "i440fx": " 2.3 2.2 2.12 2.11 2.10 2.1 2.0 1.7 1.6 1.5 1.4"}
CHANGES = {
    "4.1+pve1": "Introduction of pveX versioning, no changes.",
    "4.1+pve2": "Increases the number of SCSI drives supported.",
}
#: Seconds between two values of a graph, by its length.
RESOLUTION = {"hour": 60, "day": 1800, "week": 10800, "month": 43200, "year": 604800}

VERSIONS = {
    8: {"version": "8.4.21", "release": "8.4", "repoid": "2606ac850d46da29"},
    9: {"version": "9.0.3", "release": "9.0", "repoid": "025864202ebb6109"},
}


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
    entry["ssl_fingerprint"] = _fingerprint(node.cluster.local.paths.state / "ca.pem")
    return entry | {"uptime": int(time.monotonic() - node.started)}


@functools.cache
def _fingerprint(certificate: Path) -> str:
    """What clients may verify with instead of the certificate."""
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.read_text())).hexdigest().upper()
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))


@route("GET", "/nodes/{node}/version")
async def version(call: Call) -> object:
    return VERSIONS[call.node.access.version]


@route("GET", "/nodes/{node}/time")
async def clock(call: Call) -> object:
    return {"time": int(time.time()), "localtime": int(time.time()), "timezone": "Etc/UTC"}


@route("GET", "/nodes/{node}/status")
async def status(call: Call) -> object:
    memory, disk, swap = psutil.virtual_memory(), shutil.disk_usage(call.node.paths.state), psutil.swap_memory()
    system, cpus = os.uname(), psutil.cpu_count()
    return {
        "pveversion": "pve-manager/{version}/{repoid}".format(**VERSIONS[call.node.access.version]),
        "kversion": f"{system.sysname} {system.release} {system.version}",
        "uptime": int(time.monotonic() - call.node.started),
        "cpu": psutil.cpu_percent() / 100,
        "wait": 0,
        "loadavg": [f"{load:.2f}" for load in os.getloadavg()],
        "idle": 0,
        "current-kernel": {key: getattr(system, key) for key in ("sysname", "release", "version", "machine")},
        "boot-info": {"mode": "efi" if os.path.exists("/sys/firmware/efi") else "legacy-bios"},
        "cpuinfo": {"cpus": cpus, "cores": cpus, "sockets": 1, "user_hz": 100} | CPU,
        "memory": {"total": memory.total, "used": memory.used, "free": memory.free},
        "swap": {"total": swap.total, "used": swap.used, "free": swap.free},
        "rootfs": {"total": disk.total, "used": disk.used, "free": disk.free, "avail": disk.free},
        "ksm": {"shared": 0},
    }


@route("GET", "/nodes/{node}")
async def parts(call: Call) -> object:
    return [{"name": name} for name in PARTS.split()]


@route("GET", "/nodes/{node}/network")
async def network(call: Call) -> object:
    """A port, the bridge on it that has the node's address, and bridges of guests only."""
    base = {"active": 1, "families": ["inet"], "method": "manual", "method6": "manual"}
    found: list[dict] = [base | {"iface": PORT, "type": "eth", "priority": 3}]
    for number, name in enumerate(BRIDGES):
        bridge = base | {"iface": name, "type": "bridge", "autostart": 1, "priority": 4 + number}
        bridge |= {"bridge_stp": "off", "bridge_fd": "0", "bridge_ports": "" if number else PORT}
        if number == 0:
            bridge |= {"method": "static", "address": ADDRESS, "netmask": "24", "cidr": f"{ADDRESS}/24"}
        found.append(bridge)
    kind = call.get("type")
    if kind in (None, "include_sdn"):
        return found
    return [each for each in found if each["type"] == kind or (kind.startswith("any_") and each["type"] == "bridge")]


@route("GET", "/nodes/{node}/dns")
async def dns(call: Call) -> object:
    return {"dns1": ADDRESS}


@route("GET", "/nodes/{node}/config")
async def config(call: Call) -> object:
    return {}


@route("GET", "/nodes/{node}/services")
async def services(call: Call) -> object:
    return []


@route("GET", "/nodes/{node}/subscription")
async def subscription(call: Call) -> object:
    found = {"status": "notfound", "message": "There is no subscription key", "serverid": "0" * 32}
    return found | {"url": "https://www.proxmox.com/en/proxmox-virtual-environment/pricing"}


@route("GET", "/nodes/{node}/capabilities/qemu/machines")
async def machine_types(call: Call) -> object:
    found = []
    for kind, older in OLDER.items():
        for number in (MACHINES + older).split():
            entry = {"id": f"pc-{kind}-{number}", "type": kind, "version": number}
            found.append(entry | ({"changes": CHANGES[number]} if number in CHANGES else {}))
    return found


@route("GET", "/nodes/{node}/rrddata")
async def graph(call: Call) -> object:
    """Times without values, as of a node that has just been set up."""
    return _times(call)


@route("GET", "/nodes/{node}/qemu/{vmid}/rrddata")
async def guest_graph(call: Call) -> object:
    assert call.machine
    return _times(call)


def _times(call: Call) -> list[dict]:
    step = RESOLUTION[call.params["timeframe"]]
    last = int(time.time()) // step
    return [{"time": number * step} for number in range(last - 69, last + 1)]


@route("GET", "/nodes/{node}/lxc")
async def containers(call: Call) -> object:
    return []
