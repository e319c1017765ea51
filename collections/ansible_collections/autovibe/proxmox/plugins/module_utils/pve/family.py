# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tree of one VM's checkpoints: its snapshots, the templates made of them, and what was cloned from those.

A node's id is `101@before-upgrade` for a snapshot of VM 101, and `105` for template 105.
"""

from __future__ import annotations

import re
from typing import Any

from .disks import bases, disks
from .fleet import each, with_config
from .fleet import machines as fleet_of
from .node import Node
from .snapshots import Tree, is_promotion

_MARK = re.compile(r"(?<!\S)checkpoint=(\S+)(?: at=(\S+))?")
_STATE = re.compile(r"vm-\d+-state-([A-Za-z][\w-]*)")


class Family:
    """`below`: also look for templates and linked clones, in every VM's configuration. `sizes`: ask for them."""

    def __init__(self, node: Node, vmid: int, *, below: bool = True, sizes: bool = False):
        self.node, self.client, self.vmid = node, node.client, vmid
        self.config = node.config(vmid) or {}
        self.nodes: dict[str, dict[str, Any]] = {}
        self.clones: list[dict[str, Any]] = []
        self.others = self._others() if below else []
        if self.config.get("template"):
            self._template(self._myself(), None)
        else:
            self._snapshots()
        for one in self.nodes.values():
            one["children"] = sorted(child["id"] for child in self.nodes.values() if child["parent"] == one["id"])
        if sizes:
            self._sizes()

    def facts(self) -> dict[str, Any]:
        return {
            "machine": {**self._myself(), "template": bool(self.config.get("template"))},
            "checkpoints": list(self.nodes.values()),
            "clones": sorted(self.clones, key=lambda clone: clone["vm_id"]),
        }

    def _myself(self) -> dict[str, Any]:
        return {
            "vm_id": self.vmid,
            "node": self.node.node,
            "name": self.config.get("name"),
            "bases": sorted(bases(self.config)),
        }

    def _others(self) -> list[dict[str, Any]]:
        """Every other VM, with its configuration and the templates that it stands on."""
        found = [machine for machine in fleet_of(self.client) if machine["vm_id"] != self.vmid]
        return [{**one, "bases": sorted(bases(one["config"]))} for one in with_config(self.client, found)]

    def _snapshots(self) -> None:
        tree = Tree.parse(self.client.get(self.node.path(self.vmid, "snapshot")))
        for one in tree.oldest_first():
            parent = one.parent if one.parent in tree else None
            self._add(
                f"{self.vmid}@{one.name}",
                f"{self.vmid}@{parent}" if parent else None,
                name=one.name,
                vm_id=self.vmid,
                node=self.node.node,
                carrier="snapshot",
                created_at=one.created_at,
                ram=one.ram,
                description=one.description,
                current=tree.at == one.name,
                whole=one.whole,
            )
            for other in self._promotions(one.name):
                self._template(other, f"{self.vmid}@{one.name}")

    def _promotions(self, name: str) -> list[dict[str, Any]]:
        return [
            other
            for other in self.others
            if other["template"]
            and name.lower() in other["tags"]
            and is_promotion(str(other["config"].get("description", "")), self.vmid, name, None)
        ]

    def _template(self, template: dict[str, Any], parent: str | None) -> None:
        config = template.get("config", self.config)
        marked = _MARK.search(str(config.get("description", "")))
        self._add(
            str(template["vm_id"]),
            parent,
            name=marked.group(1) if marked else template["name"],
            vm_id=template["vm_id"],
            node=template["node"],
            carrier="template",
            created_at=marked.group(2) if marked else None,
            ram=False,
            description=str(config.get("description", "")).rstrip(),
            current=False,
            whole=True,
        )
        for other in self.others:
            if template["vm_id"] in other["bases"] and str(other["vm_id"]) not in self.nodes:
                if other["template"]:
                    self._template(other, str(template["vm_id"]))
                else:
                    clone = {key: other[key] for key in ("vm_id", "node", "name", "status")}
                    self.clones.append({**clone, "of": str(template["vm_id"])})

    def _add(self, key: str, parent: str | None, **facts: Any) -> None:
        self.nodes[key] = {"id": key, "parent": parent, "children": [], "size_bytes": None, **facts}

    def _sizes(self) -> None:
        """What a template's own disks occupy, and the saved RAM of a snapshot; nothing more can be known."""
        templates = [one for one in self.nodes.values() if one["carrier"] == "template"]
        for one, volumes in zip(templates, each(templates, self._volumes_of), strict=True):
            one["size_bytes"] = sum(int(volume.get("used") or volume["size"]) for volume in volumes) or None
        if any(one["ram"] for one in self.nodes.values()):
            for volume in self._volumes_of(self._myself()):
                state = _STATE.search(volume["volid"])
                if state and (one := self.nodes.get(f"{self.vmid}@{state.group(1)}")):
                    one["size_bytes"] = int(volume["size"])

    def _volumes_of(self, machine: dict[str, Any]) -> list[dict[str, Any]]:
        """A VM's volumes; its user may see them, whatever else is on the storage."""
        config = next((one["config"] for one in self.others if one["vm_id"] == machine["vm_id"]), self.config)
        found = []
        for storage in sorted({disk.storage for disk in disks(config)}):
            path = f"/nodes/{machine['node']}/storage/{storage}/content"
            found += self.client.get(path, vmid=machine["vm_id"])
        return [volume for volume in found if volume.get("vmid") == machine["vm_id"] and volume["content"] == "images"]
