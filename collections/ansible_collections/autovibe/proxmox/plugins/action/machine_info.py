# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`autovibe.proxmox.machine_info`: what there is. Documented in plugins/modules/machine_info.py."""

from __future__ import annotations

from typing import Any

from ansible_collections.autovibe.proxmox.plugins.module_utils.pve import fleet
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.checkpoints import Checkpoints
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.machines import Machines
from ansible_collections.autovibe.proxmox.plugins.plugin_utils.action import (
    IDENTITY_SPEC,
    Client,
    PveAction,
    identity,
)
from ansible_collections.autovibe.proxmox.plugins.plugin_utils.fleet import FILTER_SPEC, filter_of


class ActionModule(PveAction):
    SPEC = {
        **FILTER_SPEC,
        "identity": IDENTITY_SPEC,
        "config": {"type": "bool", "default": False},
        "snapshots": {"type": "bool", "default": False},
        "addresses": {"type": "bool", "default": False},
    }

    def work(self, client: Client, options: dict[str, Any], check: bool) -> dict[str, Any]:
        wanted = identity(options)
        found = fleet.machines(client, filter_of(options))
        if wanted and wanted.get("machine"):
            tag = f"id-{wanted.get('machine').replace('-', '')}"
            found = [machine for machine in found if tag in machine["tags"]] or found
        if wanted or options["config"] or options["snapshots"]:
            found = fleet.with_config(client, found)
        if wanted:
            found = [machine for machine in found if wanted.owns(machine["config"].get("description"))]
            if not (options["config"] or options["snapshots"]):
                found = [{key: value for key, value in machine.items() if key != "config"} for machine in found]
        if options["snapshots"]:
            for machine, listed in zip(found, fleet.each(found, lambda one: _snapshots(client, one)), strict=True):
                machine["snapshots"] = listed
        if options["addresses"]:
            for machine, listed in zip(found, fleet.each(found, lambda one: _addresses(client, one)), strict=True):
                machine["addresses"] = listed
        return {"changed": False, "machines": found}


def _snapshots(client: Client, machine: dict[str, Any]) -> list[dict[str, Any]]:
    if machine["template"]:
        return []
    return list(Checkpoints(Machines(client, machine["node"])).snapshots(machine["vm_id"]).values())


def _addresses(client: Client, machine: dict[str, Any]) -> list[str]:
    return fleet.addresses(client, machine) if machine["status"] == "running" else []
