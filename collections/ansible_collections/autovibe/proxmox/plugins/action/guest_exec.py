# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`autovibe.proxmox.guest_exec`: a program in a guest. Documented in plugins/modules/guest_exec.py."""

from __future__ import annotations

from typing import Any

from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.errors import SettingsError
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.guest import ExecResult, Guest, wrapped
from ansible_collections.autovibe.proxmox.plugins.plugin_utils.action import Client, PveAction
from ansible_collections.autovibe.proxmox.plugins.plugin_utils.guests import guest_of


class ActionModule(PveAction):
    SPEC = {
        "vm_id": {"type": "int", "required": True},
        "argv": {"type": "list", "elements": "str"},
        "shell": {"type": "str"},
        "stdin": {"type": "str"},
        "env": {"type": "dict", "default": {}},
        "chdir": {"type": "str"},
        "creates": {"type": "str"},
        "removes": {"type": "str"},
        "large_output": {"type": "bool", "default": False},
        "exec_timeout": {"type": "int", "default": 60},
        "wait_agent": {"type": "int", "default": 0},
    }
    CONSTRAINTS = {"mutually_exclusive": [("argv", "shell")], "required_one_of": [("argv", "shell")]}

    def work(self, client: Client, options: dict[str, Any], check: bool) -> dict[str, Any]:
        argv = options["argv"] or (["/bin/sh", "-c", options["shell"]] if options["shell"] else [])
        if not argv:
            raise SettingsError("argv or shell: there is no program in it.")
        program = wrapped(argv, options["env"], options["chdir"])
        guest = guest_of(client, options)
        conditional = bool(options["creates"] or options["removes"])
        if check and not conditional:
            return {"changed": False, "skipped": True, "msg": "A program is not run in check mode.", "argv": argv}
        if options["wait_agent"]:
            guest.wait(options["wait_agent"])
        done = _done_already(guest, options)
        if done:
            return {
                "changed": False,
                "argv": argv,
                "msg": done,
                "rc": 0,
                "stdout": "",
                "stderr": "",
                "truncated": False,
            }
        if check:
            return {"changed": True, "argv": argv, "msg": "The program would have been run."}
        stdin = None if options["stdin"] is None else options["stdin"].encode()
        ended = guest.run(program, stdin=stdin, timeout=options["exec_timeout"], large=options["large_output"])
        return {"changed": True, "argv": argv, **_result(ended, argv[0], options)}


def _done_already(guest: Guest, options: dict[str, Any]) -> str | None:
    """Why there is nothing to run, if there is not."""
    if options["creates"] and guest.exists(options["creates"]):
        return f"{options['creates']} exists."
    if options["removes"] and not guest.exists(options["removes"]):
        return f"{options['removes']} does not exist."
    return None


def _result(ended: ExecResult, program: str, options: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "rc": ended.rc,
        "signal": ended.signal,
        "stdout": ended.stdout.decode(errors="replace"),
        "stderr": ended.stderr.decode(errors="replace"),
        "truncated": ended.truncated,
        "timed_out": ended.timed_out,
    }
    if ended.rc != 0:
        how = f"ended with exit code {ended.rc}" if ended.rc is not None else f"was ended by signal {ended.signal}"
        if ended.timed_out:
            how = f"ran for more than {options['exec_timeout']} s and was killed"
        result.update(failed=True, msg=f"'{program}' in VM {options['vm_id']} {how}.")
    return result
