"""The lock on a guest's configuration file, as Proxmox's flock: shared or exclusive, given up after ten seconds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class LockTimeout(Exception):
    """The lock was not to be had in time; the message is Proxmox's."""


class ConfigLock:
    """Many readers or one writer."""

    def __init__(self, vmid: int) -> None:
        self.vmid = vmid
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
                message = f"can't lock file '/var/lock/qemu-server/lock-{self.vmid}.conf' - got timeout"
                raise LockTimeout(message) from None
            finally:
                self._waiters.remove(waiter)
