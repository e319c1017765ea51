"""What the nodes of one cluster share. A single node is a cluster of one."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autovibe_lab.access import Access
from autovibe_lab.errors import ApiError
from autovibe_lab.jobs import Jobs
from autovibe_lab.pools import Pools
from autovibe_lab.storages import StorageConfig
from autovibe_lab.tasks import Task

if TYPE_CHECKING:
    from autovibe_lab.node import Machine, Node

NAME = "autovibe"


@dataclass
class Cluster:
    """The nodes by name, the first of which answers; VM ids are taken once in all of them, pools span them."""

    access: Access
    storages: StorageConfig
    jobs: Jobs
    nodes: dict[str, Node] = field(default_factory=dict)
    #: Names of nodes that are down: reached by nobody, their guests' state unknown.
    offline: set[str] = field(default_factory=set)
    #: What `datacenter.cfg` holds.
    options: dict[str, str] = field(default_factory=dict)
    #: Logins for the cluster's log: (time, user), newest last.
    logins: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=100))
    started: int = field(default_factory=lambda: int(time.time()))

    @property
    def pools(self) -> Pools:
        return self.access.pools

    @property
    def local(self) -> Node:
        """The node that answers."""
        return next(iter(self.nodes.values()))

    def node(self, name: str) -> Node:
        """The node of a path; the 500 of an unknown one, the 595 of one that is down."""
        if name == "localhost":
            name = self.local.name
        if name not in self.nodes:
            # A node has no name server that knows it; what is no name is not even asked for.
            valid = re.fullmatch(r"[A-Za-z0-9.-]+", name)
            reason = "Temporary failure in name resolution" if valid else "Name or service not known"
            lookup = f"failed to get address info for: {name}: {reason}"
            raise ApiError(500, f"hostname lookup '{name}' failed - {lookup}")
        if name in self.offline:
            raise ApiError(595, "No route to host", body=False)
        return self.nodes[name]

    def guests(self) -> Iterator[tuple[Node, Machine]]:
        """Every guest with its node, by id."""
        pairs = [(node, machine) for node in self.nodes.values() for machine in node.machines.values()]
        return iter(sorted(pairs, key=lambda pair: pair[1].vmid))

    def holder(self, vmid: int) -> Node | None:
        """The node that has this guest."""
        return next((node for node in self.nodes.values() if vmid in node.machines), None)

    def free_id(self) -> int:
        """The lowest free id of the range that option `next-id` gives."""
        given = dict(part.partition("=")[::2] for part in self.options.get("next-id", "").split(",") if part)
        lower, upper = int(given.get("lower", 100)), int(given.get("upper", 1_000_000))
        for vmid in range(lower, upper):
            if self.holder(vmid) is None:
                return vmid
        raise ApiError(500, f"unable to get any free VMID in range [{lower}, {upper}]")

    def shares(self, storage: str) -> bool:
        """Every node sees the same volumes there."""
        found = self.storages.all.get(storage)
        return len(self.nodes) > 1 and found is not None and found.shared

    def tasks(self) -> list[Task]:
        """The tasks of all nodes that are up, oldest first."""
        online = [node for node in self.nodes.values() if node.name not in self.offline]
        return sorted((task for node in online for task in node.tasks.all.values()), key=lambda task: task.starttime)
