"""/nodes/N/qemu/ID/migrate: what stands in the way of it, and refusals. The lab moves no guest to another node."""

from __future__ import annotations

import re

from autovibe_lab.api.routes import Call, route
from autovibe_lab.config import Drive, drives
from autovibe_lab.errors import ApiError, TaskError, invalid
from autovibe_lab.node import Machine, Node
from autovibe_lab.tasks import Task

MIGRATE = "/nodes/{node}/qemu/{vmid}/migrate"


def _volume(drive: Drive, shared: bool, **more: object) -> dict:
    found = {"volid": drive.volid, "cdrom": int(drive.is_cdrom), "shared": int(shared), "replicate": 1}
    return found | {"is_unused": 0, "is_attached": 0, "is_vmstate": 0, "is_tpmstate": 0} | more


def _local_volumes(node: Node, machine: Machine) -> list[dict]:
    current, found = machine.config.current, []
    for drive in drives(current):
        if drive.has_volume and not node.cluster.shares(drive.volid.partition(":")[0]):
            found.append(_volume(drive, False, drivename=drive.key, size=drive.size, is_attached=1))
    for key, value in current.items():
        if re.fullmatch(r"unused\d+", key):
            found.append(_volume(Drive(key, {"file": value}), False, is_unused=1))
    return found


@route("GET", MIGRATE)
async def preconditions(call: Call) -> object:
    machine, node = call.machine, call.node
    local = _local_volumes(node, machine)
    others = [name for name in node.cluster.nodes if name != node.name]
    found: dict[str, object] = {"running": int(machine.running()), "local_disks": local, "local_resources": []}
    found |= {"mapped-resources": [], "mapped-resource-info": {}}
    if machine.running():
        return found | {"allowed_nodes": others, "not_allowed_nodes": {}}
    return found | {"allowed_nodes": [] if local else others, "not_allowed_nodes": {}}


@route("POST", MIGRATE)
async def migrate(call: Call) -> object:
    node, target = call.node, call.params["target"]
    if target in (node.name, "localhost"):
        raise invalid(target="target is local node.")
    if target not in node.cluster.nodes:
        raise ApiError(500, f"no such cluster node '{target}'")
    machine = call.machine
    if machine.running() and not call.get("online"):
        raise ApiError(500, "can't migrate running VM without --online")

    async def work(task: Task) -> None:
        async with machine.lock.hold(node.lock_timeout, log=task.log):
            node.unlocked(machine.vmid)
            if machine.running() or _local_volumes(node, machine):
                raise TaskError("migration aborted: the lab migrates stopped guests whose volumes are shared")
            node.hand_over(machine, node.cluster.nodes[target])

    return call.task("qmigrate", work)
