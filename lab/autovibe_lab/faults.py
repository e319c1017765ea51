"""Answers held back, and calls that fail on demand: what a test may ask of the lab and no Proxmox does."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

from autovibe_lab.errors import ApiError

#: What a fault does with its call.
ACTIONS = ("status", "drop_before", "drop_after", "delay", "lock")
MATCH = {"method", "path", "count", "skip"}
FAULT = MATCH | {"action", "status", "reason", "seconds", "execute"}


@dataclass
class Match:
    """The calls that a hold or a fault is for: method and the whole path after /api2/json.

    The first `skip` of them are let through, then it takes `count`.
    """

    method: str
    path: re.Pattern
    count: int
    skip: int = 0
    matched: int = 0

    @classmethod
    def of(cls, body: dict) -> Match:
        """Raises KeyError, ValueError, TypeError or re.error when it makes no sense."""
        method, count, skip = body.get("method", "*").upper(), int(body.get("count", 1)), int(body.get("skip", 0))
        return cls(method, re.compile(body["path"]), count, skip)

    def takes(self, method: str, path: str) -> bool:
        if self.count <= 0 or self.method not in (method, "*") or not self.path.fullmatch(path):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.count -= 1
        self.matched += 1
        return True

    def shown(self) -> dict:
        return {"method": self.method, "path": self.path.pattern, "skip": self.skip} | {"left": self.count}


@dataclass
class Hold:
    """Executed calls whose answers wait for `released`."""

    match: Match
    waiting: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def state(self) -> str:
        if self.released.is_set():
            return "released"
        return "holding" if self.waiting else "armed"

    def shown(self) -> dict:
        return self.match.shown() | {"state": self.state, "matched": self.match.matched}

    def release(self) -> None:
        self.released.set()
        self.match.count = 0

    async def wait(self, request: web.Request) -> None:
        """As long as the test wants it; not longer than the client does."""
        self.waiting += 1
        try:
            while not self.released.is_set() and request.transport and not request.transport.is_closing():
                try:
                    await asyncio.wait_for(self.released.wait(), 0.05)
                except TimeoutError:
                    continue
        finally:
            self.waiting -= 1


@dataclass
class Fault:
    """What happens to a call instead of its execution, or after it; always after `seconds`."""

    match: Match
    action: str = "status"
    status: int = 500
    reason: str = "fault"
    seconds: float = 0
    execute: bool = False

    @classmethod
    def of(cls, body: dict) -> Fault:
        """Raises KeyError, ValueError, TypeError or re.error when it makes no sense."""
        if unknown := sorted(set(body) - FAULT):
            raise ValueError(f"unknown: {', '.join(unknown)}; a fault has {', '.join(sorted(FAULT))}")
        action = body.get("action", "status")
        if action not in ACTIONS:
            raise ValueError(f"there is no action '{action}': {', '.join(ACTIONS)}")
        if action == "status" and "status" not in body:
            raise ValueError("action 'status' needs a status")
        seconds, status = float(body.get("seconds", 0)), int(body.get("status", 500))
        execute = bool(body.get("execute")) or action == "drop_after"
        return cls(Match.of(body), action, status, body.get("reason") or "fault", seconds, execute)

    def shown(self) -> dict:
        return self.match.shown() | {"action": self.action, "matched": self.match.matched}

    async def answer(self, path: str, execute: Callable[[], Awaitable[web.Response]]) -> web.Response | ApiError | None:
        """The call's own answer, another one, or None: the connection is dropped."""
        if self.action == "delay":
            await asyncio.sleep(self.seconds)
            return await execute()
        if self.execute:
            await execute()
        await asyncio.sleep(self.seconds)
        if self.action in ("drop_before", "drop_after"):
            return None
        if self.action == "lock":
            vmid = re.search(r"/qemu/(\d+)", path)
            file = f"/var/lock/qemu-server/lock-{vmid[1] if vmid else 100}.conf"
            return ApiError(500, f"can't lock file '{file}' - got timeout")
        return ApiError(self.status, self.reason, body=self.status not in (401, 595, 596))
