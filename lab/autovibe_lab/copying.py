"""Volumes that are made from others: a clone's, a moved disk's. With the lines that a task's log has of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from autovibe_lab import wording
from autovibe_lab.config import Drive
from autovibe_lab.errors import TaskError
from autovibe_lab.locks import LockTimeout
from autovibe_lab.node import Machine, Node
from autovibe_lab.tasks import Task
from autovibe_lab.volumes import CLOUDINIT_SIZE

#: What is reported of a mirror at a time.
MIRROR_STEP = 16 << 20


@dataclass
class Copier:
    """Copies volumes of `source` for the guest `vmid`. `made` are the new ones, for who has to undo it.

    `storage`, `form` None: where, and in which format, the copied one is. `bwlimit` in KiB/s. `snapshot`: the source's
    state that is copied.
    """

    node: Node
    source: Machine
    vmid: int
    task: Task
    made: list[str]
    storage: str | None = None
    bwlimit: int | None = None
    snapshot: str | None = None
    form: str | None = None

    async def drive(self, drive: Drive, *, linked: bool = False) -> str:
        """The id of the new volume for this drive."""
        kind = "linked" if linked and not drive.is_cloudinit else "full"
        self.task.log(f"create {kind} clone of drive {drive.key} ({drive.volid})")
        if drive.is_cloudinit:
            return await self._cloudinit(drive)
        return await (self._linked(drive) if linked else self._full(drive))

    @asynccontextmanager
    async def _making(self, storage: str) -> AsyncIterator[None]:
        """While a volume is made, its storage is locked; on a slow one that takes long."""
        async with self.node.storage_lock(storage, self.task.log):
            await asyncio.sleep(self.node.disk_delay)
            yield

    def _target(self, drive: Drive) -> str:
        return self.storage or drive.volid.partition(":")[0]

    def _form(self, drive: Drive) -> str:
        """Who copies from a storage of blocks to one of files gets the files' own format."""
        block = self.node.storages.check(drive.volid.partition(":")[0]).kind.block
        return self.form or ("qcow2" if block else wording.kind(drive.volid))

    async def _cloudinit(self, drive: Drive) -> str:
        async with self._making(self._target(drive)):
            volume = self.node.storages.create_cloudinit(self._target(drive), self.vmid, self._form(drive))
            self._made(volume.volid)
            self.task.log(wording.formatting(volume.volid, CLOUDINIT_SIZE))
        return volume.volid

    async def _linked(self, drive: Drive) -> str:
        async with self._making(drive.volid.partition(":")[0]):
            volid = await self.node.storages.linked_clone(drive.volid, self.vmid)
            self._made(volid)
            self.task.log(wording.linking(drive.volid, volid))
            self.task.log(wording.formatting(volid, drive.size, drive.volid))
        await self.node.spend(self.source, "clone")
        return volid

    async def _full(self, drive: Drive) -> str:
        storage = self._target(drive)
        async with self.node.storage_lock(storage, self.task.log):
            await asyncio.sleep(self.node.disk_delay)
        volid = await self.node.storages.full_copy(drive.volid, storage, self.vmid, self.snapshot, self._form(drive))
        self._made(volid)
        self.task.log(wording.formatting(volid, drive.size))
        await self.node.spend(self.source, "clone")
        mirror = self.source.running() and self.snapshot is None
        try:
            await (self._mirror(drive) if mirror else self._convert(drive))
        except asyncio.CancelledError:
            if self.task.killed:
                raise
            how = f"copy failed: command '{wording.convert(drive.volid, volid, self.bwlimit)}' failed"
            raise TaskError(f"{'mirroring error' if mirror else how}: interrupted by signal") from None
        return volid

    def _made(self, volid: str) -> None:
        self.made.append(volid)
        self.node.tasks.die_if_told(self.task)

    async def _convert(self, drive: Drive) -> None:
        if not self.bwlimit:
            self.task.log(wording.transferred(0, drive.size))
            await self.node.spend(self.source, "", copy=drive.size)
            self.task.log(wording.transferred(drive.size, drive.size))
            return
        last = 0
        for done in wording.copied(drive.size):
            await self._limited(done - last)
            self.task.log(wording.transferred(done, drive.size))
            last = done

    async def _limited(self, size: int) -> None:
        """The time that so many bytes take under the limit; a real disk was copied already."""
        if self.source.is_null:
            await asyncio.sleep(size / (self.bwlimit << 10) * self.node.time_scale)

    async def _mirror(self, drive: Drive) -> None:
        limit = f" with bandwidth limit: {self.bwlimit} KB/s" if self.bwlimit else ""
        self.task.log(f"drive mirror is starting for drive-{drive.key}{limit}")
        if self.bwlimit:
            for done in range(MIRROR_STEP, drive.size, MIRROR_STEP):
                seconds = done // (self.bwlimit << 10)
                self.task.log(f"drive-{drive.key}: {wording.transferred(done, drive.size)} in {seconds}s")
                await self._limited(MIRROR_STEP)
        else:
            await self.node.spend(self.source, "", copy=drive.size)
        self.task.log(f"drive-{drive.key}: {wording.transferred(drive.size, drive.size)} in 1s, ready")
        self.task.log("all 'mirror' jobs are ready")


async def undo(node: Node, made: Iterable[str], task: Task) -> None:
    """Free volumes again; one whose storage stays locked is left behind."""
    for volid in made:
        try:
            async with node.storage_lock(volid.partition(":")[0], task.log):
                node.storages.delete(volid)
        except LockTimeout as error:
            task.log(str(error))
