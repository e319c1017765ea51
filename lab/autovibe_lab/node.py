"""The node: its guests, and what is known of them between calls."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from autovibe_lab.access import Access
from autovibe_lab.cluster import Cluster
from autovibe_lab.config import Config, Section, boot_disk, drives, owned_volumes
from autovibe_lab.errors import TaskError, no_config
from autovibe_lab.firewall.files import Files
from autovibe_lab.guest import Guest, NullGuest
from autovibe_lab.jobs import Jobs
from autovibe_lab.latency import Delays, Latency
from autovibe_lab.locks import ConfigLock, StorageLock
from autovibe_lab.paths import LabPaths, Network
from autovibe_lab.pools import Pools
from autovibe_lab.tasks import Tasks
from autovibe_lab.volumes import Storages, base_of, own_id, storage_config

BRIDGES = ("vmbr0", "vmbr1")


@dataclass
class Machine:
    """One guest of the node."""

    vmid: int
    config: Config
    lock: ConfigLock
    guest: Guest | None = None
    started: float = 0
    paused: bool = False
    storages: Storages | None = None

    @property
    def name(self) -> str:
        return self.config.current.get("name", f"VM {self.vmid}")

    @property
    def is_template(self) -> bool:
        return self.config.current.get("template") == "1"

    @property
    def is_null(self) -> bool:
        """Its boot disk is a placeholder, or it has none: no process stands for it."""
        disk = boot_disk(self.config.current)
        return disk is None or self.storages is None or self.storages.is_null(disk.volid)

    def running(self) -> bool:
        return self.guest is not None and self.guest.running()

    @property
    def qmpstatus(self) -> str:
        """What QEMU says that a running guest does."""
        if self.paused:
            return "prelaunch" if self.config.current.get("lock") == "backup" else "paused"
        return "running"

    def locked(self) -> str | None:
        """Proxmox's message when another operation has locked the configuration, else None."""
        lock = self.config.current.get("lock")
        return f"VM is locked ({lock})" if lock else None


