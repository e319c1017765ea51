"""/nodes/N/qemu/ID/config and pending: read and change a machine's options."""

from __future__ import annotations

import re

from autovibe_lab import edit, options
from autovibe_lab.api.guest_permits import check_change
from autovibe_lab.api.lifecycle import given_options
from autovibe_lab.api.routes import Call, route
from autovibe_lab.cloudinit import files
from autovibe_lab.config import NETS, split_properties
from autovibe_lab.disks import DiskError
from autovibe_lab.errors import ApiError, TaskError, invalid
from autovibe_lab.firewall import enforce
from autovibe_lab.formats import split_list
from autovibe_lab.locks import LockTimeout
from autovibe_lab.node import Machine
from autovibe_lab.tasks import Task

CONFIG = "/nodes/{node}/qemu/{vmid}/config"


def _names(call: Call, parameter: str) -> list[str]:
    return split_list(call.get(parameter, ""))


@route("GET", CONFIG)
async def show(call: Call) -> object:
    config = call.machine.config
    if name := call.get("snapshot"):
        if name not in config.snapshots:
            raise ApiError(500, f"snapshot '{name}' does not exist")
        return options.shown(config.snapshots[name]) | {"digest": config.digest()}
    section = dict(config.current)
    if not call.get("current"):
        section |= {name: value for name, value in config.pending.items() if name != "delete"}
        for name in edit.pending_deletes(config.pending):
            section.pop(name, None)
    return options.shown(section) | {"digest": config.digest()}


@route("GET", "/nodes/{node}/qemu/{vmid}/pending")
async def pending(call: Call) -> object:
    config = call.machine.config
    current, waiting = options.shown(config.current), options.shown(config.pending)
    deletes = edit.pending_deletes(config.pending)
    found = []
    for name in [*current, *(name for name in waiting if name not in current and name != "delete")]:
        entry: dict[str, object] = {"key": name}
        if name in current:
            entry["value"] = current[name]
        if name in waiting:
            entry["pending"] = waiting[name]
        if name in deletes:
            entry["delete"] = 1
        found.append(entry)
    return [*found, {"key": "digest", "value": config.digest()}]


def _check(call: Call) -> dict[str, str]:
    """What is to be set; everything that can be refused before anything is changed is refused here."""
    call.root_only("skiplock")
    given = given_options(call)
    machine, config = call.machine, call.machine.config
    deleted = _names(call, "delete")
    if not given and not deleted and not _names(call, "revert"):
        raise ApiError(500, "no options specified")
    for name in deleted:
        if not options.known(name):
            raise invalid(delete=f"unknown option '{name}'")
        if name in given:
            raise invalid(delete=f"cannot use '-{name}' and '-delete {name}' at the same time")
    check_change(call, given, deleted)
    if not call.get("skiplock") and (message := machine.locked()):
        raise ApiError(500, message)
    if call.get("digest", config.digest()) != config.digest():
        raise ApiError(500, "checksum mismatch (file change by other user?)")
    edit.check_storages(call.node, given)
    for name in deleted:
        protected = config.current.get("protection") == "1" and options.is_drive(name)
        if protected and name in config.current:
            raise ApiError(500, f"can't remove drive '{name}' - protection mode enabled")
    return given


async def _change(call: Call, given: dict[str, str], log: edit.Log) -> None:
    machine, node = call.machine, call.node
    running = machine.running()
    try:
        for name in _names(call, "revert"):
            edit.revert(machine, name)
        if not running:
            await edit.apply_pending(node, machine, log)
        for name in _names(call, "delete"):
            if running and not options.is_hot(name) and not _hot_drive(machine, name):
                edit.set_pending_delete(machine, name)
            else:
                edit.delete_option(node, machine, name)
        for name, value in given.items():
            if not running:
                await edit.set_option(node, machine, name, value, log)
            else:
                await _change_running(call, machine, name, value, log)
    except DiskError as error:
        raise TaskError(str(error)) from None
    finally:
        node.save(machine)
        if running:
            enforce.close_or_open(node, machine)


def _hot_drive(machine: Machine, name: str) -> bool:
    """A drive that can be plugged in and pulled out while the guest runs; the lab's QEMU guests know none."""
    booted = split_properties(machine.config.current.get("boot", ""), "order").get("order", "").split(";")
    return machine.is_null and bool(re.fullmatch(r"(scsi|virtio)\d+", name)) and name not in booted


async def _change_running(call: Call, machine: Machine, name: str, value: str, log: edit.Log) -> None:
    if NETS.fullmatch(name) and edit.missing_bridge({name: value}):
        # The refused value stays pending, as with Proxmox.
        edit.set_pending(machine, name, edit.with_mac(value))
        raise invalid(**{name: f"hotplug problem - error on hot-unplugging device '{name}'\n"})
    if options.is_hot(name) or (name not in machine.config.current and _hot_drive(machine, name)):
        edit.revert(machine, name)
        await edit.set_option(call.node, machine, name, value, log)
    elif options.is_drive(name):
        text, _ = await edit.make_drive(call.node, machine.vmid, name, value, log)
        edit.set_pending(machine, name, text)
    else:
        edit.set_pending(machine, name, value)


@route("PUT", CONFIG)
async def change(call: Call) -> None:
    try:
        async with call.machine.lock.hold(call.node.lock_timeout):
            await _change(call, _check(call), lambda line: None)
    except (LockTimeout, TaskError) as error:
        raise ApiError(500, str(error)) from None


@route("POST", CONFIG)
async def change_later(call: Call) -> object:
    given = _check(call)

    async def work(task: Task) -> None:
        text = "".join(f" -{name} {'<hidden>' if name == 'cipassword' else value}" for name, value in given.items())
        text += "".join(f" -delete {name}" for name in _names(call, "delete"))
        task.log(f"update VM {call.params['vmid']}:{text}")
        async with call.machine.lock.hold(call.node.lock_timeout, log=task.log):
            await _change(call, given, task.log)

    return call.task("qmconfig", work)


@route("PUT", "/nodes/{node}/qemu/{vmid}/unlink")
async def unlink(call: Call) -> None:
    async with call.machine.lock.hold(call.node.lock_timeout):
        machine = call.unlocked()
        for name in split_list(call.params["idlist"]):
            volid = machine.config.current.get(name, "").partition(",")[0]
            edit.delete_option(call.node, machine, name)
            unused = [
                key for key, value in machine.config.current.items() if key.startswith("unused") and value == volid
            ]
            if call.get("force") and unused:
                edit.delete_option(call.node, machine, unused[0])
        call.node.save(machine)


CLOUDINIT = re.compile(r"ci(user|password|type|custom|upgrade)|sshkeys|nameserver|searchdomain|ipconfig\d+")


@route("GET", "/nodes/{node}/qemu/{vmid}/cloudinit")
async def cloudinit(call: Call) -> object:
    """What the drive is made of; an address only of a network device that is there."""
    section = options.shown(call.machine.config.current)
    found = []
    for name, value in section.items():
        device = name.replace("ipconfig", "net")
        if CLOUDINIT.fullmatch(name) and (device == name or device in section):
            found.append({"key": name, "value": value})
    return found


@route("PUT", "/nodes/{node}/qemu/{vmid}/cloudinit")
async def regenerate(call: Call) -> None:
    """The drive is written anew at every start."""
    call.unlocked()


@route("GET", "/nodes/{node}/qemu/{vmid}/cloudinit/dump")
async def dump(call: Call) -> object:
    name = {"user": "user-data", "network": "network-config", "meta": "meta-data"}[call.params["type"]]
    return files(call.machine.config.current, call.machine.vmid)[name]
