# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`autovibe.proxmox.guest_file`: a file in a guest. Documented in plugins/modules/guest_file.py."""

from __future__ import annotations

from typing import Any

from ansible_collections.autovibe.proxmox.plugins.plugin_utils.action import Client, PveAction, diff

if Client is not None:
    from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.guest import Guest


class ActionModule(PveAction):
    SPEC = {
        "vm_id": {"type": "int", "required": True},
        "path": {"type": "str", "required": True},
        "content": {"type": "str", "no_log": True},
        "src": {"type": "path"},
        "mode": {"type": "str"},
        "owner": {"type": "str"},
        "wait_agent": {"type": "int", "default": 0},
    }
    CONSTRAINTS = {"mutually_exclusive": [("content", "src")], "required_one_of": [("content", "src")]}

    def work(self, client: Client, options: dict[str, Any], check: bool) -> dict[str, Any]:
        content = self.read_file(options["src"], "src") if options["src"] else options["content"].encode()
        guest = Guest(client, options["node"], options["vm_id"])
        if options["wait_agent"]:
            guest.wait(options["wait_agent"])
        before, after = guest.put(options["path"], content, mode=options["mode"], owner=options["owner"], check=check)
        return {"changed": before != after, "diff": diff(before, after), "file": after}
