"""/nodes/N/qemu/ID/move_disk: a disk to another storage."""

from __future__ import annotations

from autovibe_lab import edit, wording
from autovibe_lab.api.routes import Call, route
from autovibe_lab.config import Drive, drives
from autovibe_lab.copying import Copier, undo
from autovibe_lab.disks import DiskError
from autovibe_lab.errors import ApiError, TaskError
from autovibe_lab.locks import LockTimeout
from autovibe_lab.node import Machine, Node
from autovibe_lab.options import is_drive
from autovibe_lab.tasks import Task


def _drive(call: Call, machine: Machine) -> Drive:
    """The disk, when it can be moved as asked for."""
    key, config = call.params["disk"], machine.config
    if not is_drive(key) or key not in config.current:
        raise ApiError(500, f"disk '{key}' does not exist")
    drive = Drive.parse(key, config.current[key])
    if drive.is_cdrom:
        raise ApiError(500, "you can't move a cdrom")
    same = drive.volid.partition(":")[0] == call.params["storage"]
    if same and call.get("format", wording.kind(drive.volid)) == wording.kind(drive.volid):
        raise ApiError(500, "you can't move to the same storage with same format")
    kept = any(drive.volid == other.volid for section in config.snapshots.values() for other in drives(section))
    if kept and call.get("delete"):
        raise ApiError(500, "you can't move a disk with snapshots and delete the source")
    return drive


@route("POST", "/nodes/{node}/qemu/{vmid}/move_disk")
async def move_disk(call: Call) -> object:
    node, machine = call.node, call.unlocked()
    if "target-vmid" in call.params or "storage" not in call.params:
        raise ApiError(500, "the lab moves a disk to another 'storage', not to another guest")
    node.storages.check(call.params["storage"])
    if call.get("digest", machine.config.digest()) != machine.config.digest():
        raise ApiError(500, "checksum mismatch (file change by other user?)")
    _drive(call, machine)

    async def work(task: Task) -> None:
        async with machine.lock.hold(node.lock_timeout, log=task.log):
            node.unlocked(machine.vmid)
            await _move(call, machine, task)

    return call.task("qmmove", work)


async def _move(call: Call, machine: Machine, task: Task) -> None:
    node, drive = call.node, _drive(call, machine)
    if machine.running() and not machine.is_null:
        raise TaskError("the lab moves disks of guests that don't run, and of null guests")
    copier = Copier(node, machine, machine.vmid, task, [], call.params["storage"], call.get("bwlimit"))
    copier.form = call.get("format")
    try:
        volid = await copier.drive(drive)
    except (DiskError, TaskError, LockTimeout) as error:
        await undo(node, copier.made, task)
        raise TaskError(f"storage migration failed: {error}") from None
    if machine.running():
        task.log(f"drive-{drive.key}: Completing block job...")
        task.log(f"drive-{drive.key}: Completed successfully.")
        task.log(f"drive-{drive.key}: mirror-job finished")
    machine.config.current[drive.key] = Drive(drive.key, drive.properties | {"file": volid}).text()
    if not call.get("delete"):
        edit.set_unused(machine.config.current, drive.volid)
    node.save(machine)
    if call.get("delete"):
        await _free(node, drive, task)


async def _free(node: Node, drive: Drive, task: Task) -> None:
    async with node.storage_lock(drive.volid.partition(":")[0], task.log):
        node.storages.delete(drive.volid)
