"""/storage and /nodes/N/storage: the storages and their volumes."""

from __future__ import annotations

from autovibe_lab.api.routes import Call, route
from autovibe_lab.errors import ApiError, TaskError, invalid
from autovibe_lab.paths import VolumeError
from autovibe_lab.schema import BOOLEAN, NATURAL, STRING, VMID, opt
from autovibe_lab.tasks import Task
from autovibe_lab.volumes import CONTENT, virtual_size


@route("GET", "/storage", type=opt(STRING))
async def configured(call: Call) -> object:
    return [_configured(call, storage) for storage in CONTENT]


@route("GET", "/storage/{storage}")
async def configuration(call: Call) -> object:
    call.node.storages.check(call.params["storage"])
    return _configured(call, call.params["storage"])


def _configured(call: Call, storage: str) -> dict:
    path = str(call.node.paths.storage(storage))
    return {"storage": storage, "type": "dir", "content": CONTENT[storage], "path": path}


@route("GET", "/nodes/{node}/storage", content=opt(STRING), storage=opt(STRING), enabled=opt(BOOLEAN))
async def listing(call: Call) -> object:
    wanted = call.get("content", "").split(",") if "content" in call.params else []
    found = []
    for storage in CONTENT:
        if all(kind in CONTENT[storage].split(",") for kind in wanted) and call.get("storage", storage) == storage:
            status = call.node.storages.status(storage)
            found.append(status | {"storage": storage, "used_fraction": status["used"] / max(status["total"], 1)})
    return found


@route("GET", "/nodes/{node}/storage/{storage}/status")
async def status(call: Call) -> object:
    if call.params["storage"] not in CONTENT:
        raise invalid(storage="No such storage.")
    return call.node.storages.status(call.params["storage"])


@route("GET", "/nodes/{node}/storage/{storage}/content", content=opt(STRING), vmid=opt(VMID))
async def content(call: Call) -> object:
    storage = call.params["storage"]
    call.node.storages.check(storage)
    return [
        entry
        for entry in call.node.storages.content(storage, call.node.volumes())
        if call.get("content", entry["content"]) == entry["content"]
        # An import image belongs to no guest and is listed for every one.
        and call.get("vmid", entry.get("vmid")) in (entry.get("vmid"), None)
        or ("vmid" in call.params and entry["content"] == "import" and "content" not in call.params)
    ]


def _volid(call: Call) -> str:
    volume, storage = call.params["volume"], call.params["storage"]
    return volume if ":" in volume else f"{storage}:{volume}"


@route("GET", "/nodes/{node}/storage/{storage}/content/{volume*}")
async def volume(call: Call) -> object:
    call.node.storages.check(call.params["storage"])
    volid = _volid(call)
    try:
        path = call.node.paths.volume(volid)
    except VolumeError as error:
        raise ApiError(500, str(error)) from None
    if not path.exists():
        raise ApiError(500, f"volume_size_info on '{volid}' failed")
    size = dict(call.node.volumes()).get(volid) or virtual_size(path)
    return {"path": str(path), "format": path.suffix[1:], "size": size, "used": path.stat().st_blocks * 512}


@route("DELETE", "/nodes/{node}/storage/{storage}/content/{volume*}", delay=opt(NATURAL))
async def delete(call: Call) -> object:
    call.node.storages.check(call.params["storage"])
    volid = _volid(call)

    async def work(task: Task) -> None:
        name = volid.partition(":")[2]
        if call.node.linked_clones_of(volid):
            raise TaskError(f"base volume '{name}' is still in use by linked clones")
        path = call.node.storages.path(volid)
        if not path.exists():
            task.log(f"disk image '{path}' does not exist")
        call.node.storages.delete(volid)
        task.log(f"Removed volume '{volid}'")

    owner = volid.partition(":")[2].split("/")[-2]
    return call.task("imgdel", work, id=f"{owner}@{call.params['storage']}")
