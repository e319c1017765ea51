"""/version, /cluster: what is the same on every node."""

from __future__ import annotations

import shutil

import psutil

from autovibe_lab.api.nodes import VERSION
from autovibe_lab.api.routes import Call, route
from autovibe_lab.api.show import resource
from autovibe_lab.cluster import NAME
from autovibe_lab.errors import invalid
from autovibe_lab.node import Node
from autovibe_lab.usercfg import split_token
from autovibe_lab.volumes import CONTENT


@route("GET", "/version")
async def version(call: Call) -> object:
    return VERSION


@route("GET", "/cluster/nextid")
async def nextid(call: Call) -> object:
    vmid = call.get("vmid")
    if vmid is None:
        return str(call.node.cluster.free_id())
    if call.node.cluster.holder(vmid):
        raise invalid(vmid=f"VM {vmid} already exists")
    return str(vmid)


@route("GET", "/cluster/status")
async def status(call: Call) -> object:
    cluster = call.node.cluster
    several = len(cluster.nodes) > 1
    found: list[dict] = []
    if several:
        found.append({"type": "cluster", "id": "cluster", "name": NAME, "version": 1, "quorate": 1})
        found[0]["nodes"] = len(cluster.nodes)
    for number, name in enumerate(cluster.nodes, 1):
        entry = {"type": "node", "id": f"node/{name}", "name": name, "ip": "127.0.0.1", "level": ""}
        entry |= {"nodeid": number if several else 0, "local": int(name == cluster.local.name)}
        found.append(entry | {"online": int(name not in cluster.offline)})
    return found


@route("GET", "/cluster/resources")
async def resources(call: Call) -> object:
    cluster, kind = call.node.cluster, call.get("type")
    found: list[dict] = []
    if kind is None:
        found += [{"type": "pool", "id": f"/pool/{name}", "pool": name} for name in sorted(cluster.pools.all)]
    if kind in (None, "vm"):
        found += [resource(node, machine) for node, machine in cluster.guests()]
    for node in cluster.nodes.values():
        if kind in (None, "node"):
            found.append(_node(node))
        if kind in (None, "storage"):
            found += [storage_resource(node, storage) for storage in CONTENT]
        if kind in (None, "sdn"):
            sdn = {"type": "sdn", "id": f"sdn/{node.name}/localnetwork", "sdn": "localnetwork", "node": node.name}
            found.append(sdn | {"status": "unknown" if node.name in cluster.offline else "ok"})
    return found


def _node(node: Node) -> dict:
    entry = {"type": "node", "id": f"node/{node.name}", "node": node.name, "level": "", "cgroup-mode": 2}
    if node.name in node.cluster.offline:
        return entry | {"status": "offline"}
    usage, memory = shutil.disk_usage(node.paths.state), psutil.virtual_memory()
    entry |= {"status": "online", "maxcpu": psutil.cpu_count(), "cpu": psutil.cpu_percent() / 100}
    return entry | {"maxmem": memory.total, "mem": memory.used, "maxdisk": usage.total, "disk": usage.used}


def storage_resource(node: Node, storage: str) -> dict:
    """A storage's line in /cluster/resources and in a pool."""
    name, shared = node.name, int(node.cluster.shares(storage))
    entry = {"type": "storage", "id": f"storage/{name}/{storage}", "storage": storage, "node": name, "shared": shared}
    entry |= {"plugintype": "dir", "content": CONTENT[storage]}
    if name in node.cluster.offline:
        return entry | {"status": "unknown"}
    status = node.storages.status(storage)
    entry["status"] = "available"
    return entry | {"disk": status["used"], "maxdisk": status["total"]}


@route("GET", "/cluster/tasks")
async def tasks(call: Call) -> object:
    audit = call.can("/", "Sys.Audit")
    # A token doesn't even see its own: they are its user's.
    found = [task for task in call.node.cluster.tasks() if audit or split_token(task.user)[0] == call.user]
    return [task.list_entry() for task in reversed(found)][:250]


@route("GET", "/cluster/options")
async def options(call: Call) -> object:
    return {"mac_prefix": "BC:24:11", "allowed-tags": [], "description": ""}
