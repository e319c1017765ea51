"""/nodes/N/qemu/ID/snapshot: list, create, delete, roll back."""

from __future__ import annotations

import contextlib
import time
import uuid

from autovibe_lab import hibernate
from autovibe_lab.api.power import start_guest, stop_guest
from autovibe_lab.api.routes import Call, route
from autovibe_lab.config import Section, drives, owned_volumes, snapshot_of
from autovibe_lab.disks import DiskError
from autovibe_lab.errors import ApiError, TaskError
from autovibe_lab.guest import Guest, GuestError, NullGuest
from autovibe_lab.node import Machine, Node
from autovibe_lab.options import agent_enabled, shown
from autovibe_lab.tasks import Task

SNAPSHOTS = "/nodes/{node}/qemu/{vmid}/snapshot"
ONE = SNAPSHOTS + "/{snapname}"
RESERVED = ("current", "pending")

#: In a snapshot's section beside the machine's options.
OF_SNAPSHOT = ("snaptime", "snapstate", "vmstate", "description", "parent", "runningmachine", "runningcpu")


def _entry(name: str, section: Section) -> dict:
    entry = {"name": name, "description": section.get("description", ""), "snaptime": int(section.get("snaptime", "0"))}
    entry["vmstate"] = int("vmstate" in section)
    entry |= {key: section[key] for key in ("parent", "snapstate") if key in section}
    return entry


@route("GET", SNAPSHOTS)
async def listing(call: Call) -> object:
    machine, config = call.machine, call.machine.config
    now = {"name": "current", "description": "You are here!", "digest": config.digest()}
    now["running"] = int(machine.running())
    if parent := config.current.get("parent"):
        now["parent"] = parent
    return [*(_entry(name, section) for name, section in config.snapshots.items()), now]


@route("POST", SNAPSHOTS)
async def create(call: Call) -> object:
    node, machine, name = call.node, call.machine, call.params["snapname"]
    if name in RESERVED:
        raise ApiError(500, f"unable to use snapshot name '{name}' (reserved name)")

    async def work(task: Task) -> None:
        async with machine.lock.hold(node.lock_timeout, log=task.log):
            node.unlocked(machine.vmid)
            if machine.is_template:
                raise TaskError("you can't take a snapshot if it's a template")
            if name in machine.config.snapshots:
                raise TaskError(f"snapshot name '{name}' already used")
            if not _possible(node, machine.config.current):
                raise TaskError("snapshot feature is not available")
            _prepare(node, machine, name, call, task)
        try:
            node.tasks.die_if_told(task)
            copy = hibernate.memory(machine) if "vmstate" in machine.config.snapshots[name] else 0
            await node.spend(machine, "snapshot", copy=copy)
            await _take(node, machine, name, bool(call.get("vmstate")), task)
        except BaseException as error:
            if task.killed:
                raise
            await _untake(node, machine, name)
            machine.config.snapshots.pop(name, None)
            _unlock(node, machine)
            if isinstance(error, DiskError):
                raise TaskError(str(error)) from None
            raise
        machine.config.snapshots[name].pop("snapstate", None)
        machine.config.current["parent"] = name
        _unlock(node, machine)

    return call.task("qmsnapshot", work)


def _prepare(node: Node, machine: Machine, name: str, call: Call, task: Task) -> None:
    """The section stands, marked as not whole, and the machine is locked, before any disk is touched."""
    section = snapshot_of(machine.config.current)
    section |= {"snaptime": str(int(time.time())), "snapstate": "prepare"}
    if call.get("description"):
        section["description"] = call.params["description"]
    if call.get("vmstate") and machine.running():
        section |= hibernate.state_volume(machine, name, task.log)
    machine.config.snapshots[name] = section
    machine.config.current["lock"] = "snapshot"
    node.save(machine)


def _possible(node: Node, section: Section) -> bool:
    return all(node.storages.can(drive.volid, "snapshot") for drive in drives(section) if drive.is_disk)


def _unlock(node: Node, machine: Machine) -> None:
    machine.config.current.pop("lock", None)
    node.save(machine)


async def _take(node: Node, machine: Machine, name: str, ram: bool, task: Task) -> None:
    disks = [drive for drive in drives(machine.config.current) if drive.is_disk]
    guest = node.guest(machine)
    if not machine.running():
        for drive in disks:
            task.log(f"snapshotting 'drive-{drive.key}' ({drive.volid})")
            await node.storages.snapshot_create(drive.volid, name)
        if isinstance(guest, NullGuest):
            await guest.snapshot(name, False)
        return
    if ram:
        storage = machine.config.snapshots[name]["vmstate"].partition(":")[0]
        task.log(f"saving VM state and RAM using storage '{storage}'")
        task.log("completed saving the VM state in 0s, saved 1.50 MiB")
    async with _frozen(machine, node, task, wanted=not ram):
        for drive in disks:
            task.log(f"snapshotting 'drive-{drive.key}' ({drive.volid})")
        await guest.snapshot(name, ram)


async def _untake(node: Node, machine: Machine, name: str) -> None:
    """Of a snapshot that failed, nothing is kept on the disks that already had it."""
    if not machine.running():
        for drive in drives(machine.config.current):
            if drive.is_disk:
                with contextlib.suppress(DiskError):
                    await node.storages.snapshot_delete(drive.volid, name)


