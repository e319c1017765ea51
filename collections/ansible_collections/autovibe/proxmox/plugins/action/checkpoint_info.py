# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`autovibe.proxmox.checkpoint_info`: the tree of a machine. Documented in plugins/modules/checkpoint_info.py."""

from __future__ import annotations

from typing import Any

from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.checkpoints import Checkpoints
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.family import Family
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.machines import Machines
from ansible_collections.autovibe.proxmox.plugins.plugin_utils.action import Client, PveAction, identity
from ansible_collections.autovibe.proxmox.plugins.plugin_utils.lookup import (
    MACHINE_CONSTRAINT,
    MACHINE_SPEC,
    machine_id,
)


class ActionModule(PveAction):
    SPEC = {
        **MACHINE_SPEC,
        "name": {"type": "str"},
        "below": {"type": "bool", "default": True},
        "sizes": {"type": "bool", "default": False},
    }
    CONSTRAINTS = {"required_one_of": [MACHINE_CONSTRAINT]}

    def work(self, client: Client, options: dict[str, Any], check: bool) -> dict[str, Any]:
        machines = Machines(client, options["node"], options["timeout"])
        vmid = machine_id(machines, options)
        Checkpoints(machines).seen(vmid, identity(options))
        facts = Family(machines, vmid, below=options["below"], sizes=options["sizes"]).facts()
        if options["name"] is not None:
            facts["checkpoints"] = [one for one in facts["checkpoints"] if one["name"] == options["name"]]
        return {"changed": False, **facts}
