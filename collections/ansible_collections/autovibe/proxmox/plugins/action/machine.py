# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`autovibe.proxmox.machine`: one VM, in its state. Documented in plugins/modules/machine.py."""

from __future__ import annotations

from typing import Any

from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.config import Wanted
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.errors import NotFound, SettingsError
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.guest import Guest, described
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.machines import Machines
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.node import Image, Source
from ansible_collections.autovibe.proxmox.plugins.plugin_utils.action import (
    IDENTITY_SPEC,
    Client,
    PveAction,
    diff,
    identity,
)

#: How long a guest may take to boot when files are to be put into it.
AGENT_SECONDS = 180

NET_SPEC = {
    "type": "dict",
    "options": {
        "model": {"type": "str", "choices": ["virtio", "e1000", "e1000e", "rtl8139", "vmxnet3"]},
        "bridge": {"type": "str"},
        "mac": {"type": "str"},
        "tag": {"type": "int"},
        "firewall": {"type": "bool"},
        "rate": {"type": "float"},
    },
}
SMBIOS_SPEC = {
    "type": "dict",
    "options": {
        name: {"type": "str"} for name in ("manufacturer", "product", "version", "serial", "sku", "family", "uuid")
    },
}
SOURCE_SPEC = {
    "type": "dict",
    "options": {
        "vm_id": {"type": "int"},
        "name": {"type": "str"},
        "snapshot": {"type": "str"},
        "image": {"type": "str"},
    },
    "mutually_exclusive": [("vm_id", "name", "image"), ("image", "snapshot")],
    "required_one_of": [("vm_id", "name", "image")],
}
FILE_SPEC = {
    "type": "list",
    "elements": "dict",
    "options": {
        "path": {"type": "str", "required": True},
        "src": {"type": "path", "required": True},
        "mode": {"type": "str", "default": "0600"},
        "owner": {"type": "str"},
    },
}


class ActionModule(PveAction):
    SPEC = {
        "state": {
            "type": "str",
            "choices": ["present", "started", "stopped", "paused", "absent"],
            "default": "present",
        },
        "vm_id": {"type": "int"},
        "name": {"type": "str"},
        "identity": IDENTITY_SPEC,
        "expected_uuid": {"type": "str"},
        "source": SOURCE_SPEC,
        "full": {"type": "bool", "default": False},
        "storage": {"type": "str"},
        "pool": {"type": "str"},
        "description": {"type": "str", "aliases": ["notes"]},
        "tags": {"type": "list", "elements": "str"},
        "cores": {"type": "int"},
        "memory": {"type": "int"},
        "disk_size": {"type": "str"},
        "net": NET_SPEC,
        "ip": {"type": "str"},
        "gateway": {"type": "str"},
        "ciuser": {"type": "str"},
        "cipassword": {"type": "str", "no_log": True},
        "update_password": {
            "type": "str",
            "choices": ["on_create", "always"],
            "default": "on_create",
            "no_log": False,
        },
        "sshkeys": {"type": "str", "no_log": False},
        "nameservers": {"type": "list", "elements": "str"},
        "searchdomain": {"type": "str"},
        "smbios": SMBIOS_SPEC,
        "protection": {"type": "bool"},
        "onboot": {"type": "bool"},
        "options": {"type": "dict", "default": {}},
        "wait_agent": {"type": "int", "default": 0},
        "files": FILE_SPEC,
        "shutdown_timeout": {"type": "int", "default": 0},
        "force": {"type": "bool", "default": False},
    }
    CONSTRAINTS = {"required_one_of": [("vm_id", "name", "identity")]}

    def work(self, client: Client, options: dict[str, Any], check: bool) -> dict[str, Any]:
        machines = Machines(client, options["node"], options["timeout"])
        wanted = _wanted(options)
        files = [(spec, self.read_file(spec["src"], "files.src")) for spec in options["files"] or []]
        if options["state"] == "absent":
            change = machines.remove(options["vm_id"], wanted, force=options["force"], check=check)
            return {"changed": change.changed, "diff": diff(change.before, change.after), "machine": change.facts}
        source = (lambda: _source(machines, options)) if options["source"] else None
        change = machines.ensure(
            options["vm_id"],
            wanted,
            source=source,
            state=options["state"],
            shutdown_timeout=options["shutdown_timeout"],
            check=check,
        )
        pushed: list[tuple[dict[str, Any], dict[str, Any]]] = []
        warnings = []
        if change.facts["status"] == "running":
            pushed = self._push(client, options, change, files, check)
        elif files:
            where = f"VM {change.facts['vm_id'] or ''}".rstrip()
            warnings = [f"{where} is {change.facts['status']}: its files are not put into it; say state: started."]
        before, after = dict(change.before), dict(change.after)
        if pushed:
            before["files"], after["files"] = [one[0] for one in pushed], [one[1] for one in pushed]
        result = {"changed": before != after, "diff": diff(before, after), "machine": change.facts}
        return result | ({"warnings": warnings} if warnings else {})

    def _push(self, client: Client, options: dict[str, Any], change: Any, files: list[Any], check: bool) -> list[Any]:
        """Before and after of each file; a guest that is only going to run has none of them yet."""
        guest = Guest(client, change.facts["node"], change.facts["vm_id"] or 0)
        if not check and (files or options["wait_agent"]):
            guest.wait(options["wait_agent"] or AGENT_SECONDS)
        return [
            guest.put(spec["path"], content, mode=spec["mode"], owner=spec["owner"], check=check)
            if change.live
            else ({}, described(spec["path"], content, spec["mode"], spec["owner"]))
            for spec, content in files
        ]


#: Options that are the fields of what is wanted, under the same name.
SAME = (
    "name",
    "expected_uuid",
    "tags",
    "cores",
    "memory",
    "disk_size",
    "net",
    "ip",
    "gateway",
    "ciuser",
    "cipassword",
    "sshkeys",
    "nameservers",
    "searchdomain",
    "smbios",
    "protection",
    "onboot",
    "options",
    "pool",
)


def _wanted(options: dict[str, Any]) -> Wanted:
    return Wanted(
        identity=identity(options),
        notes=options["description"],
        new_password=options["update_password"] == "always",
        **{key: options[key] for key in SAME},
    )


def _source(machines: Machines, options: dict[str, Any]) -> Source | Image:
    given, storage = options["source"], options["storage"]
    if given["image"]:
        if not storage:
            raise SettingsError("A VM that is made of an image needs storage, where its disk goes.")
        return Image(given["image"], storage)
    vmid, node = given["vm_id"], None
    if vmid is None:
        vmid, node = _named_source(machines, options)
    # Disks that go to another storage are copied.
    return Source(vmid, given["snapshot"], options["full"] or bool(storage), storage, node)


def _named_source(machines: Machines, options: dict[str, Any]) -> tuple[int, str | None]:
    """The source of a name: on the node that is given or, where it has none, on another one, which is named then."""
    given = options["source"]
    try:
        return _named(machines, given), None
    except NotFound:
        if options["node"] is None:
            raise
        anywhere = Machines(machines.client, None, options["timeout"])
        return _named(anywhere, given), anywhere.node


def _named(machines: Machines, given: dict[str, Any]) -> int:
    if not given["snapshot"]:
        return machines.template(given["name"])
    vmid = machines.find(name=given["name"])
    if vmid is None:
        raise NotFound(f"There is no VM '{given['name']}' to clone the snapshot '{given['snapshot']}' of.")
    return vmid