@contextlib.asynccontextmanager
async def _frozen(machine: Machine, node: Node, task: Task, wanted: bool) -> object:
    """Freeze the guest's file systems meanwhile; with RAM never, and a dead agent is only a line in the log."""
    guest, frozen = node.guest(machine), False
    if wanted and agent_enabled(machine.config.current):
        try:
            await guest.agent("guest-ping", timeout=3 * node.time_scale)
        except GuestError:
            said = f"VM {machine.vmid} qmp command 'guest-ping' failed - got timeout"
            task.log(f"QEMU Guest Agent is not running - {said}")
        else:
            frozen = await _freeze(guest, task)
    try:
        yield
    finally:
        if frozen:
            try:
                await guest.agent("guest-fsfreeze-thaw", timeout=10)
            except GuestError as error:
                task.log(f"guest-fsfreeze-thaw problems - {error}")


async def _freeze(guest: Guest, task: Task) -> bool:
    try:
        await guest.agent("guest-fsfreeze-freeze", timeout=60)
    except GuestError as error:
        task.log(f"guest-fsfreeze-freeze problems - {error}")
        return False
    return True


def _existing(machine: Machine, name: str) -> Section:
    if name not in machine.config.snapshots:
        raise TaskError(f"snapshot '{name}' does not exist")
    return machine.config.snapshots[name]


@route("DELETE", ONE)
async def delete(call: Call) -> object:
    node, machine, name = call.node, call.machine, call.params["snapname"]

    async def work(task: Task) -> None:
        async with machine.lock.hold(node.lock_timeout, log=task.log):
            node.unlocked(machine.vmid)
            section = _existing(machine, name)
            section["snapstate"] = "delete"
            machine.config.current["lock"] = "snapshot-delete"
            node.save(machine)
        try:
            guest = node.guest(machine)
            await node.spend(machine, "delsnapshot")
            if machine.running() or isinstance(guest, NullGuest):
                await guest.delete_snapshot(name)
            else:
                for drive in drives(section):
                    if drive.is_disk:
                        await node.storages.snapshot_delete(drive.volid, name)
        except (DiskError, GuestError) as error:
            if not call.get("force"):
                _unlock(node, machine)
                raise TaskError(str(error)) from None
        _drop(machine, name)
        _unlock(node, machine)

    return call.task("qmdelsnapshot", work)


def _drop(machine: Machine, name: str) -> None:
    """Its children become its parent's."""
    parent = machine.config.snapshots.pop(name).get("parent")
    for section in machine.config.sections():
        if section.get("parent") == name:
            section.pop("parent")
            if parent:
                section["parent"] = parent


@route("POST", ONE + "/rollback")
async def rollback(call: Call) -> object:
    node, machine, name = call.node, call.machine, call.params["snapname"]

    async def work(task: Task) -> None:
        async with machine.lock.hold(node.lock_timeout, log=task.log):
            node.unlocked(machine.vmid)
            section = _existing(machine, name)
            if "snapstate" in section:
                raise TaskError(f"unable to rollback to incomplete snapshot (snapstate = {section['snapstate']})")
            _check_newest(node, machine, name)
            machine.config.current["lock"] = "rollback"
            node.save(machine)
            await node.spend(machine, "rollback")
            await stop_guest(machine)
            try:
                for drive in drives(section):
                    if drive.is_disk:
                        await node.storages.snapshot_apply(drive.volid, name)
            except DiskError as error:
                raise TaskError(str(error)) from None
            _restore(node, machine, name, section)
            if isinstance(guest := node.guest(machine), NullGuest):
                guest.rollback(name)
            if "vmstate" in section or call.get("start"):
                await start_guest(node, machine, task.log, name if "vmstate" in section else None)

    return call.task("qmrollback", work)


def _check_newest(node: Node, machine: Machine, name: str) -> None:
    """Some storages can only go back to a disk's newest snapshot."""
    times = {other: int(section.get("snaptime", "0")) for other, section in machine.config.snapshots.items()}
    order = list(times)
    for drive in drives(machine.config.snapshots[name]):
        storage = node.storages.config.all.get(drive.volid.partition(":")[0])
        if not drive.is_disk or storage is None or storage.kind.rollback_past:
            continue
        newer = [other for other in order if (times[other], order.index(other)) > (times[name], order.index(name))]
        if any(drive.volid in owned_volumes(machine.config.snapshots[other]) for other in newer):
            raise TaskError(f"can't rollback, '{name}' is not most recent snapshot on '{drive.volid}'")


def _restore(node: Node, machine: Machine, name: str, section: Section) -> None:
    """The options as they were; the description and what is unused stay as they are now."""
    now = machine.config.current
    kept = {key: value for key, value in now.items() if key == "description" or key.startswith("unused")}
    current = {key: value for key, value in section.items() if key not in OF_SNAPSHOT}
    machine.config.current = current | kept | {"parent": name, "vmgenid": str(uuid.uuid4())}
    machine.config.pending = {}
    node.save(machine)


@route("GET", ONE)
async def index(call: Call) -> object:
    assert call.machine
    return [{"cmd": "rollback"}, {"cmd": "config"}]


def _section(call: Call) -> Section:
    name = call.params["snapname"]
    if name not in call.machine.config.snapshots:
        raise ApiError(500, f"snapshot '{name}' does not exist")
    return call.machine.config.snapshots[name]


@route("GET", ONE + "/config")
async def config(call: Call) -> object:
    section = _section(call)
    # So does Proxmox: what the current section hides is shown here.
    return shown(section) | {name: section[name] for name in ("cipassword",) if name in section}


@route("PUT", ONE + "/config")
async def describe(call: Call) -> None:
    async with call.machine.lock.hold(call.node.lock_timeout):
        section = _section(call)
        if "description" in call.params:
            section["description"] = call.params["description"]
        call.node.save(call.machine)
