"""/nodes/N/qemu/ID/clone: linked clones of templates, full clones of everything, of a snapshot too.

The new machine stands as soon as both locks are held, with `lock: clone` and a temporary description. Its name and
description appear when its first disk is copied, and it joins its pool last: who sees it earlier must not trust its
identity.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from autovibe_lab import edit, options
from autovibe_lab.api.guest_permits import check_clone
from autovibe_lab.api.routes import Call, route
from autovibe_lab.config import NETS, NOT_IN_SNAPSHOTS, Drive, Section, drives
from autovibe_lab.copying import Copier, undo
from autovibe_lab.disks import DiskError
from autovibe_lab.errors import ApiError, TaskError
from autovibe_lab.guest import NullGuest
from autovibe_lab.locks import LockTimeout
from autovibe_lab.node import Machine, Node
from autovibe_lab.null_programs import Disk
from autovibe_lab.tasks import Task

#: Of the source: never in a clone.
NOT_CLONED = re.compile(rf"unused\d+|template|parent|{'|'.join(NOT_IN_SNAPSHOTS)}")


@dataclass
class Request:
    """One clone: from where, to which id, how."""

    node: Node
    source: Machine
    section: Section
    snapshot: str | None
    vmid: int
    linked: bool
    storage: str | None
    name: str
    description: str | None
    pool: str | None
    bwlimit: int | None
    form: str | None
    target: Node | None = None

    def config(self) -> Section:
        """The new configuration before its disks are copied: an identity of its own, all else inherited."""
        current = {key: value for key, value in self.section.items() if not NOT_CLONED.fullmatch(key)}
        for key in [key for key in current if NETS.fullmatch(key)]:
            net = options.parse_net(current[key]) | {"macaddr": edit.random_mac()}
            current[key] = options.print_net(net)
        edit.new_identity(current)
        current["name"] = self.name
        inherited = self.source.config.current if self.snapshot is None else self.section
        description = self.description if self.description is not None else inherited.get("description")
        if description:
            current["description"] = description
        return current | {"lock": "clone"}


def _request(call: Call) -> Request:
    """Everything that is refused at once."""
    node, vmid, newid = call.node, call.params["vmid"], call.params["newid"]
    if vmid not in node.machines:
        raise ApiError(500, f"unable to find configuration file for VM {vmid} on node '{node.name}'")
    if "pool" in call.params:
        node.pools.check(call.params["pool"])
    target = _target(call)
    if storage := call.get("storage"):
        node.storages.check_images(storage)
        if target and not node.cluster.shares(storage):
            raise ApiError(500, f"can't clone to non-shared storage '{storage}'")
    source, snapshot = call.unlocked(), call.get("snapname")
    if snapshot is not None and snapshot not in source.config.snapshots:
        raise ApiError(500, f"snapshot '{snapshot}' does not exist")
    section = source.config.current if snapshot is None else source.config.snapshots[snapshot]
    linked = not call.get("full", not source.is_template)
    _check_feature(call, section, "Linked" if linked else "Full", snapshot)
    check_clone(call, section, storage)
    if newid in node.machines:
        raise ApiError(500, f"unable to create VM {newid}: config file already exists")
    if holder := node.cluster.holder(newid):
        raise ApiError(500, f"VM {newid} already exists on node '{holder.name}'")
    used = {drive.volid.partition(":")[0] for drive in drives(section) if drive.has_volume}
    if target and not all(node.cluster.shares(name) for name in used):
        raise ApiError(500, f"can't clone VM to node '{target.name}' (VM uses local storage)")
    name = call.get("name") or f"Copy-of-VM-{section.get('name', vmid)}"
    description = call.get("description")
    pool, limit, form = call.get("pool"), call.get("bwlimit"), call.get("format")
    return Request(
        node, source, section, snapshot, newid, linked, storage, name, description, pool, limit, form, target
    )


def _target(call: Call) -> Node | None:
    """The other node that the clone is to be on."""
    name = call.get("target", call.node.name)
    if name in (call.node.name, "localhost"):
        return None
    if name not in call.node.cluster.nodes:
        raise ApiError(500, f"no such cluster node '{name}'")
    return call.node.cluster.nodes[name]


def _check_feature(call: Call, section: Section, way: str, snapshot: str | None) -> None:
    """Refuse what the storages of the disks cannot do. `way`: `Linked` or `Full`."""
    for name in ("storage", "format"):
        if way == "Linked" and name in call.params:
            raise ApiError(500, f"parameter '{name}' not allowed for linked clones")
    feature = "clone" if way == "Linked" else "copy"
    for drive in drives(section):
        if drive.is_disk and not call.node.storages.can(drive.volid, feature, snapshot):
            raise ApiError(500, f"{way} clone feature is not supported for '{drive.volid}' ({drive.key})")


@route("POST", "/nodes/{node}/qemu/{vmid}/clone")
async def clone(call: Call) -> object:
    request, node = _request(call), call.node
    # A running source is locked against everything, a stopped one only against changes.
    shared = not request.source.running()

    async def work(task: Task) -> None:
        timeout = node.lock_timeout
        async with (
            request.source.lock.hold(timeout, shared=shared, log=task.log),
            node.config_lock(request.vmid).hold(timeout, log=task.log),
        ):
            await _work(request, task)

    return call.task("qmclone", work)


async def _work(request: Request, task: Task) -> None:
    """What is done under both locks. What was checked before is checked again: another may have been faster."""
    node = request.node
    node.unlocked(request.source.vmid)
    if node.cluster.holder(request.vmid):
        raise TaskError(f"unable to create VM {request.vmid}: config file already exists")
    target = node.add(request.vmid, {"description": " qmclone temporary file", "lock": "clone"})
    copier = Copier(node, request.source, request.vmid, task, [], request.storage, request.bwlimit)
    copier.snapshot, copier.form = request.snapshot, request.form
    try:
        await _copy(request, target, copier)
    except BaseException as error:
        if task.killed:
            raise
        await undo(node, copier.made, task)
        node.forget(target)
        if isinstance(error, asyncio.CancelledError):
            raise TaskError("clone failed: interrupted by signal") from None
        if isinstance(error, (DiskError, TaskError, LockTimeout)):
            raise TaskError(f"clone failed: {error}") from None
        raise
    if request.target is not None:
        node.hand_over(target, request.target)
    if request.pool is not None:
        node.pools.add(request.pool, request.vmid)


async def _copy(request: Request, target: Machine, copier: Copier) -> None:
    node, current = request.node, request.config()
    mirrored = []
    for drive in drives(current):
        if not (drive.is_disk or (drive.is_cloudinit and drive.has_volume)):
            continue
        volid = await copier.drive(drive, linked=request.linked)
        properties = drive.properties | {"file": volid} | ({"size": "4M"} if drive.is_cloudinit else {})
        mirrored += [drive.key] if drive.is_disk else []
        current[drive.key] = Drive(drive.key, properties).text()
        target.config.current = dict(current)
        node.save(target)
    if request.source.running() and request.snapshot is None and mirrored:
        _end_mirrors(request, copier.task, mirrored)
    await node.spend(request.source, "clone-end")
    target.config.current = {key: value for key, value in current.items() if key != "lock"}
    _copy_memory(request, target)
    node.firewall.copy(request.source.vmid, target.vmid)
    node.save(target)


def _end_mirrors(request: Request, task: Task, keys: list[str]) -> None:
    """All copies of a running guest's disks end at one moment, in which it stands still."""
    frozen = options.agent_enabled(request.source.config.current)
    task.log("freeze filesystem" if frozen else "suspend vm")
    for key in keys:
        task.log(f"drive-{key}: Cancelling block job")
        task.log(f"drive-{key}: Done.")
    task.log("unfreeze filesystem" if frozen else "resume vm")


def _copy_memory(request: Request, target: Machine) -> None:
    """A null guest's files are its disk's content."""
    old, new = request.node.guest(request.source), request.node.guest(target)
    if isinstance(old, NullGuest) and isinstance(new, NullGuest):
        found = old.disk if request.snapshot is None else old.snapshots.get(request.snapshot, Disk())
        new.disk = found.copy()
