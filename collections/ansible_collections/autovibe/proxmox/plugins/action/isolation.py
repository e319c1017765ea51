# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`autovibe.proxmox.isolation`: a VM's firewall. Documented in plugins/modules/isolation.py."""

from __future__ import annotations

from typing import Any

from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.firewall import (
    Firewall,
    Policy,
    refuse_nonsense,
    seen,
)
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.machines import Machines
from ansible_collections.autovibe.proxmox.plugins.plugin_utils.action import (
    IDENTITY_SPEC,
    Client,
    PveAction,
    diff,
    identity,
)
from ansible_collections.autovibe.proxmox.plugins.plugin_utils.lookup import machine_id

LEVELS = ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug", "nolog"]
POLICIES = ["ACCEPT", "REJECT", "DROP"]
OPTIONS_SPEC = {
    "type": "dict",
    "options": {
        "enable": {"type": "bool"},
        "policy_in": {"type": "str", "choices": POLICIES},
        "policy_out": {"type": "str", "choices": POLICIES},
        "dhcp": {"type": "bool"},
        "ndp": {"type": "bool"},
        "radv": {"type": "bool"},
        "macfilter": {"type": "bool"},
        "ipfilter": {"type": "bool"},
        "log_level_in": {"type": "str", "choices": LEVELS},
        "log_level_out": {"type": "str", "choices": LEVELS},
    },
}
RULES_SPEC = {
    "type": "list",
    "elements": "dict",
    "options": {
        "type": {"type": "str", "choices": ["in", "out", "group"], "default": "in"},
        "action": {"type": "str", "required": True},
        "enable": {"type": "bool", "default": True},
        "macro": {"type": "str"},
        "proto": {"type": "str"},
        "source": {"type": "str"},
        "dest": {"type": "str"},
        "sport": {"type": "str"},
        "dport": {"type": "str"},
        "icmp_type": {"type": "str"},
        "iface": {"type": "str"},
        "log": {"type": "str", "choices": LEVELS},
        "comment": {"type": "str"},
    },
}
NAMED = {"name": {"type": "str", "required": True}, "comment": {"type": "str"}}
ENTRIES_SPEC = {
    "type": "list",
    "elements": "dict",
    "options": {
        "cidr": {"type": "str", "required": True},
        "nomatch": {"type": "bool", "default": False},
        "comment": {"type": "str"},
    },
}


class ActionModule(PveAction):
    SPEC = {
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "vm_id": {"type": "int"},
        "machine_name": {"type": "str"},
        "identity": IDENTITY_SPEC,
        "options": OPTIONS_SPEC,
        "aliases": {
            "type": "list",
            "elements": "dict",
            "options": {**NAMED, "cidr": {"type": "str", "required": True}},
        },
        "ipsets": {"type": "list", "elements": "dict", "options": {**NAMED, "entries": ENTRIES_SPEC}},
        "groups": {"type": "list", "elements": "dict", "options": {**NAMED, "rules": RULES_SPEC}},
        "rules": RULES_SPEC,
    }
    CONSTRAINTS = {"required_one_of": [("vm_id", "machine_name", "identity")]}

    def work(self, client: Client, options: dict[str, Any], check: bool) -> dict[str, Any]:
        machines = Machines(client, options["node"], options["timeout"])
        policy = _policy(options)
        refuse_nonsense(policy)
        vmid = machine_id(machines, options)
        vm = seen(machines, vmid)
        machines.check_identity(vm, identity(options))
        firewall = Firewall(machines, vmid)
        change = firewall.ensure(vm, policy, absent=options["state"] == "absent", check=check)
        result = {"changed": change.changed, "diff": diff(change.before, change.after), "isolation": change.facts}
        if firewall.warnings:
            result["warnings"] = firewall.warnings
        return result


def _policy(options: dict[str, Any]) -> Policy:
    groups = options["groups"]
    if groups is not None:
        groups = [{**group, "rules": _rules(group["rules"])} for group in groups]
    rules = None if options["rules"] is None else _rules(options["rules"])
    return Policy(options["options"], options["aliases"], options["ipsets"], groups, rules)


def _rules(given: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """By Proxmox VE's names: `icmp-type`."""
    return [{key.replace("_", "-"): value for key, value in rule.items()} for rule in given or []]
