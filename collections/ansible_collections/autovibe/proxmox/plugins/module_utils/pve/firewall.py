# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM's firewall as one desired state: options, aliases, sets, rules, and the security groups that it uses.

What is given is the whole: what is there besides is removed. What is not given is neither read nor touched. Positions
shift under whoever else edits, so each list is read again after it was written, until it is as it is wanted.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .config import parse_net
from .errors import Forbidden, NotFound, NotPossible, TaskTimeout
from .machines import Change, Machines, persist
from .node import Seen
from .rules import Rule, edits, normal

OPTIONS = (
    "enable",
    "policy_in",
    "policy_out",
    "dhcp",
    "ndp",
    "radv",
    "macfilter",
    "ipfilter",
    "log_level_in",
    "log_level_out",
)
ACTIONS = ("ACCEPT", "REJECT", "DROP")
#: Of aliases, IP sets and groups
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]+")
#: How often a list that somebody else edits meanwhile is set right again.
ROUNDS = 5


@dataclass(frozen=True)
class Policy:
    """What a VM's firewall is to be; None is left as it is. Names are Proxmox VE's, all in lower case."""

    options: dict[str, Any] | None = None
    aliases: list[dict[str, Any]] | None = None
    ipsets: list[dict[str, Any]] | None = None
    groups: list[dict[str, Any]] | None = None
    rules: list[dict[str, Any]] | None = None

    def state(self) -> dict[str, Any]:
        """As before and after show it, and as `Firewall.read` finds it."""
        found: dict[str, Any] = {}
        if self.groups is not None:
            found["groups"] = {
                one["name"].lower(): _commented(one, rules=[normal(rule) for rule in one.get("rules") or []])
                for one in self.groups
            }
        if self.aliases is not None:
            found["aliases"] = {one["name"].lower(): _commented(one, cidr=cidr(one["cidr"])) for one in self.aliases}
        if self.ipsets is not None:
            found["ipsets"] = {
                one["name"].lower(): _commented(one, entries=_entries(one.get("entries") or [])) for one in self.ipsets
            }
        if self.options is not None:
            found["options"] = {key: _value(self.options[key]) for key in OPTIONS if self.options.get(key) is not None}
        if self.rules is not None:
            found["rules"] = [normal(rule) for rule in self.rules]
        return found

    def nothing(self) -> Policy:
        """The same things, each of them gone."""
        return Policy({}, [], [], None if self.groups is None else self.groups, [])


