"""How guests are shown: in the list, as a status, as a resource of the cluster."""

from __future__ import annotations

import re
import time

from autovibe_lab.config import NETS, boot_disk, drives, split_properties
from autovibe_lab.guest import NullGuest, boots_from_cd
from autovibe_lab.node import Machine, Node
from autovibe_lab.options import agent_enabled


def summary(machine: Machine) -> dict:
    """A line of …/qemu."""
    current, running = machine.config.current, machine.running()
    disk = None if current.get("boot") == " " or boots_from_cd(current) else boot_disk(current)
    entry: dict[str, object] = {
        "vmid": machine.vmid,
        "name": machine.name,
        "status": "running" if running else "stopped",
        "cpus": int(current.get("cores", "1")) * int(current.get("sockets", "1")),
        "maxmem": int(split_properties(current.get("memory", "512"), "current")["current"]) << 20,
        "maxdisk": disk.size if disk else 0,
        "uptime": max(int(time.time() - machine.started), 1) if running else 0,
    }
    entry |= dict.fromkeys(("cpu", "mem", "disk", "netin", "netout"), 0)
    if machine.is_template:
        entry["template"] = 1
    if any(re.fullmatch(r"serial\d", key) for key in current):
        entry["serial"] = 1
    if running:
        entry["pid"] = machine.guest.pid
    entry |= {name: current[name] for name in ("tags", "lock") if current.get(name)}
    return entry


TRAFFIC = ("diskread", "diskwrite")
#: What QEMU counts of a drive.
COUNTED = [f"{state}_{what}_operations" for state in ("failed", "invalid") for what in ("rd", "wr", "unmap", "flush")]
COUNTED += [f"{what}_{unit}" for what in ("rd", "wr", "unmap") for unit in ("operations", "bytes", "merged")]
COUNTED += [f"{what}_total_time_ns" for what in ("rd", "wr", "unmap", "flush")]
COUNTED += ["flush_operations", "wr_highest_offset"]
#: What a guest's balloon driver counts.
COUNTED_BY_GUEST = ("major_page_faults", "minor_page_faults", "mem_swapped_in", "mem_swapped_out")
SUPPORT = ("pbs-dirty-bitmap", "pbs-dirty-bitmap-migration", "pbs-dirty-bitmap-savevm", "pbs-masterkey")
SUPPORT += ("query-bitmap-info", "backup-max-workers")


def status(machine: Machine) -> dict:
    """The answer of …/status/current."""
    entry, current = summary(machine) | {"ha": {"managed": 0}}, machine.config.current
    entry["qmpstatus"] = "stopped"
    if agent_enabled(current):
        entry["agent"] = 1
    if "vga" in current:
        entry["clipboard"] = split_properties(current["vga"], "type").get("clipboard")
    if machine.running():
        entry |= _running(machine, int(entry["maxmem"]))
    return entry


def _running(machine: Machine, memory: int) -> dict:
    """What QEMU itself says."""
    current = machine.config.current
    actual = int(current.get("balloon", 0)) << 20 or memory
    found: dict[str, object] = {"qmpstatus": machine.qmpstatus, "balloon": actual}
    found["ballooninfo"] = {"actual": actual, "max_mem": memory}
    if isinstance(machine.guest, NullGuest) and machine.guest.has_system:
        free = actual * 3 // 4
        found["ballooninfo"] |= dict.fromkeys(COUNTED_BY_GUEST, 0) | {"total_mem": actual, "free_mem": free}
        found["ballooninfo"] |= {"last_update": int(time.time())}
        found["freemem"] = free
    flags = {"account_failed": True, "account_invalid": True, "timed_stats": []}
    found["blockstat"] = {drive.key: dict.fromkeys(COUNTED, 0) | flags for drive in drives(current)}
    taps = [f"tap{machine.vmid}i{key.removeprefix('net')}" for key in current if NETS.fullmatch(key)]
    if taps:
        found["nics"] = {tap: {"netin": 0, "netout": 0} for tap in taps}
    found["proxmox-support"] = dict.fromkeys(SUPPORT, True) | {"pbs-library-version": "1.3.2-stub"}
    found |= {"running-qemu": "7.2.0", "running-machine": "pc-i440fx-7.2+pve0"}
    return found | dict.fromkeys(TRAFFIC, 0)


def resource(node: Node, machine: Machine) -> dict:
    """A line of /cluster/resources and a member of a pool."""
    entry = summary(machine) | dict.fromkeys(TRAFFIC, 0)
    for name in ("pid", "serial"):
        entry.pop(name, None)
    entry |= {"type": "qemu", "id": f"qemu/{machine.vmid}", "node": node.name, "maxcpu": entry.pop("cpus")}
    entry["template"] = int(machine.is_template)
    if node.name in node.cluster.offline:
        entry["status"] = "unknown"
    if pool := node.pools.of(machine.vmid):
        entry["pool"] = pool
    return entry
