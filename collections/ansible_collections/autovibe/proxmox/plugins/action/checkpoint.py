# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`autovibe.proxmox.checkpoint`: snapshots, rollback, promotion. Documented in plugins/modules/checkpoint.py."""

from __future__ import annotations

from typing import Any

from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.errors import NotFound
from ansible_collections.autovibe.proxmox.plugins.plugin_utils.action import (
    IDENTITY_SPEC,
    Client,
    PveAction,
    diff,
    identity,
)

if Client is not None:
    from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.checkpoints import Checkpoint, Checkpoints
    from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.machines import Machines


class ActionModule(PveAction):
    SPEC = {
        "state": {"type": "str", "choices": ["present", "restored", "absent", "promoted"], "default": "present"},
        "vm_id": {"type": "int"},
        "machine_name": {"type": "str"},
        "identity": IDENTITY_SPEC,
        "name": {"type": "str", "required": True},
        "description": {"type": "str", "default": ""},
        "ram": {"type": "bool", "default": False},
        "freeze": {"type": "bool", "default": True},
        "carrier": {"type": "str", "choices": ["snapshot", "template", "auto"], "default": "snapshot"},
        "promote_vm_id": {"type": "int"},
        "pool": {"type": "str"},
        "tags": {"type": "list", "elements": "str"},
    }
    CONSTRAINTS = {"required_one_of": [("vm_id", "machine_name", "identity")]}

    def work(self, client: Client, options: dict[str, Any], check: bool) -> dict[str, Any]:
        machines = Machines(client, options["node"], options["timeout"])
        checkpoints = Checkpoints(machines)
        wanted = Checkpoint(
            identity=identity(options),
            **{key: options[key] for key in ("name", "description", "ram", "freeze", "carrier", "tags")},
        )
        vmid = options["vm_id"]
        if vmid is None:
            vmid = machines.find(identity=wanted.identity, name=options["machine_name"], templates=True)
        if vmid is None:
            raise NotFound(f"There is no machine '{options['machine_name'] or ''}' on node {options['node']}.")
        if options["state"] == "promoted":
            change = checkpoints.promoted(vmid, wanted, options["promote_vm_id"], pool=options["pool"], check=check)
        else:
            change = getattr(checkpoints, options["state"])(vmid, wanted, check=check)
        result = {"changed": change.changed, "diff": diff(change.before, change.after), "checkpoint": change.facts}
        if wanted.warnings:
            result["warnings"] = wanted.warnings
        return result
