# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole fleet in one call: every VM of every node that the user may see.

`/cluster/resources` is what pvestatd wrote last: id, node, tags, lock and pool are as of now, name and status may lag
by ten seconds. What it does not have (configuration, snapshots, addresses) costs a call for each VM, a few at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from .client import Client
from .config import Identity, split_tags
from .errors import ApiError, NoAnswer
from .node import Node

T = TypeVar("T")
R = TypeVar("R")
#: Calls at the same time: a small node's three workers, and one on its way.
AT_ONCE = 4
MIB = 1 << 20


@dataclass(frozen=True)
class Filter:
    """Which VMs. None and empty mean: all; of `tags` a VM must have every one."""

    vm_ids: tuple[int, ...] = ()
    name: str | None = None
    tags: tuple[str, ...] = ()
    pool: str | None = None
    project: str | None = None
    machine_type: str | None = None
    node: str | None = None
    status: str | None = None
    templates: bool | None = None

    def fits(self, machine: dict[str, Any]) -> bool:
        same = all(
            getattr(self, key) in (None, machine[key])
            for key in ("name", "pool", "project", "machine_type", "node", "status")
        )
        return (
            same
            and (not self.vm_ids or machine["vm_id"] in self.vm_ids)
            and {tag.lower() for tag in self.tags} <= set(machine["tags"])
            and self.templates in (None, machine["template"])
        )


def resources(client: Client) -> list[dict[str, Any]]:
    """The VMs as Proxmox VE lists them, by id. One call."""
    listed = client.get("/cluster/resources", type="vm")
    return sorted((entry for entry in listed if entry.get("type") == "qemu"), key=lambda entry: int(entry["vmid"]))


def machines(client: Client, only: Filter | None = None) -> list[dict[str, Any]]:
    """The VMs as plain data, by id. One call."""
    found = [described(entry) for entry in resources(client)]
    return [machine for machine in found if only is None or only.fits(machine)]


def described(entry: dict[str, Any]) -> dict[str, Any]:
    """One VM of `/cluster/resources`. Project and type are tags: `project-<slug>`, `type-<machine type>`."""
    tags = split_tags(entry.get("tags"))
    return {
        "vm_id": int(entry["vmid"]),
        "node": entry["node"],
        "name": entry.get("name"),
        "status": entry.get("status"),
        "template": bool(entry.get("template")),
        "tags": tags,
        "lock": entry.get("lock"),
        "pool": entry.get("pool"),
        "project": tagged(tags, "project-"),
        "machine_type": tagged(tags, "type-"),
        "cores": entry.get("maxcpu"),
        "memory": int(entry["maxmem"]) // MIB if entry.get("maxmem") else None,
        "disk_bytes": entry.get("maxdisk"),
        "uptime": int(entry.get("uptime") or 0),
    }


def tagged(tags: list[str], prefix: str) -> str | None:
    return next((tag[len(prefix) :] for tag in tags if tag.startswith(prefix) and tag != prefix), None)


def each(items: Iterable[T], work: Callable[[T], R], at_once: int = AT_ONCE) -> list[R]:
    """What `work` returns for each item, in their order; a few at the same time, the first error ends it."""
    items = list(items)
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        return list(pool.map(work, items))


def with_config(client: Client, found: list[dict[str, Any]], at_once: int = AT_ONCE) -> list[dict[str, Any]]:
    """The same VMs with `config`, `identity`, and name and tags as they are now; without those that have gone since."""
    configs = each(found, lambda machine: Node(client, machine["node"]).config(machine["vm_id"]), at_once)
    return [
        {
            **machine,
            "name": config.get("name", machine["name"]),
            "tags": split_tags(config.get("tags")),
            "lock": config.get("lock"),
            "config": config,
            "identity": identity_of(config),
        }
        for machine, config in zip(found, configs, strict=True)
        if config is not None
    ]


def identity_of(config: dict[str, Any]) -> dict[str, str] | None:
    own = Identity.parse(config.get("description"))
    return dict(own.fields) if own else None


def addresses(client: Client, machine: dict[str, Any]) -> list[str]:
    """A running guest's addresses as its agent tells them, IPv4 first; none without an agent, or without loopback."""
    path = f"/nodes/{machine['node']}/qemu/{machine['vm_id']}/agent/network-get-interfaces"
    try:
        interfaces = client.get(path)["result"]
    except (ApiError, NoAnswer):
        return []
    listed = [
        (entry.get("ip-address-type") != "ipv4", entry["ip-address"])
        for interface in interfaces
        if interface.get("name") != "lo"
        for entry in interface.get("ip-addresses") or []
        if not entry["ip-address"].startswith(("127.", "fe80:", "::1"))
    ]
    return [address for _later, address in sorted(listed, key=lambda one: one[0])]
