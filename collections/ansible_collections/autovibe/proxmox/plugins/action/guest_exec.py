# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`autovibe.proxmox.guest_exec`: a program in a guest. Documented in plugins/modules/guest_exec.py."""

from __future__ import annotations

from typing import Any

from ansible_collections.autovibe.proxmox.plugins.plugin_utils.action import Client, PveAction

if Client is not None:
    from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.guest import Guest


class ActionModule(PveAction):
    SPEC = {
        "vm_id": {"type": "int", "required": True},
        "argv": {"type": "list", "elements": "str"},
        "shell": {"type": "str"},
        "stdin": {"type": "str", "no_log": True},
        "exec_timeout": {"type": "int", "default": 60},
        "wait_agent": {"type": "int", "default": 0},
    }
    CONSTRAINTS = {"mutually_exclusive": [("argv", "shell")], "required_one_of": [("argv", "shell")]}

    def work(self, client: Client, options: dict[str, Any], check: bool) -> dict[str, Any]:
        argv = options["argv"] or ["/bin/sh", "-c", options["shell"]]
        if check:
            return {"changed": True, "skipped": True, "msg": "A program is not run in check mode.", "argv": argv}
        guest = Guest(client, options["node"], options["vm_id"])
        if options["wait_agent"]:
            guest.wait(options["wait_agent"])
        stdin = None if options["stdin"] is None else options["stdin"].encode()
        done = guest.run(argv, stdin=stdin, timeout=options["exec_timeout"])
        result = {
            "changed": True,
            "argv": argv,
            "rc": done.rc,
            "signal": done.signal,
            "stdout": done.stdout.decode(errors="replace"),
            "stderr": done.stderr.decode(errors="replace"),
            "truncated": done.truncated,
        }
        if done.rc != 0:
            how = f"signal {done.signal}" if done.rc is None else f"exit code {done.rc}"
            result.update(failed=True, msg=f"'{argv[0]}' in VM {options['vm_id']} ended with {how}.")
        return result
