"""How long a small real server takes: its cores, its disk, pvedaemon's workers, and what work asks of them.

Off by default: null guests then do everything at once. `pve84` is a Proxmox VE 8.4 on two cores, as measured: a linked
clone takes 0.3 s alone and eight of them 1.2 s, a start 0.9 s; a call through pvedaemon keeps one of its three workers
busy, and about fifty of them are answered in a second; one that pveproxy answers itself takes 12 ms.

Three of pvedaemon's workers there always are: a call that gets none in time ends as Proxmox's do, 596, not executed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from autovibe_lab.errors import ApiError

#: Who shares a core or a disk takes turns of this many seconds.
TURN = 0.02
WORKERS = 3
#: Reads that pveproxy answers itself: all others, and every write, go through pvedaemon.
DIRECT = re.compile(
    r"/|/version|/access/.+|/storage(/[^/]+)?|/pools(/.+)?"
    r"|/cluster/(backup(/[^/]+)?|config(/.*)?|log|nextid|options|resources|tasks)"
    r"|/nodes(/[^/]+)?|/nodes/[^/]+/(config|dns|netstat|network(/[^/]+)?|status|subscription|tasks(/[^/]+)?|time|version)"
    r"|/nodes/[^/]+/qemu/\d+(/(agent|cloudinit(/dump)?|config|pending|status|snapshot/[^/]+(/config)?))?"
    r"|/nodes/[^/]+/storage/[^/]+"
)


@dataclass(frozen=True)
class Work:
    """Seconds of a core, and seconds in which nothing is used (QEMU comes up, a guest goes down)."""

    cpu: float = 0
    wait: float = 0


@dataclass(frozen=True)
class Profile:
    """One server. Work that is not named takes no time; copies go at `copy_rate` bytes a second."""

    cores: int = 2
    direct_call: float = 0
    daemon_call: float = 0
    copy_rate: float = 0
    work: dict[str, Work] = field(default_factory=dict)


PROFILES = {
    "off": Profile(),
    "pve84": Profile(
        direct_call=0.012,
        daemon_call=0.04,
        copy_rate=100 << 20,  # 700 MiB in 7 s
        work={
            "create": Work(0.25),
            "clone": Work(0.1),  # per linked disk, until the name appears
            "clone-end": Work(0.2),
            "start": Work(0.3, 0.6),
            "stop": Work(0.2, 0.2),
            "shutdown": Work(0.2, 1.8),
            "suspend": Work(0.15),
            "resume": Work(0.15),
            "reset": Work(0.15),
            "snapshot": Work(0.25),
            "delsnapshot": Work(0.2),
            "rollback": Work(0.35),
            "template": Work(0.16),
            "destroy": Work(0.3),
            "resize": Work(0.15),
            "backup": Work(0.3, 0.7),
            "restore": Work(0.4),
        },
    ),
}


@dataclass
class Delays:
    """Every delay of the lab, in seconds, and the profile of its work. `time_scale` multiplies all of them."""

    profile: str = "off"
    time_scale: float = 1
    #: Proxmox's wait for a lock.
    lock_timeout: float = 10
    #: Before a 401.
    login_delay: float = 3
    #: Before a 596.
    hang_delay: float = 5

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ValueError(f"there is no profile '{self.profile}': {', '.join(PROFILES)}")
        if min(self.time_scale, self.lock_timeout, self.login_delay, self.hang_delay) < 0:
            raise ValueError("a delay is at least 0")

    def change(self, given: dict[str, object]) -> None:
        """Set some of them, or none: ValueError when one is not known or makes no sense."""
        for name in given:
            if name not in self.__dataclass_fields__:
                raise ValueError(f"there is no delay '{name}': {', '.join(self.__dataclass_fields__)}")
        typed = {name: value if name == "profile" else float(value) for name, value in given.items()}
        self.__dict__.update(replace(self, **typed).__dict__)


class Shared:
    """There are `count` of something, and users take turns: with twice as many of them each is half as fast."""

    def __init__(self, count: int) -> None:
        self._free = asyncio.Semaphore(count)

    async def use(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        while seconds > 1e-6:  # less than a timer can tell apart
            async with self._free:
                begun = loop.time()
                await asyncio.sleep(min(seconds, TURN))
                seconds -= loop.time() - begun


class Latency:
    """One node's cores, disk and workers. With the profile `off` only the workers count."""

    def __init__(self, delays: Delays) -> None:
        self.delays = delays
        self._workers = asyncio.Semaphore(WORKERS)
        self._cores = Shared(PROFILES["pve84"].cores)
        self._disk = Shared(1)

    @property
    def profile(self) -> Profile:
        return PROFILES[self.delays.profile]

    @asynccontextmanager
    async def call(self, method: str, path: str) -> AsyncIterator[None]:
        """Around the execution of a call. Raises the 596 of a call that no worker takes."""
        scale = self.delays.time_scale
        if method == "GET" and DIRECT.fullmatch(path):
            await self._cores.use(self.profile.direct_call * scale)
            yield
            return
        try:
            async with asyncio.timeout(max(self.delays.hang_delay * scale, 0.05)):
                await self._workers.acquire()
        except TimeoutError:
            raise ApiError(596, "Broken pipe", body=False) from None
        try:
            await self._cores.use(self.profile.daemon_call * scale)
            yield
        finally:
            self._workers.release()

    async def work(self, what: str) -> None:
        """What a task does, such as `clone` or `start`."""
        work, scale = self.profile.work.get(what, Work()), self.delays.time_scale
        await self._cores.use(work.cpu * scale)
        if work.wait:
            await asyncio.sleep(work.wait * scale)

    async def copy(self, size: int) -> None:
        """`size` bytes from disk to disk."""
        if self.profile.copy_rate:
            await self._disk.use(size / self.profile.copy_rate * self.delays.time_scale)
