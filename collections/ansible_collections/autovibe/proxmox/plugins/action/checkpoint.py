# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`autovibe.proxmox.checkpoint`: snapshots, rollback, promotion, retention. See plugins/modules/checkpoint.py."""

from __future__ import annotations

from typing import Any

from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.checkpoints import Checkpoint, Checkpoints
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.errors import NotFound
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.machines import Change, Machines
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.promotion import promoted
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.retention import Keep
from ansible_collections.autovibe.proxmox.plugins.plugin_utils.action import Client, PveAction, diff, identity
from ansible_collections.autovibe.proxmox.plugins.plugin_utils.lookup import (
    MACHINE_CONSTRAINT,
    MACHINE_SPEC,
    machine_id,
)

KEEP_SPEC = {
    "type": "dict",
    "options": {
        **{name: {"type": "int", "default": 0} for name in ("last", "hourly", "daily", "weekly", "monthly", "yearly")},
        "milestones": {"type": "list", "elements": "str", "default": []},
        "among": {"type": "list", "elements": "str", "default": ["*"]},
        "parents": {"type": "bool", "default": False},
    },
}


class ActionModule(PveAction):
    SPEC = {
        "state": {
            "type": "str",
            "choices": ["present", "restored", "absent", "promoted", "retained"],
            "default": "present",
        },
        **MACHINE_SPEC,
        "expected_uuid": {"type": "str"},
        "name": {"type": "str"},
        "description": {"type": "str"},
        "ram": {"type": "bool", "default": False},
        "freeze": {"type": "bool", "default": True},
        "freeze_timeout": {"type": "int", "default": 60},
        "carrier": {"type": "str", "choices": ["snapshot", "template", "auto"], "default": "snapshot"},
        "start": {"type": "bool", "default": False},
        "promote_vm_id": {"type": "int"},
        "pool": {"type": "str"},
        "storage": {"type": "str"},
        "tags": {"type": "list", "elements": "str"},
        "keep": KEEP_SPEC,
    }
    CONSTRAINTS = {
        "required_one_of": [MACHINE_CONSTRAINT],
        "required_if": [
            ("state", "present", ("name",)),
            ("state", "restored", ("name",)),
            ("state", "absent", ("name",)),
            ("state", "promoted", ("name",)),
            ("state", "retained", ("keep",)),
        ],
    }

    def work(self, client: Client, options: dict[str, Any], check: bool) -> dict[str, Any]:
        machines = Machines(client, options["node"], options["timeout"])
        checkpoints = Checkpoints(machines)
        state = options["state"]
        try:
            vmid = machine_id(machines, options)
        except NotFound:
            if state != "absent":
                raise
            machines.refuse_elsewhere(None, identity(options))
            gone = {**checkpoints.facts(None, options["name"], "snapshot"), "exists": False}
            return _result(Change({}, {}, gone), "checkpoint")
        if options["expected_uuid"] is not None and (config := machines.config(vmid)) is not None:
            machines.check_uuid(vmid, config, options["expected_uuid"])
        if state == "retained":
            keep = Keep(**{key: tuple(it) if isinstance(it, list) else it for key, it in options["keep"].items()})
            change = checkpoints.retained(vmid, identity(options), keep, check=check)
            return _result(change, "retention")
        wanted = Checkpoint(identity=identity(options), **{key: options[key] for key in _OF_CHECKPOINT})
        if state == "promoted":
            change = promoted(checkpoints, vmid, wanted, options["promote_vm_id"], pool=options["pool"], check=check)
        else:
            change = getattr(checkpoints, state)(vmid, wanted, check=check)
        result = _result(change, "checkpoint")
        return result | ({"warnings": wanted.warnings} if wanted.warnings else {})


_OF_CHECKPOINT = (
    "name",
    "description",
    "ram",
    "freeze",
    "freeze_timeout",
    "carrier",
    "start",
    "tags",
    "storage",
)


def _result(change: Any, noun: str) -> dict[str, Any]:
    return {"changed": change.changed, "diff": diff(change.before, change.after), noun: change.facts}
