"""Tasks: what a call starts and does not wait for. Each has a UPID, a log and, at its end, an exit status.

Kept as files in Proxmox's form: `tasks/<last digit of the start time>/<UPID>`
and, a line an ended task, `tasks/index`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path

from autovibe_lab.errors import ApiError, TaskError
from autovibe_lab.guest import GuestError
from autovibe_lab.locks import LockTimeout

UPID = re.compile(
    r"UPID:(?P<node>[A-Za-z0-9-]+):(?P<pid>[0-9A-F]{8}):(?P<pstart>[0-9A-F]{8,9}):(?P<starttime>[0-9A-F]{8})"
    r":(?P<type>[^:\s]+):(?P<id>[^:\s]*):(?P<user>[^:\s]+):"
)

#: The end of a task whose worker was killed, and of one that was told to stop.
KILLED = "unexpected status"
INTERRUPTED = "received interrupt"

logger = logging.getLogger(__name__)


@dataclass
class Task:
    """One task. `status` is None while it runs."""

    upid: str
    node: str
    pid: int
    pstart: int
    starttime: int
    type: str
    id: str
    user: str
    file: Path
    endtime: int | None = None
    status: str | None = None
    lines: list[str] | None = field(default_factory=list)
    worker: asyncio.Task | None = None
    #: Its process is killed, not asked: it cleans nothing up and says nothing more.
    killed: bool = False
    #: How many tasks had ended when it did.
    rank: int = 0

    @classmethod
    def from_upid(cls, upid: str, folder: Path) -> Task:
        match = UPID.fullmatch(upid)
        if not match:
            raise ValueError("unable to parse worker upid")
        numbers = {key: int(match[key], 16) for key in ("pid", "pstart", "starttime")}
        file = folder / match["starttime"][-1] / upid
        return cls(upid, match["node"], type=match["type"], id=match["id"], user=match["user"], file=file, **numbers)

    def log(self, line: str) -> None:
        if self.lines is not None:
            self.lines.append(line)
        with self.file.open("a") as file:
            file.write(line + "\n")

    def kill(self) -> bool:
        """Kill its worker, if it still runs."""
        if self.worker is None:
            return False
        self.killed = True
        return self.worker.cancel()

    def read_log(self) -> list[str]:
        if self.lines is not None:
            return self.lines
        return self.file.read_text().splitlines() if self.file.exists() else []

    def _identity(self) -> dict:
        user, _, token = self.user.partition("!")
        names = ("upid", "node", "pid", "pstart", "starttime", "type", "id")
        entry = {name: getattr(self, name) for name in names} | {"user": user}
        return entry | ({"tokenid": token} if token else {})

    def status_entry(self) -> dict:
        """The answer of …/tasks/UPID/status."""
        if self.status is None:
            return self._identity() | {"status": "running"}
        return self._identity() | {"status": "stopped", "exitstatus": self.status}

    def list_entry(self) -> dict:
        """A line of …/tasks."""
        if self.status is None:
            return self._identity() | {"status": "RUNNING", "saved": "0"}
        return self._identity() | {"endtime": self.endtime, "status": self.status}


@dataclass
class Death:
    """The next `count` tasks of this type and guest have their worker killed in the middle of their work."""

    type: str
    id: str = ""
    count: int = 1

    def takes(self, task: Task) -> bool:
        if self.count <= 0 or task.type != self.type or self.id not in ("", task.id):
            return False
        self.count -= 1
        return True


class Tasks:
    """All tasks of the node, newest last."""

    def __init__(self, node: str, folder: Path) -> None:
        self.node = node
        self.folder = folder
        self.all: dict[str, Task] = {}
        self._pids = itertools.count(max(int(time.time()) & 0xFFFF, 1000))
        self._ranks = itertools.count(1)
        self._beside: set[asyncio.Task] = set()
        self.deaths: list[Death] = []
        #: While it is closed no worker makes its first step: what was called meanwhile begins at one moment.
        self.gate = asyncio.Event()
        self.gate.set()
        self._load()

    def _load(self) -> None:
        """Read what an earlier process left; a task without an end ended with it."""
        index = self.folder / "index"
        ended = {}
        for line in index.read_text().splitlines() if index.exists() else ():
            upid, endtime, status = line.split(" ", 2)
            ended[upid] = (int(endtime, 16), status, next(self._ranks))
        for file in self.folder.glob("?/UPID:*"):
            task = Task.from_upid(file.name, self.folder)
            task.lines = None
            if file.name in ended:
                task.endtime, task.status, task.rank = ended[file.name]
            else:
                self._end(task, KILLED)
            self.all[task.upid] = task
        self.all = dict(sorted(self.all.items(), key=lambda item: (item[1].starttime, item[1].pid)))
        if self.all:
            self._pids = itertools.count(max(task.pid for task in self.all.values()) + 1)

    def start(self, type: str, id: str, user: str, work: Callable[[Task], Awaitable[None]]) -> str:
        """Start `work` as a task of its own; returns the UPID."""
        pstart = int(time.monotonic() * 100) & 0xFFFFFFFF
        upid = f"UPID:{self.node}:{next(self._pids):08X}:{pstart:08X}:{int(time.time()):08X}:{type}:{id}:{user}:"
        task = Task.from_upid(upid, self.folder)
        task.file.parent.mkdir(parents=True, exist_ok=True)
        task.file.touch()
        self.all[upid] = task
        task.worker = asyncio.get_running_loop().create_task(self._run(task, work), name=upid)
        return upid

    async def _run(self, task: Task, work: Callable[[Task], Awaitable[None]]) -> None:
        try:
            await self.gate.wait()
            await work(task)
            status = "OK"
            task.log("TASK OK")
        except asyncio.CancelledError:
            status = KILLED if task.killed else INTERRUPTED
            if not task.killed:
                task.log(f"TASK ERROR: {status}")
        except (TaskError, ApiError, GuestError, LockTimeout) as error:
            status = str(error).replace("\n", " ")
            task.log(f"TASK ERROR: {status}")
        except Exception as error:
            logger.exception("%s", task.upid)
            status = f"{type(error).__name__}: {error}".replace("\n", " ")
            task.log(f"TASK ERROR: {status}")
        self._end(task, status)

    def _end(self, task: Task, status: str) -> None:
        task.status, task.endtime = status, int(time.time())
        task.worker = None
        task.lines = None
        task.rank = next(self._ranks)
        with (self.folder / "index").open("a") as index:
            index.write(f"{task.upid} {task.endtime:08X} {status}\n")

    def get(self, upid: str) -> Task:
        """The task, or the 400 that Proxmox gives."""
        if not UPID.fullmatch(upid):
            raise ApiError(400, "Parameter verification failed.", {"upid": "unable to parse worker upid"})
        if upid not in self.all:
            raise ApiError(400, "Parameter verification failed.", {"upid": "no such task"})
        return self.all[upid]

    def running(self, type: str, id: str) -> list[Task]:
        return [task for task in self.all.values() if task.worker and task.type == type and task.id == id]

    def newest_first(self) -> list[Task]:
        """What runs, then what has ended, the last end first."""
        running = [task for task in reversed(self.all.values()) if task.status is None]
        ended = [task for task in self.all.values() if task.status is not None]
        return running + sorted(ended, key=lambda task: -task.rank)

    def die_if_told(self, task: Task) -> None:
        """Called by a task in the middle of its work: a test may want its worker killed there (`deaths`)."""
        for death in self.deaths:
            if death.takes(task):
                task.killed = True
                raise asyncio.CancelledError

    def beside(self, work: Coroutine) -> None:
        """Do this without a task that a client could see."""
        hidden = asyncio.get_running_loop().create_task(work)
        self._beside.add(hidden)
        hidden.add_done_callback(self._beside.discard)

    async def abort(self, task: Task) -> None:
        """Interrupt it; it may answer by cleaning up."""
        if task.worker:
            task.worker.cancel()
            await asyncio.wait([task.worker])
        if task.status is None:  # aborted before it began
            self._end(task, KILLED)

    async def close(self) -> None:
        """Abort what runs."""
        for hidden in list(self._beside):
            hidden.cancel()
        for task in list(self.all.values()):
            await self.abort(task)
