# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`autovibe.proxmox.template`: what machines are cloned from. Documented in plugins/modules/template.py."""

from __future__ import annotations

from typing import Any

from ansible_collections.autovibe.proxmox.plugins.plugin_utils.action import Client, PveAction, diff

if Client is not None:
    from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.machines import Machines
    from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.templates import Inputs, Templates


class ActionModule(PveAction):
    SPEC = {
        "name": {"type": "str"},
        "vm_id": {"type": "int"},
        "disk_source": {"type": "str"},
        "from_vm_id": {"type": "int"},
        "storage": {"type": "str"},
        "cloudinit_storage": {"type": "str"},
        "cores": {"type": "int", "default": 1},
        "memory": {"type": "int", "default": 512},
        "bridge": {"type": "str", "default": "vmbr1"},
        "options": {"type": "dict", "default": {}},
        "inputs": {"type": "dict", "default": {}},
        "installation": {"type": "str"},
        "pool": {"type": "str"},
        "tags": {"type": "list", "elements": "str", "default": ["autovibe"]},
    }
    CONSTRAINTS = {
        "mutually_exclusive": [("disk_source", "from_vm_id")],
        "required_one_of": [("disk_source", "from_vm_id")],
        "required_by": {"disk_source": ("name", "storage")},
    }

    def work(self, client: Client, options: dict[str, Any], check: bool) -> dict[str, Any]:
        templates = Templates(Machines(client, options["node"], options["timeout"]))
        if options["from_vm_id"]:
            change = templates.convert(options["from_vm_id"], check=check)
        else:
            inputs = Inputs(
                disk=options["disk_source"],
                extra={key: str(value) for key, value in options["inputs"].items()},
                **{
                    key: options[key]
                    for key in ("name", "storage", "cloudinit_storage", "cores", "memory", "bridge", "options")
                },
            )
            change = templates.ensure(
                inputs,
                installation=options["installation"],
                vmid=options["vm_id"],
                pool=options["pool"],
                tags=options["tags"],
                check=check,
            )
        return {"changed": change.changed, "diff": diff(change.before, change.after), "template": change.facts}
