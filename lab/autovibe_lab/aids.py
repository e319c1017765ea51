"""What tests need and Proxmox doesn't have: answers held back, faults, and the list of calls, under `/lab/…`."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import json
import re
import time
from collections import deque
from dataclasses import asdict, dataclass, field

from aiohttp import web

from autovibe_lab.node import Node

#: Calls that are remembered.
CALLS = 100_000


@dataclass
class Match:
    """The calls that a hold or a fault is for: method and the whole path after /api2/json; `count` of them."""

    method: str
    path: re.Pattern
    count: int

    def takes(self, method: str, path: str) -> bool:
        if self.count <= 0 or self.method not in (method, "*") or not self.path.fullmatch(path):
            return False
        self.count -= 1
        return True


@dataclass
class Hold:
    """Executed calls whose answers wait for `released`."""

    match: Match
    matched: int = 0
    waiting: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def state(self) -> str:
        if self.released.is_set():
            return "released"
        return "holding" if self.waiting else "armed"


@dataclass
class Fault:
    """An answer given instead of the call's own; the call is executed first where `execute`."""

    match: Match
    status: int
    reason: str
    execute: bool


class Aids:
    def __init__(self, node: Node, token: str) -> None:
        self.node = node
        self.token = token
        self.holds: dict[str, Hold] = {}
        self.faults: dict[str, Fault] = {}
        self.calls: deque[dict] = deque(maxlen=CALLS)
        self._numbers = itertools.count(1)
        self._sequence = itertools.count(1)

    # For the server ---------------------------------------------------------------------------------------------

    def began(self, method: str, path: str) -> dict:
        call = {"seq": next(self._sequence), "method": method, "path": path, "status": None, "at": time.time()}
        self.calls.append(call)
        return call

    def fault(self, method: str, path: str) -> Fault | None:
        return next((fault for fault in self.faults.values() if fault.match.takes(method, path)), None)

    async def hold(self, request: web.Request, method: str, path: str) -> None:
        """Wait as long as a hold wants this answer to wait; not longer than the client does."""
        hold = next((hold for hold in self.holds.values() if hold.match.takes(method, path)), None)
        if hold is None:
            return
        hold.matched += 1
        hold.waiting += 1
        try:
            while not hold.released.is_set() and request.transport and not request.transport.is_closing():
                try:
                    await asyncio.wait_for(hold.released.wait(), 0.05)
                except TimeoutError:
                    continue
        finally:
            hold.waiting -= 1

    # For the tests ----------------------------------------------------------------------------------------------

    async def answer(self, request: web.Request) -> web.Response:
        """Answer a call under /lab."""
        given = request.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
            return web.json_response({"error": "the lab's token is missing or wrong"}, status=401)
        body = await request.json() if request.can_read_body else {}
        what, _, id = request.path.removeprefix("/lab/").strip("/").partition("/")
        try:
            found = self._act(request.method, what, id, body)
        except (KeyError, ValueError, TypeError, re.error, json.JSONDecodeError) as error:
            return web.json_response({"error": f"{type(error).__name__}: {error}"}, status=400)
        if found is None:
            return web.json_response({"error": "no such thing in the lab"}, status=404)
        return web.json_response(found)

    def _act(self, method: str, what: str, id: str, body: dict) -> object:
        if what == "calls" and method == "GET":
            return list(self.calls)
        if what == "tasks" and method == "GET":
            tasks = self.node.tasks.all.values()
            return [task.status_entry() | {"exitstatus": task.status} for task in tasks]
        if what == "latency" and method in ("GET", "PUT", "POST"):
            self.node.delays.change(body)
            return asdict(self.node.delays)
        if what == "holds":
            return self._on_holds(method, id, body)
        if what == "faults":
            return self._on_faults(method, id, body)
        return None

    def _on_holds(self, method: str, id: str, body: dict) -> object:
        if method == "POST":
            id = str(next(self._numbers))
            self.holds[id] = Hold(_match(body))
            return {"id": id}
        if id not in self.holds:
            return None
        hold = self.holds[id]
        if method == "DELETE":
            hold.released.set()
            hold.match.count = 0
        return {"state": hold.state, "matched": hold.matched}

    def _on_faults(self, method: str, id: str, body: dict) -> object:
        if method == "POST":
            id, status = str(next(self._numbers)), int(body["status"])
            self.faults[id] = Fault(_match(body), status, body.get("reason", ""), bool(body.get("execute")))
            return {"id": id}
        if id not in self.faults:
            return None
        fault = self.faults.pop(id) if method == "DELETE" else self.faults[id]
        return {"left": fault.match.count}


def _match(body: dict) -> Match:
    return Match(body.get("method", "*").upper(), re.compile(body["path"]), int(body.get("count", 1)))
