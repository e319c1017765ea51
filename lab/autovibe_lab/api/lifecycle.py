"""/nodes/N/qemu: list, create, delete, template, resize."""

from __future__ import annotations

import time

from autovibe_lab import edit, options, wording
from autovibe_lab.api.guest_permits import check_create
from autovibe_lab.api.restore import restore
from autovibe_lab.api.routes import Call, route
from autovibe_lab.api.show import status, summary
from autovibe_lab.config import Drive, drives, format_size, owned_volumes
from autovibe_lab.disks import DiskError
from autovibe_lab.errors import ApiError, TaskError
from autovibe_lab.passwords import sha256_crypt, valid_ssh_keys
from autovibe_lab.tasks import Task
from autovibe_lab.volumes import is_base

PARTS = (
    "config cloudinit pending status unlink vncproxy termproxy migrate resize move rrd rrddata monitor agent snapshot"
    " spiceproxy sendkey firewall mtunnel remote_migrate"
)


def config_text(value: object) -> str:
    """A checked parameter as it stands in a configuration file."""
    return str(int(value)) if isinstance(value, bool) else str(value)


def given_options(call: Call) -> dict[str, str]:
    """The machine's options that a call gives, as they stand in a configuration file: a password is hashed."""
    given = {name: config_text(value) for name, value in call.params.items() if options.known(name)}
    if not valid_ssh_keys(given.get("sshkeys", "")):
        raise ApiError(500, "SSH public key validation error")
    if given.get("cipassword"):
        given["cipassword"] = sha256_crypt(given["cipassword"])
    return given


@route("GET", "/nodes/{node}/qemu")
async def listing(call: Call) -> object:
    found = [machine for _, machine in sorted(call.node.machines.items())]
    if not call.get("full"):
        return [summary(machine) for machine in found]
    only_single = ("ha", "agent", "clipboard")
    return [{key: value for key, value in status(each).items() if key not in only_single} for each in found]


@route("GET", "/nodes/{node}/qemu/{vmid}")
async def index(call: Call) -> object:
    assert call.machine
    return [{"subdir": name} for name in PARTS.split()]


@route("POST", "/nodes/{node}/qemu")
async def create(call: Call) -> object:
    node, vmid = call.node, call.params["vmid"]
    given = given_options(call)
    check_create(call, given)
    if "archive" in call.params:
        return restore(call, given)
    edit.check_storages(node, given)
    if holder := node.cluster.holder(vmid):
        raise ApiError(500, f"unable to create VM {vmid} - VM {vmid} already exists on node '{holder.name}'")
    machine = node.add(vmid, {"lock": "create"})

    async def work(task: Task) -> None:
        made: list[str] = []
        try:
            async with machine.lock.hold(node.lock_timeout, log=task.log):
                current = await _new_config(call, given, task, made)
                await node.spend(machine, "create")
                machine.config.current = current
                node.save(machine)
        except BaseException as error:
            for volid in made:
                node.storages.delete(volid)
            node.forget(machine)
            if isinstance(error, (TaskError, DiskError)):
                raise TaskError(f"unable to create VM {vmid} - {error}") from None
            raise
        if "pool" in call.params:
            node.pools.add(call.params["pool"], vmid)
        if call.get("start"):
            from autovibe_lab.api.power import start_guest

            task.log("Execute autostart")
            await start_guest(node, machine, task.log)

    return call.task("qmcreate", work)


async def _new_config(call: Call, given: dict[str, str], task: Task, made: list[str]) -> dict[str, str]:
    """The configuration of a new machine; every volume made on the way is put into `made`."""
    node, vmid = call.node, call.params["vmid"]
    current = {"meta": f"creation-qemu=7.2.0,ctime={int(time.time())}"}
    for name in sorted(given):
        if options.is_drive(name):
            current[name], new = await edit.make_drive(node, vmid, name, given[name], task.log)
            made += new
        elif name.startswith("net"):
            current[name] = edit.with_mac(given[name])
        elif name == "tags":
            current[name] = options.normalise_tags(given[name])
        elif given[name] != "":
            current[name] = given[name]
    given_smbios, given_genid = current.get("smbios1"), current.get("vmgenid")
    edit.new_identity(current)
    if given_smbios and "uuid=" in given_smbios:
        current["smbios1"] = given_smbios
    if given_genid:
        current["vmgenid"] = given_genid
    current.setdefault("boot", edit.default_boot(current))
    return current


