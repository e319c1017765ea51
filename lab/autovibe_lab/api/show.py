"""How guests are shown: in the list, as a status, as a resource of the cluster."""

from __future__ import annotations

import time

from autovibe_lab.config import boot_disk, split_properties
from autovibe_lab.node import Machine, Node
from autovibe_lab.options import agent_enabled


def summary(machine: Machine) -> dict:
    """A line of …/qemu."""
    current, running = machine.config.current, machine.running()
    disk = boot_disk(current)
    entry: dict[str, object] = {
        "vmid": machine.vmid,
        "name": machine.name,
        "status": "running" if running else "stopped",
        "cpus": int(current.get("cores", "1")) * int(current.get("sockets", "1")),
        "maxmem": int(split_properties(current.get("memory", "512"), "current")["current"]) << 20,
        "maxdisk": disk.size if disk else 0,
        "uptime": max(int(time.time() - machine.started), 1) if running else 0,
    }
    entry |= dict.fromkeys(("cpu", "mem", "disk", "netin", "netout", "diskread", "diskwrite"), 0)
    if machine.is_template:
        entry["template"] = 1
    entry |= {name: current[name] for name in ("tags", "lock") if current.get(name)}
    return entry


def status(machine: Machine) -> dict:
    """The answer of …/status/current."""
    entry = summary(machine) | {"ha": {"managed": 0}}
    entry["qmpstatus"] = ("paused" if machine.paused else "running") if machine.running() else "stopped"
    if agent_enabled(machine.config.current):
        entry["agent"] = 1
    if machine.running():
        entry |= {"running-qemu": "7.2.0", "running-machine": "pc-i440fx-7.2"}
    return entry


def resource(node: Node, machine: Machine) -> dict:
    """A line of /cluster/resources and a member of a pool."""
    entry = summary(machine)
    entry |= {"type": "qemu", "id": f"qemu/{machine.vmid}", "node": node.name, "maxcpu": entry.pop("cpus")}
    entry["template"] = int(machine.is_template)
    if node.name in node.cluster.offline:
        entry["status"] = "unknown"
    if pool := node.pools.of(machine.vmid):
        entry["pool"] = pool
    return entry
