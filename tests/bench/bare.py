"""What a careful person would write with proxmoxer and nothing else: the measure of the benchmark in `collection.py`.

    bare.py CONNECTION.json spawn|checkpoint|converge|inventory MACHINES.json

Four threads with a connection each; every task is waited for by polling its status.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from proxmoxer import ProxmoxAPI

AT_ONCE = 4
local = threading.local()


def api() -> ProxmoxAPI:
    """This thread's connection."""
    if not hasattr(local, "api"):
        local.api = ProxmoxAPI(
            connection["host"],
            port=connection["port"],
            user=connection["user"],
            token_name=connection["token_name"],
            token_value=connection["token_value"],
            verify_ssl=connection["ca"],
            timeout=60,
        )
    return local.api


def node() -> object:
    return api().nodes(connection["node"])


def wait(upid: str) -> None:
    pause = 0.05
    while (status := node().tasks(upid).status.get())["status"] != "stopped":
        time.sleep(pause)
        pause = min(pause * 1.5, 1)
    assert status["exitstatus"] == "OK", status


def spawn(one: dict) -> None:
    wait(node().qemu(one["template"]).clone.post(newid=one["vm_id"], name=one["name"], description="bench"))
    node().qemu(one["vm_id"]).config.put(cores=2, memory=512, tags="bench", net0=one["net0"])
    wait(node().qemu(one["vm_id"]).status.start.post())


def checkpoint(one: dict) -> None:
    wait(node().qemu(one["vm_id"]).snapshot.post(snapname=one["snapshot"], description="bench"))


def converge(one: dict) -> None:
    """Is it as it was asked for?"""
    config = node().qemu(one["vm_id"]).config.get()
    assert (config["name"], config["cores"], int(config["memory"]), config["tags"]) == (one["name"], 2, 512, "bench")
    assert config["net0"] == one["net0"]
    assert node().qemu(one["vm_id"]).status.current.get()["status"] == "running"


def inventory(machines: list[dict]) -> None:
    """The hosts of an inventory, with their groups."""
    hosts = api().cluster.resources.get(type="vm")
    groups: dict[str, list[str]] = {}
    for host in hosts:
        groups.setdefault(host["status"], []).append(host["name"])
    json.dump({"hosts": hosts, "groups": groups}, sys.stdout)


if __name__ == "__main__":
    connection, machines = (json.loads(Path(file).read_text()) for file in (sys.argv[1], sys.argv[3]))
    what = sys.argv[2]
    if what == "inventory":
        inventory(machines)
    else:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map({"spawn": spawn, "checkpoint": checkpoint, "converge": converge}[what], machines))
