"""Proxmox's locks, which are flocks: on a guest's configuration and on a storage.

Shared or exclusive; who waits gives up after ten seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class LockTimeout(Exception):
    """The lock was not to be had in time; the message is Proxmox's."""


class FileLock:
    """Many readers or one writer. `file` is the one that Proxmox locks."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._readers = 0
        self._writing = False
        self._waiters: list[asyncio.Future] = []

    def _free(self, shared: bool) -> bool:
        return not self._writing and (shared or not self._readers)

    @asynccontextmanager
    async def hold(
        self, timeout: float, *, shared: bool = False, log: Callable[[str], None] | None = None
    ) -> AsyncIterator[None]:
        """Hold the lock; `log` is told when it has to wait, as a task's log is. Raises LockTimeout."""
        if not self._free(shared):
            if log:
                log("trying to acquire lock...")
            await self._wait(timeout, shared)
            if log:
                log(" OK")
        self._readers += shared
        self._writing = not shared
        try:
            yield
        finally:
            self._readers -= shared
            if not shared:
                self._writing = False
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def _wait(self, timeout: float, shared: bool) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        while not self._free(shared):
            waiter = loop.create_future()
            self._waiters.append(waiter)
            try:
                await asyncio.wait_for(waiter, max(end - loop.time(), 0))
            except TimeoutError:
                raise LockTimeout(f"can't lock file '{self.file}' - got timeout") from None
            finally:
                self._waiters.remove(waiter)


class ConfigLock(FileLock):
    """On one guest's configuration."""

    def __init__(self, vmid: int) -> None:
        super().__init__(f"/var/lock/qemu-server/lock-{vmid}.conf")


class StorageLock(FileLock):
    """On one storage, while a volume is made or freed there."""

    def __init__(self, storage: str) -> None:
        super().__init__(f"/var/lock/pve-manager/pve-storage-{storage}")
