# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`autovibe.proxmox.guest_file`: a file in a guest. Documented in plugins/modules/guest_file.py."""

from __future__ import annotations

import re
from typing import Any

from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.errors import SettingsError
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.guest import Guest
from ansible_collections.autovibe.proxmox.plugins.plugin_utils.action import Client, PveAction, diff
from ansible_collections.autovibe.proxmox.plugins.plugin_utils.guests import guest_of

#: Longer texts are not worth a diff.
DIFF_LIMIT = 256 * 1024


class ActionModule(PveAction):
    SPEC = {
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "vm_id": {"type": "int", "required": True},
        "path": {"type": "str", "required": True},
        "content": {"type": "str"},
        "src": {"type": "path"},
        "mode": {"type": "str"},
        "owner": {"type": "str"},
        "group": {"type": "str"},
        "wait_agent": {"type": "int", "default": 0},
    }
    CONSTRAINTS = {
        "mutually_exclusive": [("content", "src")],
        "required_if": [("state", "present", ("content", "src"), True)],
    }

    def work(self, client: Client, options: dict[str, Any], check: bool) -> dict[str, Any]:
        path = options["path"]
        _refuse(options)
        content = b""
        if options["state"] == "present":
            content = self.read_file(options["src"], "src") if options["src"] else options["content"].encode()
        guest = guest_of(client, options)
        if options["wait_agent"]:
            guest.wait(options["wait_agent"])
        showing = self._task.diff and not self._task.no_log
        old = _old(guest, path) if showing else None
        if options["state"] == "absent":
            before, after = guest.remove(path, check=check)
        else:
            settings = {key: options[key] for key in ("mode", "owner", "group")}
            before, after = guest.put(path, content, check=check, **settings)
        shown = diff(before, after)
        if showing and before.get("sha256") != after.get("sha256"):
            texts = _shown(old), _shown(content)
            if None not in texts:
                shown = [shown, {"before": texts[0], "after": texts[1], "before_header": path, "after_header": path}]
        return {"changed": before != after, "diff": shown, "file": after or {"path": path}}


def _refuse(options: dict[str, Any]) -> None:
    if not options["path"].startswith("/") or options["path"].endswith("/"):
        raise SettingsError(f"path: '{options['path']}' is not the absolute path of a file.")
    if options["mode"] is not None and not re.fullmatch(r"0?[0-7]{3,4}", options["mode"]):
        raise SettingsError(f"mode: '{options['mode']}' is not octal, such as \"0640\"; put it in quotes.")


def _old(guest: Guest, path: str) -> bytes | None:
    """What the file holds before it changes; None when it is too long to be shown."""
    found = guest.look(path)
    if found.kind != "file" or (found.size or 0) > DIFF_LIMIT:
        return None if found.size else b""
    return guest.read(path)


def _shown(content: bytes | None) -> str | None:
    """Text as a diff shows it; None for what is no text."""
    if content is None or len(content) > DIFF_LIMIT or b"\0" in content:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None
