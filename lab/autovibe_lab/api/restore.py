"""A guest made of a backup: POST /nodes/N/qemu with `archive`."""

from __future__ import annotations

import re
import time
from pathlib import Path

from autovibe_lab import archives, edit, options, wording
from autovibe_lab.api.backup import read_archive
from autovibe_lab.api.routes import Call
from autovibe_lab.config import NETS, Drive, Section, drives, owned_volumes
from autovibe_lab.disks import DiskError
from autovibe_lab.errors import ApiError, TaskError
from autovibe_lab.guest import NullGuest
from autovibe_lab.node import Machine
from autovibe_lab.tasks import Task
from autovibe_lab.volumes import Volume, is_base

#: An archive is read by clusters of so many bytes.
CLUSTER = 65536


def restore(call: Call, given: dict[str, str]) -> object:
    """Check what can be refused at once, then make the guest in a task. `given` goes before what the backup says."""
    node, vmid, volid = call.node, call.params["vmid"], str(call.params["archive"])
    start = f"unable to restore VM {vmid} -"
    holder = node.cluster.holder(vmid)
    if holder and (holder is not node or not call.get("force")):
        raise ApiError(500, f"{start} VM {vmid} already exists on node '{holder.name}'")
    contents = read_archive(call, volid)
    storage = call.get("storage")
    if storage:
        node.storages.check_images(str(storage))
    if holder:
        machine = node.machine(vmid)
        if machine.config.current.get("protection") == "1":
            raise ApiError(500, f"{start} - protection mode enabled")
        if machine.running():
            raise ApiError(500, f"{start} vm is running")
        if machine.is_template:
            raise ApiError(500, f"{start} vm is a template")
    else:
        machine = node.add(vmid, {"lock": "create"})

    async def work(task: Task) -> None:
        async with machine.lock.hold(node.lock_timeout, log=task.log):
            await Restore(call, machine, contents, node.storages.path(volid), task).run(given)
        if call.get("pool") and node.pools.of(vmid) != call.params["pool"]:
            node.pools.add(str(call.params["pool"]), vmid)
        if call.get("start"):
            from autovibe_lab.api.power import start_guest

            await start_guest(node, machine, task.log)

    return call.task("qmrestore", work)


