"""Changes to a guest's configuration: new values become what Proxmox would write, volumes are made and unmade."""

from __future__ import annotations

import asyncio
import re
import secrets
import uuid
from collections.abc import Callable

from autovibe_lab import options, wording
from autovibe_lab.config import NETS, Drive, Section, drives, format_size, parse_size
from autovibe_lab.disks import DiskError
from autovibe_lab.errors import TaskError, invalid
from autovibe_lab.locks import LockTimeout
from autovibe_lab.node import BRIDGES, Machine, Node
from autovibe_lab.volumes import Volume

Log = Callable[[str], None]

NEW_DISK = re.compile(r"(?P<storage>[A-Za-z][\w.-]*):(?P<size>\d+(\.\d+)?)")


def random_mac() -> str:
    """A MAC address with the prefix that Proxmox owns."""
    return "BC:24:11:" + ":".join(f"{secrets.randbelow(256):02X}" for _ in range(3))


def with_mac(value: str) -> str:
    """The network device with a MAC address of its own, if it has none yet."""
    net = options.parse_net(value)
    net.setdefault("macaddr", random_mac())
    return options.print_net(net | {"macaddr": net["macaddr"].upper()})


def check_storages(node: Node, given: dict[str, str]) -> None:
    """A storage that is not there, or takes no new disks, is an immediate error."""
    for key, value in given.items():
        file = Drive.parse(key, value).volid if options.is_drive(key) else ""
        storage, colon, what = file.partition(":")
        if colon:
            node.storages.check(storage)
        makes = NEW_DISK.fullmatch(file) or what == "cloudinit"
        if makes and "images" not in node.storages.check(storage).content:
            # Of a configuration it is the parameter that is wrong.
            raise invalid(storage=f"storage '{storage}' does not support vm images")


async def make_drive(node: Node, vmid: int, key: str, value: str, log: Log) -> tuple[str, list[str]]:
    """The drive as it stands in the configuration, and the volumes that were made for it.

    `storage:4` is a new disk of 4 GiB, `storage:0,import-from=…` one with an image's content, `storage:cloudinit` the
    cloud-init drive; anything else names a volume that must be there.
    """
    drive = Drive.parse(key, value)
    properties = {name: text for name, text in drive.properties.items() if name not in ("import-from", "format")}
    storage, _, what = drive.volid.partition(":")
    if drive.volid == "none":
        return Drive(key, properties | {"media": "cdrom"}).text(), []
    if what != "cloudinit" and not NEW_DISK.fullmatch(drive.volid):
        return _existing(node, drive, properties), []
    try:
        volume = await _make_volume(node, vmid, drive, log)
    except (DiskError, LockTimeout) as error:
        raise TaskError(str(error)) from None
    properties["file"] = volume.volid
    properties |= {"media": "cdrom"} if what == "cloudinit" else {"size": format_size(volume.size)}
    text = Drive(key, properties).text()
    log(f"{key}: successfully created disk '{text}'")
    return text, [volume.volid]


def _fixed_size(drive: Drive) -> int | None:
    """Firmware variables and a TPM's state are as large as they are, whatever is asked for."""
    if drive.key == "tpmstate0":
        return 4 << 20
    if drive.key == "efidisk0":
        return 528 << 10 if drive.properties.get("efitype") == "4m" else 128 << 10
    return None


def _drive_of(node: Node, volid: str) -> str:
    """The key under which a guest has this volume as its drive, for a log; what no guest uses has none."""
    found = [drive for machine in node.machines.values() for drive in drives(machine.config.current)]
    return next((f"{drive.key} " for drive in found if drive.volid == volid), "")


async def _make_volume(node: Node, vmid: int, drive: Drive, log: Log) -> Volume:
    """While it is made its storage is locked, which takes long on a slow one."""
    storage, _, what = drive.volid.partition(":")
    source, form = drive.properties.get("import-from"), drive.properties.get("format", "qcow2")
    if source:
        node.storages.import_source(source)
        if not source.startswith("/"):
            log(f"create full clone of drive {_drive_of(node, source)}({source})")
    async with node.storage_lock(storage, log):
        await asyncio.sleep(node.disk_delay)
        if what == "cloudinit":
            volume = node.storages.create_cloudinit(storage, vmid, form)
        elif source:
            volume = await node.storages.import_image(storage, vmid, source, form)
        else:
            size = _fixed_size(drive) or int(float(what) * (1 << 30))
            volume = await node.storages.create(storage, vmid, size, form)
        log(wording.formatting(volume.volid, volume.size))
    if source:
        log(wording.transferred(0, volume.size))
        log(wording.transferred(volume.size, volume.size))
    return volume


def _existing(node: Node, drive: Drive, properties: dict[str, str]) -> str:
    if not node.storages.exists(drive.volid):
        raise TaskError(f"volume '{drive.volid}' does not exist")
    if "size" not in properties and not drive.is_cdrom:
        size = node.storages.size(drive.volid)
        properties |= {"size": format_size(size)} if size else {}
    return Drive(drive.key, properties).text()


