"""/pools."""

from __future__ import annotations

import re

from autovibe_lab.api.cluster import storage_resource
from autovibe_lab.api.routes import Call, route
from autovibe_lab.api.show import resource
from autovibe_lab.errors import ApiError
from autovibe_lab.usercfg import Pool

#: Of a guest's line in /cluster/resources: not in a pool's.
NOT_SHOWN = ("pool", "tags", "lock")


def _members(call: Call, pool: Pool) -> list[dict]:
    """The guests and storages that are there; a pool may name others."""
    cluster = call.node.cluster
    guests = [resource(node, machine) for node, machine in cluster.guests() if machine.vmid in pool.vms]
    found = [{key: value for key, value in guest.items() if key not in NOT_SHOWN} for guest in guests]
    return found + [
        storage_resource(node, storage) for node in cluster.nodes.values() for storage in sorted(pool.storages)
    ]


def _show(call: Call, name: str) -> dict:
    if name not in call.node.pools.all:
        raise ApiError(500, f"pool '{name}' does not exist")
    pool = call.node.pools.all[name]
    members = [member for member in _members(call, pool) if call.get("type", member["type"]) == member["type"]]
    return {"poolid": name, "members": members} | ({"comment": pool.comment} if pool.comment else {})


def _update(call: Call, name: str) -> None:
    """All of the change or, when one member is refused, nothing of it."""
    pools = call.node.pools
    if name not in pools.all:
        raise ApiError(500, f"update pools failed: pool '{name}' does not exist")
    vms = [int(vmid) for vmid in re.findall(r"\d+", call.get("vms", ""))]
    storages = re.findall(r"[^,;\s]+", call.get("storage", ""))
    for path in (*(f"/vms/{vmid}" for vmid in vms), *(f"/storage/{storage}" for storage in storages)):
        call.check(path, *call.node.access.permissions.may_modify(path), any=True)
    if call.get("delete"):
        pools.leave(name, vms, storages)
    else:
        pools.enter(name, vms, storages, move=bool(call.get("allow-move")))
    if "comment" in call.params:
        pools.all[name].comment = call.params["comment"]
    pools.save()


@route("GET", "/pools")
async def listing(call: Call) -> object:
    if "poolid" in call.params:
        call.check(f"/pool/{call.params['poolid']}", "Pool.Audit")
        return [_show(call, call.params["poolid"])]
    return [
        {"poolid": name} | ({"comment": pool.comment} if pool.comment else {})
        for name, pool in sorted(call.node.pools.all.items())
        if call.can(f"/pool/{name}", "Pool.Audit")
    ]


@route("POST", "/pools")
async def create(call: Call) -> None:
    call.node.pools.create(call.params["poolid"], call.get("comment", ""))


@route("PUT", "/pools")
async def update_any(call: Call) -> None:
    _update(call, call.params["poolid"])


@route("DELETE", "/pools")
async def delete_any(call: Call) -> None:
    call.node.pools.delete(call.params["poolid"])


@route("GET", "/pools/{poolid*}")
async def show(call: Call) -> object:
    return _show(call, call.params["poolid"])


@route("PUT", "/pools/{poolid*}")
async def update(call: Call) -> None:
    _update(call, call.params["poolid"])


@route("DELETE", "/pools/{poolid*}")
async def delete(call: Call) -> None:
    call.node.pools.delete(call.params["poolid"])
