# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`autovibe.proxmox.usage_info`: what machines have used. Documented in plugins/modules/usage_info.py."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from ansible_collections.autovibe.proxmox.plugins.module_utils.pve import fleet, usage
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.errors import SettingsError
from ansible_collections.autovibe.proxmox.plugins.plugin_utils.action import Client, PveAction
from ansible_collections.autovibe.proxmox.plugins.plugin_utils.fleet import FILTER_SPEC, filter_of

GROUPS = ["pool", "project", "machine_type", "node", "status", "tag"]


class ActionModule(PveAction):
    SPEC = {
        **FILTER_SPEC,
        "since": {"type": "str"},
        "group_by": {"type": "list", "elements": "str", "choices": GROUPS, "default": ["pool", "project"]},
    }

    def work(self, client: Client, options: dict[str, Any], check: bool) -> dict[str, Any]:
        since = _seconds(options["since"])
        only = filter_of(options)
        listed = fleet.resources(client)
        now = time.time()
        if since is not None and since > now:
            raise SettingsError(f"since: {options['since']} is in the future.")
        found = [usage.used(entry, now, since) for entry in listed if only.fits(fleet.described(entry))]
        return {
            "changed": False,
            "measured_at": _text(now),
            "since": None if since is None else _text(since),
            "usage": found,
            "total": usage.total(found),
            "groups": {by: usage.grouped(found, by) for by in options["group_by"]},
        }


def _seconds(text: str | None) -> float | None:
    """Seconds since 1970 of an ISO 8601 time (UTC when it names no zone) or of a number."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        pass
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise SettingsError(f"since: '{text}' is no time; write it as 2026-01-31T12:00:00Z.") from error
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _text(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