def set_unused(current: Section, volid: str) -> None:
    """Keep a detached volume under the first free `unusedN`."""
    if volid in (value for key, value in current.items() if key.startswith("unused")):
        return
    number = next(number for number in range(256) if f"unused{number}" not in current)
    current[f"unused{number}"] = volid


def delete_option(node: Node, machine: Machine, name: str) -> None:
    """Take an option away: a disk is kept as unused, an unused one is destroyed."""
    current = machine.config.current
    if name not in current:
        return
    value = current[name]
    if name.startswith("unused"):
        if node.linked_clones_of(value):
            raise TaskError(f"base volume '{value}' is still in use by linked cloned")
        node.storages.delete(value)
    elif options.is_drive(name):
        drive = Drive.parse(name, value)
        if drive.is_cloudinit and drive.has_volume:
            node.storages.delete(drive.volid)
        elif drive.is_disk:
            set_unused(current, drive.volid)
        _forget_boot(current, name)
    del current[name]


def _forget_boot(current: Section, name: str) -> None:
    """What is gone is not booted from."""
    order = current.get("boot", "")
    if order.startswith("order=") and name in (rest := order.removeprefix("order=").split(";")):
        left = ";".join(key for key in rest if key != name)
        current["boot"] = f"order={left}" if left else " "


async def set_option(node: Node, machine: Machine, name: str, value: str, log: Log) -> None:
    """Give the current section a new value."""
    current = machine.config.current
    if options.is_drive(name):
        old = Drive.parse(name, current[name]) if name in current else None
        text, _ = await make_drive(node, machine.vmid, name, value, log)
        if old and old.is_disk and old.volid != Drive.parse(name, text).volid:
            set_unused(current, old.volid)
        current[name] = text
        attached = Drive.parse(name, text).volid
        for key in [key for key in current if key.startswith("unused") and current[key] == attached]:
            del current[key]
    elif NETS.fullmatch(name):
        current[name] = with_mac(value)
    elif name == "tags":
        current[name] = options.normalise_tags(value)
    elif value == "":
        current.pop(name, None)
    else:
        current[name] = value


async def apply_pending(node: Node, machine: Machine, log: Log) -> None:
    """What waited for the guest to stop becomes its configuration."""
    pending, machine.config.pending = machine.config.pending, {}
    for name in [name for name in pending.pop("delete", "").split(",") if name]:
        delete_option(node, machine, name)
    for name, value in sorted(pending.items()):
        await set_option(node, machine, name, value, log)


def set_pending(machine: Machine, name: str, value: str) -> None:
    pending = machine.config.pending
    if machine.config.current.get(name) == value:
        pending.pop(name, None)
    else:
        pending[name] = value
    _set_pending_deletes(pending, set(pending_deletes(pending)) - {name})


def pending_deletes(pending: Section) -> list[str]:
    return [name for name in pending.get("delete", "").split(",") if name]


def set_pending_delete(machine: Machine, name: str) -> None:
    pending = machine.config.pending
    pending.pop(name, None)
    if name in machine.config.current:
        _set_pending_deletes(pending, {*pending_deletes(pending), name})


def revert(machine: Machine, name: str) -> None:
    pending = machine.config.pending
    pending.pop(name, None)
    _set_pending_deletes(pending, set(pending_deletes(pending)) - {name})


def _set_pending_deletes(pending: Section, names: set[str]) -> None:
    if names:
        pending["delete"] = ",".join(sorted(names))
    else:
        pending.pop("delete", None)


def missing_bridge(section: Section) -> tuple[str, str] | None:
    """The first network device, and its bridge, that the node doesn't have."""
    for key in sorted(section):
        bridge = options.parse_net(section[key]).get("bridge") if NETS.fullmatch(key) else None
        if bridge and bridge not in BRIDGES:
            return key, bridge
    return None


def new_identity(current: Section) -> None:
    """A new uuid in the SMBIOS, a new generation id."""
    rest = [part for part in current.get("smbios1", "").split(",") if part and not part.startswith("uuid=")]
    current["smbios1"] = ",".join([f"uuid={uuid.uuid4()}", *rest])
    current["vmgenid"] = str(uuid.uuid4())


def default_boot(current: Section) -> str:
    """The first disk, then the first network device."""
    order = [drive.key for drive in drives(current) if drive.is_disk][:1]
    order += ["net0"] if "net0" in current else []
    return f"order={';'.join(order)}" if order else " "


def new_size(old: int, text: str) -> int:
    """The size in bytes that `+1G` or `2G` asks for; less than there is cannot be."""
    size = old + parse_size(text[1:]) if text.startswith("+") else parse_size(text)
    if size < old:
        raise TaskError("shrinking disks is not supported")
    return size
