"""vzdump: back guests up, prune what is no longer kept, restore, and the jobs that are planned."""

from __future__ import annotations

import shlex

from autovibe_lab import archives, contents, retention, vzdump
from autovibe_lab.api.routes import Call, route
from autovibe_lab.errors import ApiError, TaskError, invalid
from autovibe_lab.formats import split_list
from autovibe_lab.paths import VolumeError
from autovibe_lab.storages import Storage
from autovibe_lab.tasks import Task


@route("POST", "/nodes/{node}/vzdump")
async def backup(call: Call) -> object:
    guests = chosen(call)
    call.root_only("tmpdir", "dumpdir", "script")

    async def work(task: Task) -> None:
        job = _job(call)
        lock = call.node.backup_lock
        if lock.locked():
            task.log("INFO: trying to get global lock - waiting...")
        async with lock:
            if task.read_log():
                task.log("INFO: got global lock")
            task.log(f"INFO: starting new backup job: vzdump {_command(call, guests)}")
            for vmid in guests:
                if not call.can(f"/vms/{vmid}", "VM.Backup") and "vmid" in call.params:
                    raise TaskError(f"403 Permission check failed (/vms/{vmid}, VM.Backup)")
            done = [await vzdump.run(call.node, vmid, job, task) for vmid in guests]
            if not all(done):
                task.log("INFO: Backup job finished with errors")
                raise TaskError("job errors")
            task.log("INFO: Backup job finished successfully")

    return call.task("vzdump", work, id=guests[0] if len(guests) == 1 else "")


def chosen(call: Call) -> list[int]:
    """The guests of a job: named, of a pool, or all but some."""
    node = call.node
    if call.get("vmid"):
        return [int(vmid) for vmid in split_list(str(call.params["vmid"]))]
    if call.get("pool"):
        node.pools.check(str(call.params["pool"]))
        return sorted(vmid for vmid in node.pools.all[str(call.params["pool"])].vms if vmid in node.machines)
    if call.get("all") or call.get("exclude"):
        left = {int(vmid) for vmid in split_list(str(call.get("exclude", "")))}
        return sorted(vmid for vmid in node.machines if vmid not in left)
    raise invalid(vmid="property is missing")


def _job(call: Call) -> vzdump.Job:
    storage = _storage(call, str(call.get("storage", "local")))
    text = str(call.get("prune-backups", storage.options.get("prune-backups", "keep-all=1")))
    return vzdump.Job(
        storage,
        str(call.get("mode", "snapshot")),
        str(call.get("compress", "0")),
        str(call.get("notes-template", "")),
        bool(call.get("protected")),
        retention.parse(text) if call.get("remove", True) else None,
        int(str(call.get("bwlimit", 0))),
    )


def _storage(call: Call, name: str) -> Storage:
    storages = call.node.storages.config.all
    if name not in storages:
        gone = f"storage '{name}' does not exist"
        raise TaskError(
            f"could not activate storage '{name}': {gone} could not get storage information for '{name}': {gone}"
        )
    if "backup" not in storages[name].content:
        said = f"can't use storage '{name}' for backups - wrong content type"
        raise TaskError(f"could not get storage information for '{name}': {said}")
    return storages[name]


def _command(call: Call, guests: list[int]) -> str:
    given = {name: value for name, value in call.params.items() if name not in ("vmid", "node")}
    given = {"node": call.node.name} | given
    words = [" ".join(map(str, guests))] if "vmid" in call.params else []
    for name, value in given.items():
        words.append(f"--{name} {shlex.quote(str(int(value)) if isinstance(value, bool) else str(value))}")
    return " ".join(words)


@route("GET", "/nodes/{node}/vzdump/defaults")
async def defaults(call: Call) -> object:
    storage = str(call.get("storage", "local"))
    configured = call.node.storages.check(storage)
    found: dict[str, object] = {"all": 0, "bwlimit": 0, "compress": "0", "fleecing": {"enabled": 0}, "ionice": 7}
    found |= {"lockwait": 180, "mailnotification": "always", "mode": "snapshot", "notification-mode": "auto"}
    found |= {"notification-policy": "always", "performance": {"max-workers": 16, "pbs-entries-max": 1048576}}
    found |= {"pigz": 0, "quiet": 0, "remove": 1, "stdexcludes": 1, "stop": 0, "stopwait": 10, "zstd": 1}
    found |= {"prune-backups": configured.options.get("prune-backups", "keep-all=1")}
    if "storage" in call.params:
        found |= {"storage": storage}
    if configured.type != "pbs":
        found |= {"dumpdir": str(call.node.paths.storage(storage) / "dump")}
    return found


def read_archive(call: Call, volid: str) -> archives.Contents:
    """The backup, or the 500 that says why it is none."""
    try:
        path = call.node.paths.volume(volid)
    except VolumeError as error:
        raise ApiError(500, str(error)) from None
    call.node.storages.check(volid.partition(":")[0])
    if not volid.partition(":")[2].startswith("backup/"):
        raise ApiError(500, f"volume '{volid}' is not a backup volume")
    if not path.exists():
        raise ApiError(500, f"volume '{volid}' does not exist")
    return archives.read(path)


@route("GET", "/nodes/{node}/vzdump/extractconfig")
async def extract(call: Call) -> object:
    return read_archive(call, str(call.params["volume"])).config


# Pruning ------------------------------------------------------------------------------------------------------------

PRUNE = "/nodes/{node}/storage/{storage}/prunebackups"


def _marked(call: Call) -> list[dict]:
    storage = call.node.storages.check(str(call.params["storage"]))
    if "backup" not in storage.content:
        raise ApiError(500, f"storage '{storage.id}' does not support backups")
    text = call.get("prune-backups") or storage.options.get("prune-backups")
    if not text:
        raise ApiError(500, "no prune-backups options configured for storage '" + storage.id + "'")
    found = contents.backups(call.node.storages, storage.id)
    found = [entry for entry in found if call.get("vmid", entry["vmid"]) == entry["vmid"]]
    found = [entry for entry in found if call.get("type", entry["subtype"]) == entry["subtype"]]
    return retention.marks(found, retention.parse(str(text)))


@route("GET", PRUNE)
async def would_prune(call: Call) -> object:
    return _marked(call)


@route("DELETE", PRUNE)
async def prune(call: Call) -> object:
    _marked(call)

    async def work(task: Task) -> None:
        for entry in _marked(call):
            if entry["mark"] == "remove":
                contents.remove(call.node.storages.path(entry["volid"]))
                task.log(f"Removed volume '{entry['volid']}'")

    owner = f"{call.params['vmid']}@" if "vmid" in call.params else ""
    return call.task("prunebackups", work, id=f"{owner}{call.params['storage']}")
