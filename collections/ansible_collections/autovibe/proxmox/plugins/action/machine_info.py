# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`autovibe.proxmox.machine_info`: what there is. Documented in plugins/modules/machine_info.py."""

from __future__ import annotations

from typing import Any

from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.config import Identity, split_tags
from ansible_collections.autovibe.proxmox.plugins.plugin_utils.action import Client, PveAction

if Client is not None:
    from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.checkpoints import Checkpoints
    from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.machines import Machines


class ActionModule(PveAction):
    SPEC = {
        "vm_id": {"type": "int"},
        "name": {"type": "str"},
        "tag": {"type": "str"},
        "config": {"type": "bool", "default": False},
        "snapshots": {"type": "bool", "default": False},
    }

    def work(self, client: Client, options: dict[str, Any], check: bool) -> dict[str, Any]:
        machines = Machines(client, options["node"], options["timeout"])
        found = [_short(vm, options["node"]) for vm in machines.list()]
        found = [vm for vm in found if _fits(vm, options)]
        for vm in found:
            if options["config"] or options["snapshots"]:
                vm["config"] = machines.config(vm["vm_id"]) or {}
                own = Identity.parse(vm["config"].get("description"))
                vm["identity"] = dict(own.fields) if own else None
            if options["snapshots"]:
                vm["snapshots"] = [] if vm["template"] else list(Checkpoints(machines).snapshots(vm["vm_id"]).values())
        return {"changed": False, "machines": sorted(found, key=lambda vm: vm["vm_id"])}


def _short(vm: dict[str, Any], node: str) -> dict[str, Any]:
    return {
        "vm_id": int(vm["vmid"]),
        "node": node,
        "name": vm.get("name"),
        "status": vm.get("status"),
        "template": bool(vm.get("template")),
        "tags": split_tags(vm.get("tags")),
        "lock": vm.get("lock"),
    }


def _fits(vm: dict[str, Any], options: dict[str, Any]) -> bool:
    return (
        options["vm_id"] in (None, vm["vm_id"])
        and options["name"] in (None, vm["name"])
        and (options["tag"] is None or options["tag"] in vm["tags"])
    )
