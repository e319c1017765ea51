"""What a firewall rule may say: formats of its parameters, and how its parts must fit. The messages are Proxmox's."""

from __future__ import annotations

import ipaddress
import re
import socket

from autovibe_lab.errors import ApiError, invalid
from autovibe_lab.firewall.files import Entry, Firewall, addresses_version
from autovibe_lab.firewall.macros import MACROS, preferred
from autovibe_lab.formats import register

NAME = r"[A-Za-z][A-Za-z0-9\-_]+"
SCOPED = re.compile(rf"(?:(dc|guest)/)?({NAME})")
LOG_LEVELS = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug", "nolog")
WITH_PORTS = {"tcp", "6", "udp", "17", "udplite", "136", "sctp", "132", "dccp", "33"}
ICMP = {"icmp", "1", "icmpv6", "ipv6-icmp", "58"}
#: Names of ICMP types, as iptables knows them.
ICMP_NAMES = """
any echo-reply destination-unreachable network-unreachable host-unreachable protocol-unreachable port-unreachable
fragmentation-needed source-route-failed network-unknown host-unknown network-prohibited host-prohibited
TOS-network-unreachable TOS-host-unreachable communication-prohibited host-precedence-violation precedence-cutoff
source-quench redirect network-redirect host-redirect TOS-network-redirect TOS-host-redirect echo-request
router-advertisement router-solicitation time-exceeded ttl-zero-during-transit ttl-zero-during-reassembly
parameter-problem ip-header-bad required-option-missing timestamp-request timestamp-reply address-mask-request
address-mask-reply packet-too-big bad-header unknown-header-type unknown-option neighbor-solicitation
neighbor-advertisement no-route beyond-scope address-unreachable failed-policy reject-route
"""
ICMP_TYPES = frozenset(re.findall(r"\S+", ICMP_NAMES))
PROTOCOLS = WITH_PORTS | ICMP | {"igmp", "ipencap", "ipv6", "gre", "esp", "ah", "ospf", "ipip", "pim", "vrrp", "l2tp"}


@register("pve-fw-dport-spec", "pve-fw-sport-spec")
def _ports(text: str) -> None:
    """`22`, `80,443`, `5900:5999`, or a service's name."""
    for item in text.split(","):
        ends = item.split(":") if re.fullmatch(r"\d+:\d+", item) else [item]
        for port in ends:
            if port.isdigit() and int(port) > 65535 or not port.isdigit() and not _service(port):
                raise ValueError(f"invalid port '{port}'")
        if len(ends) == 2 and int(ends[0]) > int(ends[1]):
            said = f"{ends[1]}:{ends[0]}"
            raise ValueError(f"backwards range '{item}' not allowed, did you mean '{said}'?")


def _service(name: str) -> bool:
    if name in ICMP_TYPES:
        return True
    try:
        return bool(socket.getservbyname(name))
    except OSError:
        return name in ("ssh", "http", "https", "domain", "smtp", "ntp")


@register("pve-fw-icmp-type-spec")
def _icmp_type(text: str) -> None:
    if text not in ICMP_TYPES and not re.fullmatch(r"\d+(/\d+)?", text):
        raise ValueError(f"invalid icmp-type '{text}'")


@register("pve-fw-protocol-spec")
def _protocol(text: str) -> None:
    if text not in PROTOCOLS and not (text.isdigit() and int(text) < 256):
        raise ValueError(f"unknown protocol '{text}'")


@register("pve-fw-addr-spec")
def addresses(text: str) -> int | None:
    """Check a rule's source or destination; returns its IP version, None where a name stands for it."""
    if text.startswith("+") or SCOPED.fullmatch(text):
        return None
    versions = set()
    for item in text.split(","):
        ends = item.split("-")
        try:
            versions |= {ipaddress.ip_network(end, strict=False).version for end in ends}
        except ValueError:
            raise ValueError(f"invalid IP address: {item}") from None
        if len(ends) > 1 and "," in text:
            raise ValueError("you can't use a range in a list")
    if len(versions) > 1:
        raise ValueError(f"detected mixed ipv4/ipv6 addresses in address list '{text}'")
    return versions.pop()


#: All of a rule.
FIELDS = ("comment", "dest", "dport", "enable", "icmp-type", "iface", "log", "macro", "proto", "source", "sport")
FIELDS += ("type", "action")


def change(rule: Entry, params: dict[str, object]) -> None:
    """Put what a call gives into the rule; an empty text takes a property away."""
    for name in FIELDS:
        if name in params:
            if params[name] in ("", "-"):
                rule.pop(name, None)
            else:
                rule[name] = params[name]


