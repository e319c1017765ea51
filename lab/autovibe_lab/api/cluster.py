"""/version, /cluster: what is the same on every node."""

from __future__ import annotations

import shutil
import time

import psutil

from autovibe_lab import contents, declared
from autovibe_lab.api.nodes import VERSIONS
from autovibe_lab.api.routes import Call, route
from autovibe_lab.api.show import resource
from autovibe_lab.cluster import NAME
from autovibe_lab.errors import invalid
from autovibe_lab.formats import split_list, split_parts
from autovibe_lab.node import Node
from autovibe_lab.usercfg import split_token

PARTS = (
    "acme backup backup-info ceph config firewall ha jobs log mapping metrics notifications nextid options replication"
    " resources status tasks sdn"
)
SET_OPTIONS = "PUT /cluster/options"
#: As many as a cluster's nodes tell each other.
LISTED_TASKS = 25


@route("GET", "/version")
async def version(call: Call) -> object:
    return VERSIONS[call.node.access.version]


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
            storages = cluster.storages.all.values()
            found += [storage_resource(node, storage.id) for storage in storages if storage.on(node.name)]
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
    entry |= {"maxmem": memory.total, "mem": memory.used, "maxdisk": usage.total, "disk": usage.used}
    return entry | {"uptime": int(time.monotonic() - node.started)}


def storage_resource(node: Node, storage: str) -> dict:
    """A storage's line in /cluster/resources and in a pool."""
    configured = node.cluster.storages.get(storage)
    name, shared = node.name, int(configured.shared)
    entry = {"type": "storage", "id": f"storage/{name}/{storage}", "storage": storage, "node": name, "shared": shared}
    entry |= {"plugintype": configured.type, "content": ",".join(configured.content)}
    if name in node.cluster.offline:
        return entry | {"status": "unknown"}
    status = contents.status(node.storages, storage, name)
    entry["status"] = "available"
    return entry | {"disk": status["used"], "maxdisk": status["total"]}


@route("GET", "/cluster")
async def parts(call: Call) -> object:
    return [{"name": name} for name in PARTS.split()]


@route("GET", "/cluster/tasks")
async def tasks(call: Call) -> object:
    """The last of all nodes; what runs comes first."""
    audit = call.can("/", "Sys.Audit")
    # A token doesn't even see its own: they are its user's.
    newest = [task for task in call.node.cluster.tasks()[::-1] if audit or split_token(task.user)[0] == call.user]
    found = sorted(newest, key=lambda task: task.status is not None)
    return [_task(task.list_entry()) for task in found][:LISTED_TASKS]


def _task(entry: dict) -> dict:
    running = entry["status"] == "RUNNING"
    without = {"pstart", "status", "saved"} if running else {"pstart", "pid"}
    return {key: value for key, value in entry.items() if key not in without} | ({} if running else {"saved": "1"})


@route("GET", "/cluster/log")
async def log(call: Call) -> object:
    """Who logged in, which tasks began and how they ended; newest first."""
    cluster = call.node.cluster
    found = [(cluster.started, cluster.local.name, "root", 6, "cluster", "starting cluster log")]
    for at, user in cluster.logins:
        found.append((at, cluster.local.name, user, 6, "pvedaemon", f"successful auth for user '{user}'"))
    for task in cluster.tasks():
        found.append((task.starttime, task.node, task.user, 6, "pvedaemon", f"starting task {task.upid}"))
        if task.status is not None:
            ended = f"end task {task.upid} {task.status}"
            found.append((task.endtime, task.node, task.user, 6 if task.status == "OK" else 3, "pvedaemon", ended))
    if not call.can("/", "Sys.Syslog"):
        found = [line for line in found if line[2] == call.user]
    names = ("time", "node", "user", "pri", "tag", "msg")
    entries = [dict(zip(names, values, strict=True)) for values in sorted(found, key=lambda values: values[0])]
    for number, entry in enumerate(entries, 1):
        entry |= {"uid": str(number), "id": f"{number}:{entry['node']}", "pid": 1000}
    return entries[::-1][: call.get("max", 50)]


@route("GET", "/cluster/options")
async def options(call: Call) -> object:
    """What is set, and the defaults; property strings as objects."""
    found: dict[str, object] = {"mac_prefix": "BC:24:11", "allowed-tags": [], "description": ""}
    for name, value in call.node.cluster.options.items():
        rule = declared.rules(SET_OPTIONS).get(name, {}).get("format")
        found[name] = split_parts(value, rule) if isinstance(rule, dict) else value
    return found


@route("PUT", "/cluster/options")
async def set_options(call: Call) -> None:
    kept, cluster = call.node.cluster.options, call.node.cluster
    for name in split_list(call.get("delete", "")):
        kept.pop(name, None)
    kept |= {name: str(value) for name, value in call.params.items() if name != "delete"}
    cluster.local.save_options()


@route("GET", "/cluster/ha/status/current")
async def ha_status(call: Call) -> object:
    entry = {"id": "quorum", "type": "quorum", "quorate": 1, "status": "OK"}
    return [entry | {"node": call.node.cluster.local.name}]


def _nothing(path: str) -> None:
    @route("GET", path)
    async def nothing(call: Call) -> object:
        return []


#: Nothing of this is played; a node without it says so, too.
for _path in ("replication", "ha/resources", "ha/groups", "sdn/zones", "sdn/vnets"):
    _nothing(f"/cluster/{_path}")
