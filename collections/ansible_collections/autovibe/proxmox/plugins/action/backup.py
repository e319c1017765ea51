# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`autovibe.proxmox.backup`: backups of a machine. Documented in plugins/modules/backup.py."""

from __future__ import annotations

from typing import Any

from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.backups import Backup, Backups
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.errors import SettingsError
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.machines import Machines
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.restoring import Restore, restored
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.retention import Keep
from ansible_collections.autovibe.proxmox.plugins.plugin_utils.action import (
    Client,
    PveAction,
    diff,
    identity,
    identity_of,
)
from ansible_collections.autovibe.proxmox.plugins.plugin_utils.lookup import MACHINE_SPEC, machine_id

COUNTS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


class ActionModule(PveAction):
    SPEC = {
        "state": {"type": "str", "choices": ["present", "absent", "restored", "verified"], "default": "present"},
        **MACHINE_SPEC,
        "storage": {"type": "str"},
        "volume": {"type": "str"},
        "max_age": {"type": "int"},
        "notes": {"type": "str"},
        "protected": {"type": "bool"},
        "mode": {"type": "str", "choices": ["snapshot", "suspend", "stop"], "default": "snapshot"},
        "compress": {"type": "str", "choices": ["0", "gzip", "lzo", "zstd"]},
        "keep": {"type": "dict", "options": {name: {"type": "int", "default": 0} for name in COUNTS}},
        "force": {"type": "bool", "default": False},
        "restore_vm_id": {"type": "int"},
        "restore_storage": {"type": "str"},
        "restore_identity": {**MACHINE_SPEC["identity"]},
        "pool": {"type": "str"},
        "unique": {"type": "bool", "default": True},
        "start": {"type": "bool", "default": False},
    }
    CONSTRAINTS = {
        "required_one_of": [("volume", "vm_id", "machine_name", "identity")],
        "required_if": [("state", "present", ("storage",)), ("state", "absent", ("volume",))],
    }

    def work(self, client: Client, options: dict[str, Any], check: bool) -> dict[str, Any]:
        backups = Backups(Machines(client, options["node"], options["timeout"]))
        state, keep = options["state"], options["keep"]
        if (options["max_age"] or 0) < 0:
            raise SettingsError("max_age: at least 0, which makes a backup now.")
        wanted = Backup(
            keep=Keep(**keep) if keep else None,
            identity=identity(options),
            storage=options["storage"] or "",
            **{key: options[key] for key in ("max_age", "notes", "protected", "mode", "compress", "force")},
        )
        if state == "present":
            change = backups.present(machine_id(backups.machines, options), wanted, check=check)
        elif state == "absent":
            change = backups.absent(options["volume"], wanted, check=check)
        elif state == "verified":
            change = backups.verified(_volume(backups, options), check=check)
        else:
            change = restored(backups, _restore(backups, options), check=check)
        noun = "machine" if state == "restored" else "backup"
        return {"changed": change.changed, "diff": diff(change.before, change.after), noun: change.facts}


def _volume(backups: Backups, options: dict[str, Any]) -> str:
    """The backup that is named, or the newest one of the machine on the storage."""
    if options["volume"]:
        return options["volume"]
    if not options["storage"]:
        raise SettingsError("Give volume, or storage: the newest backup there is taken.")
    vmid = machine_id(backups.machines, options)
    backups.machines.locate(vmid)
    return backups.newest(vmid, options["storage"])


def _restore(backups: Backups, options: dict[str, Any]) -> Restore:
    own = identity_of(options["restore_identity"], "restore_identity")
    if options["restore_vm_id"] is None and own is None:
        raise SettingsError("Give restore_vm_id or restore_identity: without one, each run would restore another VM.")
    return Restore(
        volume=_volume(backups, options),
        vmid=options["restore_vm_id"],
        storage=options["restore_storage"],
        identity=own,
        **{key: options[key] for key in ("pool", "unique", "start")},
    )