def take_away(rule: Entry, names: str) -> None:
    for name in re.findall(r"[^,; ]+", names):
        if name not in (*FIELDS, "pos", "digest"):
            raise invalid(delete=f"no such property ('{name}')")
        if name in ("type", "action"):
            raise invalid(delete=f"unable to delete required property '{name}'")
        rule.pop(name, None)


def verify(rule: Entry, scope: str, own: Firewall, cluster: Firewall) -> None:
    """Raise the 400 that names the first thing that does not fit. `scope`: `cluster`, `host`, `vm` or `group`."""
    _verify_action(rule, scope)
    if name := str(rule.get("macro", "")):
        if not preferred(name):
            raise invalid(macro=f"unknown macro '{name}'")
        rule["macro"] = preferred(name)
    _verify_ports(rule)
    version = {"icmp": 4, "icmpv6": 6, "ipv6-icmp": 6}.get(str(rule.get("proto")))
    for key in ("source", "dest"):
        if not rule.get(key):
            continue
        found = _verify_name(key, str(rule[key]), scope, own, cluster)
        if version and found and found != version:
            raise invalid(**{key: "detected mixed ipv4/ipv6 addresses in rule"})
        version = version or found
    if rule.get("macro"):
        _verify_macro(rule)
    rule.pop("ipversion", None)
    if version:
        rule["ipversion"] = version


def _verify_action(rule: Entry, scope: str) -> None:
    kind, action, iface = rule["type"], rule["action"], rule.get("iface")
    if kind == "group":
        if scope == "group":
            raise invalid(type="security groups not allowed")
    elif action not in ("ACCEPT", "DROP", "REJECT"):
        raise invalid(action=f"unknown action '{action}'")
    if kind == "forward" and scope == "vm":
        raise invalid(type="forwarding rules are not allowed for guests")
    if iface and scope == "group":
        raise invalid(type="parameter -i not allowed for this rule type")
    if iface and scope == "vm" and not re.fullmatch(r"net\d+", str(iface)):
        raise invalid(iface="value does not match the regex pattern 'net\\d+'")


def _verify_ports(rule: Entry) -> None:
    proto = rule.get("proto")
    for key in ("dport", "icmp-type", "sport"):
        if rule.get(key) and not proto:
            raise invalid(proto=f"missing property - '{key}' requires this property")
    for key in ("dport", "sport"):
        if rule.get(key) and proto not in WITH_PORTS | ICMP:
            raise invalid(**{key: f"protocol '{proto}' does not support ports"})
    if rule.get("icmp-type") and proto not in ICMP:
        raise invalid(**{"icmp-type": "'icmp-type' is not valid for this protocol"})


def _verify_macro(rule: Entry) -> None:
    for traffic in MACROS[str(rule["macro"])]:
        for key, value in (("proto", traffic.proto), ("dport", traffic.dport), ("sport", traffic.sport)):
            if value and rule.get(key) not in (None, value):
                raise invalid(**{key: f"parameter '{key}' already define in macro (value = '{value}')"})


def _verify_name(key: str, text: str, scope: str, own: Firewall, cluster: Firewall) -> int | None:
    if text.startswith("+"):
        match = SCOPED.fullmatch(text[1:])
        if not match:
            raise invalid(**{key: f"invalid ipset name '{text}'"})
        if find_ipset(text, own, cluster) is None:
            raise invalid(**{key: f"no such ipset '{text[1:]}'"})
        return None
    if SCOPED.fullmatch(text):
        found = find_alias(text, own, cluster)
        if found is None:
            raise invalid(**{key: f"no such alias '{text}'"})
        return int(str(found["ipversion"]))
    return addresses_version(text)


def find_alias(text: str, own: Firewall, cluster: Firewall) -> Entry | None:
    """The alias of this name: the guest's own goes before the cluster's, unless `dc/` or `guest/` says which."""
    where, name = SCOPED.fullmatch(text).groups()
    places = {"dc": [cluster], "guest": [own]}.get(where, [own, cluster])
    return next((place.aliases[name.lower()] for place in places if name.lower() in place.aliases), None)


def find_ipset(text: str, own: Firewall, cluster: Firewall) -> list[Entry] | None:
    """The set that `+name`, `+dc/name` or `+guest/name` means."""
    where, name = SCOPED.fullmatch(text.lstrip("+")).groups()
    places = {"dc": [cluster], "guest": [own]}.get(where, [own, cluster])
    return next((place.ipsets[name.lower()] for place in places if name.lower() in place.ipsets), None)


def resolve_alias(text: str, own: Firewall, cluster: Firewall) -> Entry:
    """The alias, or the 500 of an entry that names none."""
    found = find_alias(text, own, cluster)
    if found is None:
        raise ApiError(500, f"no such alias '{text}'")
    return found
