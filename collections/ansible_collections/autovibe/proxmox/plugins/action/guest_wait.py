# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`autovibe.proxmox.guest_wait`: until a guest is ready. Documented in plugins/modules/guest_wait.py."""

from __future__ import annotations

from typing import Any

from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.readiness import Readiness
from ansible_collections.autovibe.proxmox.plugins.plugin_utils.action import Client, PveAction
from ansible_collections.autovibe.proxmox.plugins.plugin_utils.guests import guest_of


class ActionModule(PveAction):
    SPEC = {
        "vm_id": {"type": "int", "required": True},
        "cloud_init": {"type": "bool", "default": False},
        "port": {"type": "int"},
        "path": {"type": "str"},
        "argv": {"type": "list", "elements": "str"},
        "shell": {"type": "str"},
        "address": {"type": "str", "choices": ["any", "ipv4", "ipv6"]},
        "wait_timeout": {"type": "int", "default": 300},
    }
    CONSTRAINTS = {"mutually_exclusive": [("argv", "shell")]}

    def work(self, client: Client, options: dict[str, Any], check: bool) -> dict[str, Any]:
        readiness = Readiness(
            guest_of(client, options),
            command=["/bin/sh", "-c", options["shell"]] if options["shell"] else options["argv"],
            **{key: options[key] for key in ("cloud_init", "port", "path", "address")},
        )
        # What check mode has not started cannot be waited for: it only looks.
        return {"changed": False, "guest": readiness.wait(0 if check else options["wait_timeout"])}
