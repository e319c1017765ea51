"""What tests need and Proxmox doesn't have: held answers, faults, delays, and the list of calls, under `/lab/…`."""

from __future__ import annotations

import hmac
import itertools
import json
import re
import time
from collections import deque
from dataclasses import asdict

from aiohttp import web

from autovibe_lab.api.show import resource
from autovibe_lab.faults import Fault, Hold, Match
from autovibe_lab.firewall import enforce
from autovibe_lab.firewall.verdict import of_dict
from autovibe_lab.node import Node
from autovibe_lab.tasks import Death

#: Calls that are remembered.
CALLS = 100_000


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

    def fault(self, call: dict) -> Fault | None:
        """The first fault that takes this call; it is noted there."""
        for id, fault in self.faults.items():
            if fault.match.takes(call["method"], call["path"]):
                call["fault"] = id
                return fault
        return None

    async def hold(self, request: web.Request, call: dict) -> None:
        """Wait as long as a hold wants this answer to wait."""
        for hold in list(self.holds.values()):
            if hold.match.takes(call["method"], call["path"]):
                return await hold.wait(request)
        return None

    # For the tests ----------------------------------------------------------------------------------------------

    async def answer(self, request: web.Request) -> web.Response:
        """Answer a call under /lab."""
        given = request.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
            return web.json_response({"error": "the lab's token is missing or wrong"}, status=401)
        what, _, id = request.path.removeprefix("/lab/").strip("/").partition("/")
        try:
            body = await request.json() if request.can_read_body else {}
            found = self._act(request.method, what, id, dict(request.query) | body)
        except (KeyError, ValueError, TypeError, re.error, json.JSONDecodeError) as error:
            return web.json_response({"error": f"{type(error).__name__}: {error}"}, status=400)
        if found is None:
            return web.json_response({"error": "no such thing in the lab"}, status=404)
        return web.json_response(found)

    def _act(self, method: str, what: str, id: str, body: dict) -> object:
        if what == "calls" and method == "GET":
            since = int(body.get("since", 0))
            return [call for call in self.calls if call["seq"] > since] if since else list(self.calls)
        if what == "tasks" and method == "GET":
            tasks = self.node.cluster.tasks()
            return [task.status_entry() | {"exitstatus": task.status} for task in tasks]
        if what == "guests" and method == "GET":
            return [resource(node, machine) for node, machine in self.node.cluster.guests()]
        if what == "kills" and method == "POST":
            return self._kill(body)
        if what == "nodes":
            return self._on_nodes(method, id, body)
        if what == "latency" and method in ("GET", "PUT", "POST"):
            self.node.delays.change(body)
            return asdict(self.node.delays)
        if what == "firewall" and id == "verdict" and method == "POST":
            return self._verdict(body)
        if what == "holds":
            return self._on_list(self.holds, lambda: Hold(Match.of(body)), method, id)
        if what == "faults":
            return self._on_list(self.faults, lambda: Fault.of(body), method, id)
        return None

    def _verdict(self, body: dict) -> object:
        """What the firewall does to a packet of a guest: `{"vmid": 100, "packet": {"dest": …, "dport": …}}`."""
        vmid = int(body["vmid"])
        holder = self.node.cluster.holder(vmid)
        if holder is None:
            return None
        found = enforce.of(holder, vmid, of_dict(body.get("packet", {})))
        return asdict(found)

    def _kill(self, body: dict) -> object:
        """The worker of a task that runs (`upid`), or of the next ones of a type in the middle of their work."""
        tasks = [node.tasks for node in self.node.cluster.nodes.values()]
        if upid := body.get("upid"):
            found = next((each.all[upid] for each in tasks if upid in each.all), None)
            return None if found is None else {"killed": found.kill()}
        death = Death(body["type"], str(body.get("id", "")), int(body.get("count", 1)))
        for each in tasks:
            each.deaths.append(death)
        return {"armed": death.count}

    def _on_nodes(self, method: str, name: str, body: dict) -> object:
        """PUT takes a node down or brings it back; none of its tasks or guests ends."""
        cluster = self.node.cluster
        if method == "PUT":
            if name not in cluster.nodes:
                return None
            if name == cluster.local.name:
                raise ValueError(f"{name} is the node that answers")
            (cluster.offline.discard if body["online"] else cluster.offline.add)(name)
        return {name: {"online": name not in cluster.offline} for name in cluster.nodes}

    def _on_list(self, all: dict, make: object, method: str, id: str) -> object:
        """POST adds one; GET and DELETE are for one, or without an id for all of them."""
        if method == "POST":
            made = make()
            id = str(next(self._numbers))
            all[id] = made
            return {"id": id}
        if id and id not in all:
            return None
        wanted = [id] if id else list(all)
        if method == "DELETE":
            for one in wanted:
                if isinstance(all[one], Hold):
                    all[one].release()
        found = [{"id": one} | all[one].shown() for one in wanted]
        if method == "DELETE":
            for one in wanted:
                if not isinstance(all[one], Hold) or not id:
                    del all[one]
        return found[0] if id else found