@route("DELETE", "/nodes/{node}/qemu/{vmid}")
async def delete(call: Call) -> object:
    call.root_only("skiplock")
    machine, node = call.machine, call.node
    if machine.config.current.get("protection") == "1":
        raise ApiError(500, f"can't remove VM {machine.vmid} - protection mode enabled")
    if machine.running():
        raise ApiError(500, f"VM {machine.vmid} is running - destroy failed")

    async def work(task: Task) -> None:
        node.for_task(machine.vmid)
        async with machine.lock.hold(node.lock_timeout, log=task.log):
            found = node.for_task(machine.vmid)
            hibernated = found.config.current.get("lock") == "suspended"
            if not (call.get("skiplock") or hibernated) and (message := found.locked()):
                raise TaskError(message)
            if found.running():
                raise TaskError(f"VM {machine.vmid} is running - destroy failed")
            volumes = {volid for section in found.config.sections() for volid in owned_volumes(section)}
            for volid in sorted(volumes):
                if is_base(volid) and node.linked_clones_of(volid):
                    raise TaskError(f"base volume '{volid}' is still in use by linked cloned")
            await node.spend(found, "destroy")
            for volid in sorted(volumes):
                node.storages.delete(volid)
            if call.get("purge"):
                task.log(f"purging VM {machine.vmid} from related configurations..")
                node.cluster.jobs.forget(machine.vmid)
            if call.get("destroy-unreferenced-disks"):
                node.storages.delete_all_of(machine.vmid)
            node.forget(found)

    return call.task("qmdestroy", work)


@route("POST", "/nodes/{node}/qemu/{vmid}/template")
async def template(call: Call) -> object:
    machine, node = call.unlocked(), call.node
    async with machine.lock.hold(node.lock_timeout):
        call.unlocked()
        if machine.config.snapshots:
            raise ApiError(500, "unable to create template, because VM contains snapshots")
        if machine.is_template and "disk" not in call.params:
            raise ApiError(500, "you can't convert a template to a template")
        if machine.running():
            raise ApiError(500, "you can't convert a VM to template if VM is running")
        machine.config.current["template"] = "1"
        node.save(machine)

    async def work(task: Task) -> None:
        async with machine.lock.hold(node.lock_timeout, log=task.log):
            await node.spend(machine, "template")
            for drive in drives(node.for_task(machine.vmid).config.current):
                if drive.is_disk and not is_base(drive.volid):
                    drive.properties["file"] = node.storages.to_base(drive.volid)
                    machine.config.current[drive.key] = drive.text()
            node.save(machine)

    return call.task("qmtemplate", work)


@route("PUT", "/nodes/{node}/qemu/{vmid}/resize")
async def resize(call: Call) -> object:
    call.root_only("skiplock")
    node, vmid, disk = call.node, call.machine.vmid, call.params["disk"]

    async def work(task: Task) -> None:
        machine = node.for_task(vmid)
        async with machine.lock.hold(node.lock_timeout, log=task.log):
            node.unlocked(vmid)
            if disk not in machine.config.current or not options.is_drive(disk):
                raise TaskError(f"disk '{disk}' does not exist")
            await node.spend(machine, "resize")
            drive = Drive.parse(disk, machine.config.current[disk])
            size = edit.new_size(drive.size, call.params["size"])
            if machine.is_template:
                path = wording.node_path(drive.volid)
                task.log(f"qemu-img: Could not open '{path}': Could not open '{path}': Operation not permitted")
                command = f"/usr/bin/qemu-img resize -f {wording.kind(drive.volid)} {path} {size}"
                raise TaskError(f"command '{command}' failed: exit code 1")
            try:
                if machine.running() and not machine.is_null:
                    await node.guest(machine).resize(disk, size)
                else:
                    await node.storages.resize(drive.volid, size)
            except DiskError as error:
                raise TaskError(str(error)) from None
            drive.properties["size"] = format_size(size)
            machine.config.current[disk] = drive.text()
            node.save(machine)
            if not machine.running():
                task.log("Image resized.")

    return call.task("resize", work)


@route("GET", "/nodes/{node}/qemu/{vmid}/feature")
async def feature(call: Call) -> object:
    config, snapshot, wanted = call.machine.config, call.get("snapname"), str(call.params["feature"])
    if snapshot is not None and snapshot not in config.snapshots:
        raise ApiError(500, f"snapshot '{snapshot}' does not exist")
    section = config.current if snapshot is None else config.snapshots[snapshot]
    disks = [drive.volid for drive in drives(section) if drive.is_disk]
    possible = all(call.node.storages.can(volid, wanted, snapshot) for volid in disks)
    return {"hasFeature": int(possible), "nodes": [call.node.name]}
