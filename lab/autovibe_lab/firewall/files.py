"""Firewall configuration in Proxmox's own form: `cluster.fw`, `host.fw` and one `<vmid>.fw` a guest.

::

    [OPTIONS]

    enable: 1

    [ALIASES]

    hub 192.168.100.2 # comment

    [IPSET allow] # comment

    10.1.0.0/16
    !10.1.2.3

    [RULES]

    |IN SSH(ACCEPT) -i net0 # a rule that is not enabled
    GROUP web -i net0

    [group web] # a security group, only in cluster.fw

    IN ACCEPT -p tcp -dport 443
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

Entry = dict[str, object]

#: A rule's options in the file and in the API, in the order in which they are written.
RULE_OPTIONS = {
    "-i": "iface",
    "-source": "source",
    "-dest": "dest",
    "-p": "proto",
    "-dport": "dport",
    "-sport": "sport",
    "-icmp-type": "icmp-type",
    "-log": "log",
}


@dataclass
class Firewall:
    """One file. Names of aliases, sets and groups are lower case; an alias keeps how its name was written."""

    options: Entry = field(default_factory=dict)
    aliases: dict[str, Entry] = field(default_factory=dict)
    ipsets: dict[str, list[Entry]] = field(default_factory=dict)
    ipset_comments: dict[str, str] = field(default_factory=dict)
    rules: list[Entry] = field(default_factory=list)
    groups: dict[str, list[Entry]] = field(default_factory=dict)
    group_comments: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Firewall:
        found, kind, name = cls(), "", ""
        for raw in text.splitlines():
            line = raw.strip()
            if match := re.fullmatch(r"\[(\w+)(?:\s+(\S+))?\]\s*(?:#\s*(.*))?", line):
                kind, name = match[1].lower(), (match[2] or "").lower()
                found._section(kind, name, match[3])
            elif line and not line.startswith("#"):
                found._line(kind, name, line)
        return found

    def _section(self, kind: str, name: str, comment: str | None) -> None:
        if kind == "ipset":
            self.ipsets[name] = []
            self.ipset_comments |= {name: comment} if comment else {}
        elif kind == "group":
            self.groups[name] = []
            self.group_comments |= {name: comment} if comment else {}

    def _line(self, kind: str, name: str, line: str) -> None:
        body, _, comment = (part.strip() for part in line.partition("#"))
        extra = {"comment": comment} if comment else {}
        if kind == "options":
            key, _, value = line.partition(":")
            self.options[key.strip()] = int(value) if value.strip().isdigit() else value.strip()
        elif kind == "aliases":
            alias, cidr = body.split()
            self.aliases[alias.lower()] = {"name": alias, "cidr": cidr, "ipversion": version_of(cidr)} | extra
        elif kind == "ipset":
            entry: Entry = {"cidr": body.lstrip("!").strip()} | ({"nomatch": 1} if body.startswith("!") else {})
            self.ipsets[name].append(entry | extra)
        elif kind == "rules":
            self.rules.append(parse_rule(body) | extra)
        elif kind == "group":
            self.groups[name].append(parse_rule(body) | extra)

    def text(self) -> str:
        parts = []
        if self.options:
            parts.append("[OPTIONS]\n\n" + "".join(f"{key}: {self.options[key]}\n" for key in sorted(self.options)))
        if self.aliases:
            lines = (f"{entry['name']} {entry['cidr']}{_comment(entry)}\n" for _, entry in sorted(self.aliases.items()))
            parts.append("[ALIASES]\n\n" + "".join(lines))
        for name, entries in sorted(self.ipsets.items()):
            lines = map(_entry_line, sorted(entries, key=lambda entry: str(entry["cidr"])))
            parts.append(f"[IPSET {name}]{_title(self.ipset_comments.get(name))}\n\n" + "".join(lines))
        if self.rules:
            parts.append("[RULES]\n\n" + "".join(map(format_rule, self.rules)))
        for name, rules in sorted(self.groups.items()):
            title = f"[group {name}]{_title(self.group_comments.get(name))}\n\n"
            parts.append(title + "".join(map(format_rule, rules)))
        return "".join(f"{part}\n" for part in parts)


def _entry_line(entry: Entry) -> str:
    return "!" * bool(entry.get("nomatch")) + f"{entry['cidr']}{_comment(entry)}\n"


def _comment(entry: Entry) -> str:
    return f" # {' '.join(str(entry['comment']).split())}" if entry.get("comment") else ""


def _title(comment: str | None) -> str:
    return f" # {comment}" if comment else ""


def version_of(cidr: str) -> int:
    """4 or 6."""
    return ipaddress.ip_network(cidr, strict=False).version


def addresses_version(text: str) -> int | None:
    """The IP version of a rule's source or destination; None for the name of a set or an alias."""
    first = re.split(r"[,-]", text)[0]
    try:
        return version_of(first)
    except ValueError:
        return None


def parse_rule(line: str) -> Entry:
    """`|IN SSH(ACCEPT) -i net0` → the rule as the API shows it."""
    rule: Entry = {"enable": int(not line.startswith("|"))}
    kind, action, *rest = line.lstrip("|").split()
    rule |= {"type": kind.lower()}
    if match := re.fullmatch(r"(\S+)\((\S+)\)", action):
        rule |= {"macro": match[1], "action": match[2]}
    else:
        rule["action"] = action
    for option, value in zip(rest[::2], rest[1::2], strict=False):
        rule[RULE_OPTIONS.get(option, option)] = value
    if version := rule_version(rule):
        rule["ipversion"] = version
    return rule


def rule_version(rule: Entry) -> int | None:
    """The IP version that a rule's protocol and addresses bind it to."""
    if rule.get("proto") in ("icmpv6", "ipv6-icmp"):
        return 6
    if rule.get("proto") == "icmp":
        return 4
    return next((found for key in ("source", "dest") if (found := addresses_version(str(rule.get(key, ""))))), None)


def format_rule(rule: Entry) -> str:
    action = f"{rule['macro']}({rule['action']})" if rule.get("macro") else rule["action"]
    parts = [("" if rule.get("enable") else "|") + str(rule["type"]).upper(), str(action)]
    parts += [f"{option} {rule[key]}" for option, key in RULE_OPTIONS.items() if rule.get(key)]
    return " ".join(parts) + _comment(rule) + "\n"


class Files:
    """The firewall's files in a folder, the node's own in `host` of its. A file that says nothing is no file."""

    def __init__(self, folder: Path, host: Path | None = None) -> None:
        self.folder = folder
        self.host = host or folder

    def path(self, name: object) -> Path:
        """`cluster`, `host`, or a guest's id."""
        return (self.host if name == "host" else self.folder) / f"{name}.fw"

    def load(self, name: object) -> Firewall:
        path = self.path(name)
        return Firewall.parse(path.read_text()) if path.exists() else Firewall()

    def save(self, name: object, content: Firewall) -> None:
        self.write(name, content.text())

    def write(self, name: object, text: str) -> None:
        path = self.path(name)
        if not text:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.new")
        part.write_text(text)
        os.replace(part, path)

    def read(self, name: object) -> str:
        """The file's text, empty where there is none."""
        path = self.path(name)
        return path.read_text() if path.exists() else ""

    def copy(self, source: int, target: int) -> None:
        """A clone's firewall is its source's."""
        self.write(target, self.read(source))

    def forget(self, vmid: int) -> None:
        self.path(vmid).unlink(missing_ok=True)
