"""/pools."""

from __future__ import annotations

import re

from autovibe_lab.api.routes import Call, route
from autovibe_lab.api.show import resource
from autovibe_lab.errors import ApiError
from autovibe_lab.schema import BOOLEAN, POOL, STRING, opt

UPDATE = {"comment": opt(STRING), "vms": opt(STRING), "storage": opt(STRING), "delete": opt(BOOLEAN)}
UPDATE |= {"allow-move": opt(BOOLEAN)}


def _show(call: Call, name: str) -> dict:
    if name not in call.node.pools.all:
        raise ApiError(500, f"pool '{name}' does not exist")
    pool = call.node.pools.all[name]
    members = [resource(node, machine) for node, machine in call.node.cluster.guests() if machine.vmid in pool.vms]
    node = call.node.name
    members += [
        {"type": "storage", "id": f"storage/{node}/{storage}", "storage": storage, "node": node}
        for storage in sorted(pool.storages)
    ]
    return {"poolid": name, "members": members} | ({"comment": pool.comment} if pool.comment else {})


def _update(call: Call, name: str) -> None:
    pools = call.node.pools
    if name not in pools.all:
        raise ApiError(500, f"update pools failed: pool '{name}' does not exist")
    pool = pools.all[name]
    if "comment" in call.params:
        pool.comment = call.params["comment"]
    for text in re.findall(r"\d+", call.get("vms", "")):
        vmid = int(text)
        if call.get("delete"):
            pool.vms.discard(vmid)
        else:
            pools.add(name, vmid, move=bool(call.get("allow-move")))
    for storage in re.findall(r"[^,; ]+", call.get("storage", "")):
        (pool.storages.discard if call.get("delete") else pool.storages.add)(storage)
    pools.save()


@route("GET", "/pools", poolid=opt(POOL))
async def listing(call: Call) -> object:
    if "poolid" in call.params:
        return [_show(call, call.params["poolid"])]
    pools = sorted(call.node.pools.all.items())
    return [{"poolid": name} | ({"comment": pool.comment} if pool.comment else {}) for name, pool in pools]


@route("POST", "/pools", poolid=POOL, comment=opt(STRING))
async def create(call: Call) -> None:
    call.node.pools.create(call.params["poolid"], call.get("comment", ""))


@route("PUT", "/pools", poolid=POOL, **UPDATE)
async def update_any(call: Call) -> None:
    _update(call, call.params["poolid"])


@route("DELETE", "/pools", poolid=POOL)
async def delete_any(call: Call) -> None:
    call.node.pools.delete(call.params["poolid"])


@route("GET", "/pools/{poolid*}")
async def show(call: Call) -> object:
    return _show(call, call.params["poolid"])


@route("PUT", "/pools/{poolid*}", **UPDATE)
async def update(call: Call) -> None:
    _update(call, call.params["poolid"])


@route("DELETE", "/pools/{poolid*}")
async def delete(call: Call) -> None:
    call.node.pools.delete(call.params["poolid"])