@dataclass
class Node:
    """All state of one node.

    `null_guests`: every guest is a null guest, and placeholders stand for all volumes. `disk_delay`: seconds that
    making a volume takes beside its own, as on a slow storage. `bare_guests`: null guests have no operating system,
    unless they boot from a CD.
    """

    paths: LabPaths
    network: Network
    name: str = "pve1"
    accel: str = "tcg"
    delays: Delays = field(default_factory=Delays)
    null_guests: bool = False
    bare_guests: bool = False
    disk_delay: float = 0
    pve_version: int = 8
    machines: dict[int, Machine] = field(default_factory=dict)
    cluster: Cluster | None = None

    def __post_init__(self) -> None:
        self.paths.make()
        self.started = time.monotonic()
        self.latency = Latency(self.delays)
        self.tasks = Tasks(self.name, self.paths.tasks)
        self._storage_locks: dict[str, StorageLock] = {}
        self._config_locks: dict[int, ConfigLock] = {}
        self.backup_lock = asyncio.Lock()
        if self.cluster is None:
            access = Access(self.paths.state, self.pve_version)
            self.cluster = Cluster(access, storage_config(self.paths), Jobs(self.paths.jobs_cfg))
        self.storages = Storages(self.paths, self.cluster.storages, self.null_guests)
        self.cluster.nodes[self.name] = self
        if self.options_file.exists() and self.cluster.local is self:
            lines = self.options_file.read_text().splitlines()
            self.cluster.options = dict(line.split(": ", 1) for line in lines if ": " in line)
        self.firewall = Files(self.paths.firewall, self.paths.state / "firewall")
        for file in self.paths.confs.glob("[1-9]*.conf"):
            vmid = int(file.stem)
            self.machines[vmid] = self._machine(vmid, Config.parse(file.read_text()))

    def _machine(self, vmid: int, config: Config) -> Machine:
        return Machine(vmid, config, self.config_lock(vmid), storages=self.storages)

    def config_lock(self, vmid: int) -> ConfigLock:
        """The lock of this id: it is there before the guest, and after it."""
        return self._config_locks.setdefault(vmid, ConfigLock(vmid))

    @contextlib.asynccontextmanager
    async def storage_lock(self, storage: str, log: Callable[[str], None] | None = None) -> AsyncIterator[None]:
        """Around the making (which `disk_delay` slows down) or freeing of a volume. Raises LockTimeout."""
        lock = self._storage_locks.setdefault(storage, StorageLock(storage))
        async with lock.hold(self.lock_timeout, log=log):
            yield

    @property
    def access(self) -> Access:
        """Users and what they may do, the same in the whole cluster."""
        return self.cluster.access

    @property
    def pools(self) -> Pools:
        return self.cluster.pools

    @property
    def time_scale(self) -> float:
        """What Proxmox counts in seconds of its own (a shutdown, a disk's copy) takes so many times as long here."""
        return self.delays.time_scale

    @property
    def lock_timeout(self) -> float:
        """Seconds that Proxmox waits for a lock."""
        return self.delays.lock_timeout * self.delays.time_scale

    @property
    def hang_delay(self) -> float:
        """Seconds before a 596."""
        return self.delays.hang_delay * self.delays.time_scale

    async def spend(self, machine: Machine, what: str, *, copy: int = 0) -> None:
        """The time that this work on a null guest, and the copy of so many bytes, would take; none with real guests."""
        if machine.is_null:
            await self.latency.work(what)
            await self.latency.copy(copy)

    @property
    def options_file(self) -> Path:
        """What PUT /cluster/options sets, in Proxmox's form."""
        return self.paths.state / "datacenter.cfg"

    def save_options(self) -> None:
        lines = [f"{name}: {value}\n" for name, value in sorted(self.cluster.options.items())]
        self.options_file.write_text("".join(lines))

    async def adopt(self) -> None:
        """Take over the guests that still run after a crash; null guests have stopped with it."""
        for machine in self.machines.values():
            if not machine.is_null and await self.guest(machine).adopt(machine.config.current):
                machine.started = time.time()

    async def close(self) -> None:
        """End tasks and let go of the guests; they go on running."""
        await self.tasks.close()
        for machine in self.machines.values():
            if machine.guest:
                await machine.guest.close()

    def machine(self, vmid: int) -> Machine:
        """The guest, or the 500 that names its missing configuration file."""
        if vmid not in self.machines:
            raise no_config(self.name, vmid)
        return self.machines[vmid]

    def for_task(self, vmid: int) -> Machine:
        """The guest, or the end of a task."""
        if vmid not in self.machines:
            raise TaskError(str(no_config(self.name, vmid)))
        return self.machines[vmid]

    def unlocked(self, vmid: int) -> Machine:
        """The guest, or the end of a task when it is not there or is locked."""
        machine = self.for_task(vmid)
        if message := machine.locked():
            raise TaskError(message)
        return machine

    def guest(self, machine: Machine) -> Guest:
        if machine.guest is not None and isinstance(machine.guest, NullGuest) != machine.is_null:
            machine.guest = None if not machine.guest.running() else machine.guest
        if machine.guest is None:
            machine.guest = (
                NullGuest(machine.vmid, self.bare_guests) if machine.is_null else self._qemu_guest(machine.vmid)
            )
        return machine.guest

    def _qemu_guest(self, vmid: int) -> Guest:
        from autovibe_lab.qemu import QemuGuest

        return QemuGuest(vmid, self.paths, self.network, self.accel)

    def add(self, vmid: int, current: Section) -> Machine:
        """A new guest; its configuration file stands at once."""
        machine = self._machine(vmid, Config(current))
        self.machines[vmid] = machine
        self.save(machine)
        return machine

    def save(self, machine: Machine) -> None:
        machine.config.write(self.paths.conf(machine.vmid))

    def hand_over(self, machine: Machine, other: Node) -> None:
        """The guest is another node's from now on: its configuration file moves there."""
        self.paths.conf(machine.vmid).replace(other.paths.conf(machine.vmid))
        other.machines[machine.vmid] = self.machines.pop(machine.vmid)

    def forget(self, machine: Machine) -> None:
        """Remove the configuration and the firewall, and the guest from its pool."""
        self.firewall.forget(machine.vmid)
        self.paths.conf(machine.vmid).unlink(missing_ok=True)
        self.machines.pop(machine.vmid, None)
        self.access.forget_guest(machine.vmid)

    def volumes(self) -> list[tuple[str, int]]:
        """Every volume that a configuration names, with its size there."""
        found: dict[str, int] = {}
        for machine in self.machines.values():
            for section in machine.config.sections():
                for drive in drives(section):
                    if drive.has_volume:
                        with contextlib.suppress(ValueError):
                            found[drive.volid] = max(found.get(drive.volid, 0), drive.size)
                for volid in owned_volumes(section):
                    found.setdefault(volid, 0)
        return list(found.items())

    def linked_clones_of(self, volid: str) -> list[str]:
        """The volumes that are linked clones of this one."""
        own = own_id(volid)
        volumes = [volume for node in self.cluster.nodes.values() for volume, _ in node.volumes()]
        return [other for other in volumes if base_of(other) == own]
