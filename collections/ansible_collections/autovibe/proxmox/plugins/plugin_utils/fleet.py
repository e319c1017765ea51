# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that say which of all VMs are meant."""

from __future__ import annotations

from typing import Any

from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.errors import SettingsError
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.fleet import Filter

FILTER_SPEC: dict[str, dict[str, Any]] = {
    "node": {"type": "str"},
    "vm_id": {"type": "int"},
    "name": {"type": "str"},
    "tag": {"type": "str"},
    "tags": {"type": "list", "elements": "str", "default": []},
    "pool": {"type": "str"},
    "project": {"type": "str"},
    "machine_type": {"type": "str"},
    "status": {"type": "str", "choices": ["running", "stopped"]},
    "templates": {"type": "bool"},
}


def filter_of(options: dict[str, Any]) -> Filter:
    if options["vm_id"] is not None and options["vm_id"] < 1:
        raise SettingsError(f"vm_id: {options['vm_id']} is no VM id.")
    return Filter(
        vm_ids=(options["vm_id"],) if options["vm_id"] is not None else (),
        tags=tuple(filter(None, [options["tag"], *options["tags"]])),
        **{key: options[key] for key in ("name", "pool", "project", "machine_type", "node", "status", "templates")},
    )