class Firewall:
    """The firewall of one VM, and the cluster's security groups."""

    def __init__(self, machines: Machines, vmid: int):
        self.machines, self.client, self.vmid = machines, machines.client, vmid
        self.path = machines.path(vmid, "firewall")
        self.warnings: list[str] = []

    def ensure(self, seen: Seen, policy: Policy, *, absent: bool = False, check: bool = False) -> Change:
        """The state that is wanted; with `absent` an empty firewall, without the groups that are named."""
        policy = policy.nothing() if absent else policy
        wanted = policy.state()
        if absent and policy.groups is not None:
            wanted["groups"] = {}
        names = [group["name"].lower() for group in policy.groups or []]
        before = self.read(wanted, names)
        after = self._predicted(before, wanted)
        if before != after and not check:
            persist(lambda: self._converge(after, names))
        return Change(before, after, self._facts(seen, after))

    def read(self, wanted: dict[str, Any], groups: list[str]) -> dict[str, Any]:
        """Of what is wanted, what is there."""
        found: dict[str, Any] = {}
        if "groups" in wanted:
            listed = {one["group"].lower(): one for one in self.client.get("/cluster/firewall/groups")}
            found["groups"] = {
                name: _commented(listed[name], rules=self._rules(_group(name))) for name in groups if name in listed
            }
        if "aliases" in wanted:
            listed = self.client.get(f"{self.path}/aliases")
            found["aliases"] = {one["name"].lower(): _commented(one, cidr=cidr(one["cidr"])) for one in listed}
        if "ipsets" in wanted:
            found["ipsets"] = {
                one["name"].lower(): _commented(one, entries=_entries(self.client.get(self._set(one["name"]))))
                for one in self.client.get(f"{self.path}/ipset")
            }
        if "options" in wanted:
            options = self.client.get(f"{self.path}/options")
            found["options"] = {key: _value(options[key]) for key in OPTIONS if key in options}
        if "rules" in wanted:
            found["rules"] = self._rules(f"{self.path}/rules")
        return found

    def _predicted(self, before: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
        """What is wanted, with the comments that were not asked about."""
        after = dict(wanted)
        for kind in ("groups", "ipsets", "aliases"):
            for name, one in wanted.get(kind, {}).items():
                comment = before[kind].get(name, {}).get("comment")
                if comment is not None and "comment" not in one:
                    after[kind] = {**after[kind], name: {"comment": comment, **one}}
        return after

    def _converge(self, wanted: dict[str, Any], groups: list[str]) -> None:
        """What rules name is made before them and removed after them.

        Options come first: nothing is open then that is to be closed. But a firewall that is off is switched on last:
        all is open until then, and a rule that is refused would leave the VM with a policy and no rules.
        """
        for _round in range(ROUNDS):
            found = self.read(wanted, groups)
            if found == wanted:
                return
            switched_on = wanted.get("options", {}).get("enable") and not found.get("options", {}).get("enable")
            if not switched_on:
                self._set_options(found, wanted)
            self._make_aliases(found, wanted)
            self._make_ipsets(found, wanted)
            self._make_groups(found, wanted)
            self._set_rules(f"{self.path}/rules", found.get("rules"), wanted.get("rules"))
            if switched_on:
                self._set_options(found, wanted)
            self._remove(found, wanted)
        raise TaskTimeout(f"The firewall of VM {self.vmid} is being changed by somebody else; run this again.")

    def _set_options(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        have, want = found.get("options", {}), wanted.get("options", {})
        values = {key: value for key, value in want.items() if have.get(key) != value}
        gone = ",".join(sorted(set(have) - set(want)))
        if values or gone:
            self.client.put(f"{self.path}/options", **values, delete=gone or None)

    def _make_aliases(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        for name, want, have in _differing(found, wanted, "aliases"):
            if have is None:
                self.client.post(f"{self.path}/aliases", name=name, **want)
            else:
                self.client.put(f"{self.path}/aliases/{name}", **want)

    def _make_ipsets(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        for name, want, have in _differing(found, wanted, "ipsets"):
            if have is None:
                self.client.post(f"{self.path}/ipset", name=name, comment=want.get("comment"))
            elif have.get("comment") != want.get("comment"):
                self.client.post(f"{self.path}/ipset", name=name, rename=name, comment=want["comment"])
            entries = have["entries"] if have else {}
            for one, values in want["entries"].items():
                if one not in entries:
                    self.client.post(self._set(name), cidr=one, **values)
                elif entries[one] != values:
                    cleared = {"comment": "", "nomatch": 0}
                    self.client.put(self._set(name, one), **{**{k: cleared[k] for k in entries[one]}, **values})
            for one in set(entries) - set(want["entries"]):
                self.client.delete(self._set(name, one))

    def _make_groups(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        for name, want, have in _differing(found, wanted, "groups"):
            if have is None:
                self.client.post("/cluster/firewall/groups", group=name, comment=want.get("comment"))
            elif have.get("comment") != want.get("comment"):
                self.client.post("/cluster/firewall/groups", group=name, rename=name, comment=want["comment"])
            self._set_rules(_group(name), have["rules"] if have else [], want["rules"])

    def _set_rules(self, path: str, found: list[Rule] | None, wanted: list[Rule] | None) -> None:
        for edit in edits(found or [], wanted or []) if wanted is not None else []:
            one = f"{path}/{edit.position}"
            if edit.kind == "add":
                self.client.post(path, **edit.rule)
            elif edit.kind == "delete":
                self.client.delete(one)
            elif edit.kind == "move":
                self.client.put(one, moveto=edit.to)
            else:
                old = found[edit.position]
                gone = ",".join(sorted(set(old) - set(edit.rule)))
                values = {key: value for key, value in edit.rule.items() if old.get(key) != value}
                self.client.put(one, **values, delete=gone or None)
            found = edit.applied(found or [])

    def _remove(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        for name in set(found.get("ipsets", {})) - set(wanted.get("ipsets", {})):
            self.client.delete(self._set(name), force=True)
        for name in set(found.get("aliases", {})) - set(wanted.get("aliases", {})):
            self.client.delete(f"{self.path}/aliases/{name}")
        for name in set(found.get("groups", {})) - set(wanted.get("groups", {})):
            self._set_rules(_group(name), found["groups"][name]["rules"], [])
            self.client.delete(_group(name))

    def _rules(self, path: str) -> list[Rule]:
        listed = sorted(self.client.get(path), key=lambda rule: int(rule["pos"]))
        return [normal(rule) for rule in listed]

    def _set(self, name: str, entry: str | None = None) -> str:
        # The slash of a network stands in the path as it is: that is how Proxmox VE takes it.
        return f"{self.path}/ipset/{name}" + (f"/{entry}" if entry else "")

    def _facts(self, seen: Seen, state: dict[str, Any]) -> dict[str, Any]:
        facts = {"vm_id": self.vmid, "node": self.machines.node, "enforced": None, **state}
        if not state.get("options", {}).get("enable"):
            return {**facts, "enforced": False if "options" in state else None}
        nics = {key: parse_net(value) for key, value in seen.config.items() if key.startswith("net")}
        open_nics = sorted(name for name, nic in nics.items() if nic.get("firewall") != "1")
        if open_nics:
            self.warnings.append(f"VM {self.vmid}: the firewall does not filter {', '.join(open_nics)} (firewall=1).")
        try:
            cluster = bool(int(self.client.get("/cluster/firewall/options").get("enable") or 0))
        except Forbidden:  # needs Sys.Audit on /
            return {**facts, "enforced": False if open_nics else None}
        if not cluster:
            self.warnings.append("The firewall is off for the whole datacenter: no VM's firewall filters anything.")
        return {**facts, "enforced": cluster and not open_nics}


def cidr(text: str) -> str:
    """An address or network as it is compared: no /32, IPv6 in its short form; an alias in lower case."""
    try:
        network = ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        return text.strip().lower()
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def seen(machines: Machines, vmid: int) -> Seen:
    """The VM; firewall rules of one that is missing would be an empty list."""
    found = machines.look(vmid)
    if found is None:
        raise NotFound(f"VM {vmid} does not exist on node {machines.node}.")
    return found


def refuse_nonsense(policy: Policy) -> None:
    """What Proxmox VE would refuse in the middle of it all, of what can be said without asking it."""
    for kind in ("aliases", "ipsets", "groups"):
        names = [one["name"].lower() for one in getattr(policy, kind) or []]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise NotPossible(f"{kind}: {', '.join(twice)} is named twice; names differ in more than their case.")
        if wrong := [name for name in names if not NAME.fullmatch(name)]:
            raise NotPossible(f"{kind}: '{wrong[0]}' is no name: a letter, then letters, digits, '-' and '_'.")
    for alias in policy.aliases or []:
        if not _is_network(alias["cidr"]):
            raise NotPossible(f"aliases: '{alias['cidr']}' is neither an address nor a network.")
    groups = [(f"groups.{group['name']}", group.get("rules") or []) for group in policy.groups or []]
    for where, rules in [("rules", policy.rules or []), *groups]:
        for number, rule in enumerate(rules):
            if reason := _wrong(rule):
                raise NotPossible(f"{where}[{number}]: {reason}.")


def _wrong(rule: Rule) -> str | None:
    if rule["type"] != "group" and rule["action"] not in ACTIONS:
        return f"'{rule['action']}' is no action; one of {', '.join(ACTIONS)}, or type: group for a security group"
    if (rule.get("dport") or rule.get("sport")) and not rule.get("proto"):
        return "ports need proto, such as tcp"
    return None


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        return False
    return True


def _group(name: str) -> str:
    return f"/cluster/firewall/groups/{name}"


def _differing(
    found: dict[str, Any], wanted: dict[str, Any], kind: str
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any] | None]]:
    for name, want in wanted.get(kind, {}).items():
        have = found[kind].get(name)
        if have != want:
            yield name, want, have


def _commented(one: dict[str, Any], **values: Any) -> dict[str, Any]:
    comment = str(one.get("comment") or "").strip()
    return {**({"comment": comment} if comment else {}), **values}


def _entries(listed: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        cidr(one["cidr"]): _commented(one, **({"nomatch": 1} if int(one.get("nomatch") or 0) else {}))
        for one in sorted(listed, key=lambda one: cidr(one["cidr"]))
    }


def _value(value: Any) -> Any:
    return int(value) if isinstance(value, bool) or str(value).isdigit() else value
