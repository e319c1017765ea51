"""/version, /cluster: what is the same on every node."""

from __future__ import annotations

import shutil

import psutil

from autovibe_lab.api.nodes import VERSION
from autovibe_lab.api.routes import Call, route
from autovibe_lab.api.show import resource
from autovibe_lab.errors import invalid
from autovibe_lab.schema import VMID, Param, opt
from autovibe_lab.volumes import CONTENT


@route("GET", "/version")
async def version(call: Call) -> object:
    return VERSION


@route("GET", "/cluster/nextid", vmid=opt(VMID))
async def nextid(call: Call) -> object:
    vmid = call.get("vmid")
    if vmid is None:
        return str(call.node.free_id())
    if vmid in call.node.machines:
        raise invalid(vmid=f"VM {vmid} already exists")
    return str(vmid)


@route("GET", "/cluster/status")
async def status(call: Call) -> object:
    name = call.node.name
    entry = {"type": "node", "id": f"node/{name}", "name": name, "nodeid": 0, "ip": "127.0.0.1"}
    return [entry | {"online": 1, "local": 1, "level": ""}]


@route("GET", "/cluster/resources", type=opt(Param(enum=("vm", "storage", "node", "sdn"))))
async def resources(call: Call) -> object:
    node, kind = call.node, call.get("type")
    found: list[dict] = []
    if kind in (None, "vm"):
        found += [resource(node, machine) for machine in list(node.machines.values())]
    if kind in (None, "node"):
        usage, memory = shutil.disk_usage(node.paths.state), psutil.virtual_memory()
        entry = {"type": "node", "id": f"node/{node.name}", "node": node.name, "status": "online", "level": ""}
        entry |= {"maxcpu": psutil.cpu_count(), "cpu": psutil.cpu_percent() / 100, "cgroup-mode": 2}
        entry |= {"maxmem": memory.total, "mem": memory.used, "maxdisk": usage.total, "disk": usage.used}
        found.append(entry)
    if kind in (None, "storage"):
        found += [_storage(call, storage) for storage in CONTENT]
    if kind in (None, "sdn"):
        sdn = {"type": "sdn", "id": f"sdn/{node.name}/localnetwork", "sdn": "localnetwork", "status": "ok"}
        found.append(sdn | {"node": node.name})
    return found


def _storage(call: Call, storage: str) -> dict:
    name, status = call.node.name, call.node.storages.status(storage)
    entry = {"type": "storage", "id": f"storage/{name}/{storage}", "storage": storage, "node": name, "shared": 0}
    entry |= {"plugintype": "dir", "status": "available", "content": CONTENT[storage]}
    return entry | {"disk": status["used"], "maxdisk": status["total"]}


@route("GET", "/cluster/tasks")
async def tasks(call: Call) -> object:
    return [task.list_entry() for task in reversed(list(call.node.tasks.all.values()))][:250]


@route("GET", "/cluster/options")
async def options(call: Call) -> object:
    return {"mac_prefix": "BC:24:11", "allowed-tags": [], "description": ""}