class Restore:
    """One restore. A failed one leaves an empty configuration, as on a node."""

    def __init__(self, call: Call, machine: Machine, contents: archives.Contents, archive: Path, task: Task) -> None:
        self.call, self.node, self.machine = call, call.node, machine
        self.contents, self.archive, self.task = contents, archive, task
        self.made: list[str] = []

    async def run(self, given: dict[str, str]) -> None:
        self._announce()
        old = self.machine.config.current
        self._destroy_disks()
        try:
            current = await self._section()
            current |= {name: edit.with_mac(value) if NETS.fullmatch(name) else value for name, value in given.items()}
        except BaseException as error:
            for volid in self.made:
                self.node.storages.delete(volid)
            self.machine.config.current = {}
            self.node.save(self.machine)
            if isinstance(error, (TaskError, DiskError)):
                raise TaskError(f"unable to restore VM {self.machine.vmid} - {error}") from None
            raise
        self.task.log("rescan volumes...")
        self._keep_unreferenced(old, current)
        self.machine.config.current = current
        self.machine.config.pending, self.machine.config.snapshots = {}, {}
        self.node.save(self.machine)
        if self.contents.firewall:
            self.node.firewall.write(self.machine.vmid, self.contents.firewall)
        self._restore_files()

    def _announce(self) -> None:
        name, log = f"{self.archive.parent.name}/{self.archive.name}", self.task.log
        folder = f"/var/tmp/vzdumptmp{self.task.pid}"
        log(f"restore vma archive: zstd -q -d -c /var/lib/vz/{name} | vma extract -v -r {folder}.fifo - {folder}")
        log(f"CFG: size: {len(self.contents.config)} name: {archives.CONFIG}")
        if self.contents.firewall:
            log(f"CFG: size: {len(self.contents.firewall)} name: {archives.FIREWALL}")
        for number, drive in enumerate(archives.included(self.contents.section), 1):
            log(f"DEV: dev_id={number} size: {drive.size} devname: drive-{drive.key}")
        log(f"CTIME: {time.ctime(self.archive.stat().st_mtime)}")

    def _destroy_disks(self) -> None:
        """What the guest that is overwritten has of the disks that the backup brings."""
        keys = {drive.key for drive in archives.included(self.contents.section)}
        config = self.machine.config
        doomed = {
            drive.volid
            for section in config.sections()
            for drive in drives(section)
            if drive.has_volume and (drive.key in keys or drive.is_cloudinit)
        }
        for volid in doomed & {volid for section in config.sections() for volid in owned_volumes(section)}:
            if is_base(volid) and self.node.linked_clones_of(volid):
                raise TaskError(f"base volume '{volid}' is still in use by linked cloned")
            self.node.storages.delete(volid)

    async def _section(self) -> Section:
        current = {key: value for key, value in self.contents.section.items() if key not in ("lock", "template")}
        for drive in drives(current):
            if drive.is_cloudinit:
                storage = self._storage(drive)
                self.made.append(self.node.storages.create_cloudinit(storage, self.machine.vmid).volid)
                current[drive.key] = Drive(drive.key, drive.properties | {"file": self.made[-1]}).text()
            elif drive.is_disk and drive.properties.get("backup", "1") != "0":
                volume = await self._disk(drive)
                current[drive.key] = Drive(drive.key, drive.properties | {"file": volume.volid}).text()
            elif drive.is_disk:
                del current[drive.key]
        await self.node.spend(self.machine, "restore", copy=sum(drive.size for drive in drives(current)))
        self._identity(current)
        return current

    def _storage(self, drive: Drive) -> str:
        """Where the drive goes: as asked for, where it was, else where the first storage for disks is."""
        found = self.call.get("storage") or self.contents.storages.get(drive.key) or drive.volid.partition(":")[0]
        self.node.storages.check_images(str(found))
        return str(found)

    async def _disk(self, drive: Drive) -> Volume:
        storages, vmid, storage = self.node.storages, self.machine.vmid, self._storage(drive)
        async with self.node.storage_lock(storage, self.task.log):
            if drive.key in self.contents.images:
                volid = storages.volid(storage, vmid, storages.free_name(storage, vmid))
                if storages.is_null(volid):
                    volume = await storages.create(storage, vmid, drive.size)
                else:
                    await archives.image(self.archive, drive.key, storages.path(volid))
                    volume = Volume(volid, drive.size)
            else:
                volume = await storages.create(storage, vmid, drive.size)
        self.made.append(volume.volid)
        self.task.log(wording.formatting(volume.volid, drive.size))
        self.task.log(f"new volume ID is '{volume.volid}'")
        self.task.log(f"map 'drive-{drive.key}' to '{wording.node_path(volume.volid)}' (write zeros = 0)")
        for percent in range(1, 101):
            read = -(-drive.size * percent // 100 // CLUSTER) * CLUSTER
            self.task.log(f"progress {percent}% (read {read} bytes, duration 0 sec)")
        self.task.log(f"total bytes read {drive.size}, sparse bytes {drive.size} (100%)")
        return volume

    def _identity(self, current: Section) -> None:
        """With `unique` nothing of it is the old guest's; the generation is new in any case."""
        smbios = current.get("smbios1")
        edit.new_identity(current)
        if self.call.get("unique"):
            for key in [key for key in current if NETS.fullmatch(key)]:
                net = options.parse_net(current[key]) | {"macaddr": edit.random_mac()}
                current[key] = options.print_net(net)
        elif smbios:
            current["smbios1"] = smbios

    def _keep_unreferenced(self, old: Section, current: Section) -> None:
        for key in sorted(key for key in old if re.fullmatch(r"unused\d+", key)):
            if self.node.storages.exists(old[key]):
                edit.set_unused(current, old[key])
                name = next(name for name, value in current.items() if value == old[key])
                said = f"add unreferenced volume '{old[key]}' as '{name}' to config"
                self.task.log(f"VM {self.machine.vmid} {said}")

    def _restore_files(self) -> None:
        guest = self.node.guest(self.machine)
        if isinstance(guest, NullGuest) and self.contents.files:
            guest.disk, guest.snapshots = archives.load(self.contents.files), {}
