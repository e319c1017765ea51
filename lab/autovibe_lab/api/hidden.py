"""What lists leave out for whom, and which single volumes one may touch.

An answer goes through here after its function has made it, so that no function has to think of it.
"""

from __future__ import annotations

from collections.abc import Callable

from autovibe_lab.api.guest_permits import check_volume, may_read
from autovibe_lab.api.routes import Answer, Call
from autovibe_lab.usercfg import ROOT

#: Of a node, what everybody sees.
OF_NODE = ("id", "type", "node", "status", "level", "cgroup-mode", "ssl_fingerprint")


def _guest(call: Call, entry: dict) -> bool:
    return call.can(f"/vms/{entry['vmid']}", "VM.Audit")


def _storage(call: Call, entry: dict) -> bool:
    return call.can(f"/storage/{entry['storage']}", "Datastore.Audit", "Datastore.AllocateSpace", any=True)


def _volume(call: Call, entry: dict) -> bool:
    return may_read(call, entry["volid"])


def _node(call: Call, entry: dict) -> bool:
    """Everybody sees it, but its load only who may audit it."""
    if not call.can(f"/nodes/{entry['node']}", "Sys.Audit"):
        for key in set(entry) - set(OF_NODE):
            del entry[key]
    return True


def _resource(call: Call, entry: dict) -> bool:
    kind = entry["type"]
    if kind in ("qemu", "lxc"):
        return _guest(call, entry)
    if kind == "node":
        return _node(call, entry)
    if kind == "pool":
        return call.can(f"/pool/{entry['pool']}", "Pool.Audit")
    if kind == "storage":
        return call.can(f"/storage/{entry['storage']}", "Datastore.Audit")
    return call.can(f"/sdn/zones/{entry.get('sdn', '')}", "SDN.Audit", "SDN.Use", "SDN.Allocate", any=True)


LISTS: dict[str, Callable[[Call, dict], bool]] = {
    "/cluster/resources": _resource,
    "/nodes": _node,
    "/nodes/{node}/qemu": _guest,
    "/nodes/{node}/storage": _storage,
    "/nodes/{node}/storage/{storage}/content": _volume,
    "/storage": _storage,
}


def left(call: Call, method: str, template: str, answer: object) -> object:
    """The answer without what the caller may not see."""
    seen = LISTS.get(template) if method == "GET" and call.user != ROOT else None
    if seen is None:
        return answer
    data = answer.data if isinstance(answer, Answer) else answer
    kept = [entry for entry in data if seen(call, entry)]
    return Answer(kept, answer.extra) if isinstance(answer, Answer) else kept


def check(call: Call, method: str, template: str) -> None:
    """The 403 of a volume that the caller may not read, or not delete."""
    if not template.startswith("/nodes/{node}/storage/{storage}/content/{volume") or call.user == ROOT:
        return
    storage, volume = call.params["storage"], str(call.params["volume"])
    volid = volume if ":" in volume else f"{storage}:{volume}"
    if method == "DELETE" and not volid.partition(":")[2].startswith("backup/"):
        call.check(f"/storage/{storage}", "Datastore.Allocate")
    else:
        check_volume(call, volid)
