"""What the firewall does to one packet: a pure function of the guest's configuration and the files that rule it.

As Proxmox builds its chains: nothing at all unless the cluster's firewall is on and the network device has
`firewall=1`; then DHCP, the filters of MAC and IP addresses, and with the guest's own `enable` its rules in order and
its policy.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass, replace

from autovibe_lab.config import Section
from autovibe_lab.firewall.files import Entry, Firewall
from autovibe_lab.firewall.macros import MACROS
from autovibe_lab.firewall.rules import SCOPED, find_alias, find_ipset
from autovibe_lab.options import parse_net

ICMP = ("icmp", "icmpv6", "ipv6-icmp")


@dataclass(frozen=True)
class Packet:
    """The first packet of a connection, seen from the guest: `out` of it or `in`. `dport` of an ICMP packet is its
    type's name; an address that is not known matches no rule that names one."""

    direction: str = "out"
    proto: str = "tcp"
    source: str | None = None
    dest: str | None = None
    dport: str | int | None = None
    sport: str | int | None = None
    iface: str = "net0"
    mac: str | None = None

    def __post_init__(self) -> None:
        if self.direction not in ("in", "out"):
            raise ValueError("a packet's direction is `in` or `out`")


@dataclass(frozen=True)
class Verdict:
    """`action`: ACCEPT, DROP or REJECT; `reason`: which rule or option decided."""

    action: str
    reason: str

    @property
    def passes(self) -> bool:
        return self.action == "ACCEPT"


def verdict(config: Section, own: Firewall, cluster: Firewall, packet: Packet) -> Verdict:
    """What happens to this packet of the guest with this configuration."""
    net = parse_net(config.get(packet.iface, ""))
    if not cluster.options.get("enable"):
        return Verdict("ACCEPT", "the cluster's firewall is off")
    if net.get("firewall") != "1":
        return Verdict("ACCEPT", f"{packet.iface} has no firewall=1")
    return (
        _filters(net, own, cluster, packet)
        or _rules(own, cluster, packet)
        or Verdict("ACCEPT", "the guest's firewall is off")
    )


def _filters(net: dict[str, str], own: Firewall, cluster: Firewall, packet: Packet) -> Verdict | None:
    """What is decided before the first rule."""
    ports = {"out": ("68", "67"), "in": ("67", "68")}[packet.direction]
    if own.options.get("dhcp") and (packet.proto, str(packet.sport), str(packet.dport)) == ("udp", *ports):
        return Verdict("ACCEPT", "option dhcp")
    if packet.direction == "in":
        blacklist = cluster.ipsets.get("blacklist")
        listed = blacklist is not None and in_ipset(packet.source, blacklist, own, cluster)
        return Verdict("DROP", "the cluster's ipset blacklist") if listed else None
    if packet.proto == "icmpv6" and packet.dport == "router-advertisement" and not own.options.get("radv"):
        return Verdict("DROP", "option radv")
    mac = net.get("macaddr", "").lower()
    if own.options.get("macfilter", 1) and packet.mac and packet.mac.lower() != mac:
        return Verdict("DROP", "option macfilter")
    name = f"ipfilter-{packet.iface}"
    filtered = own.options.get("ipfilter") or name in own.ipsets
    if filtered and not in_ipset(packet.source, own.ipsets.get(name, []), own, cluster):
        return Verdict("DROP", f"ipfilter: {packet.source} is not in ipset {name}")
    return None


def _rules(own: Firewall, cluster: Firewall, packet: Packet) -> Verdict | None:
    if not own.options.get("enable"):
        return None
    for position, rule in enumerate(own.rules):
        if action := _of_rule(rule, own, cluster, packet):
            return Verdict(action, f"rule {position}")
    option = f"policy_{packet.direction}"
    default = "ACCEPT" if packet.direction == "out" else "DROP"
    return Verdict(str(own.options.get(option, default)), option)


def _of_rule(rule: Entry, own: Firewall, cluster: Firewall, packet: Packet) -> str | None:
    if not rule.get("enable") or rule.get("iface", packet.iface) != packet.iface:
        return None
    if rule["type"] != "group":
        return str(rule["action"]) if _matches(rule, own, cluster, packet) else None
    for inner in cluster.groups.get(str(rule["action"]).lower(), []):
        # A group knows the cluster's names only.
        if inner.get("enable") and _matches(inner, Firewall(), cluster, packet):
            return str(inner["action"])
    return None


def _matches(rule: Entry, own: Firewall, cluster: Firewall, packet: Packet) -> bool:
    if rule["type"] != packet.direction:
        return False
    if not all(_address(rule.get(key), getattr(packet, key), own, cluster) for key in ("source", "dest")):
        return False
    if macro := MACROS.get(str(rule.get("macro", ""))):
        return any(_traffic(rule, t.proto, t.dport, t.sport, packet) for t in macro)
    return _traffic(rule, None, None, None, packet)


def _traffic(rule: Entry, proto: str | None, dport: str | None, sport: str | None, packet: Packet) -> bool:
    """Protocol and ports: the rule's own, else those of one line of its macro."""
    wanted = rule.get("proto") or proto
    if wanted and not _same_protocol(str(wanted), packet.proto):
        return False
    if packet.proto in ICMP:
        kind = rule.get("icmp-type") or rule.get("dport") or dport
        return not kind or kind in ("any", packet.dport)
    to, of = rule.get("dport") or dport, rule.get("sport") or sport
    return _port(to, packet.dport) and _port(of, packet.sport)


def _same_protocol(wanted: str, given: str) -> bool:
    names = {"1": "icmp", "6": "tcp", "17": "udp", "58": "icmpv6", "ipv6-icmp": "icmpv6"}
    return names.get(wanted, wanted) == names.get(given, given)


def _port(spec: object, given: str | int | None) -> bool:
    if not spec:
        return True
    if given is None:
        return False
    for item in str(spec).split(","):
        first, _, last = item.partition(":")
        if _number(first) <= _number(str(given)) <= _number(last or first):
            return True
    return False


def _number(port: str) -> int:
    if port.isdigit():
        return int(port)
    try:
        return socket.getservbyname(port)
    except OSError:
        return {"ssh": 22, "domain": 53, "http": 80, "https": 443}.get(port, -1)


def _address(spec: object, given: str | None, own: Firewall, cluster: Firewall) -> bool:
    """Whether a rule's source or destination takes this address."""
    if not spec:
        return True
    text = str(spec)
    if text.startswith("+"):
        entries = find_ipset(text, own, cluster)
        return entries is not None and in_ipset(given, entries, own, cluster)
    if SCOPED.fullmatch(text):
        alias = find_alias(text, own, cluster)
        return alias is not None and _inside(given, str(alias["cidr"]))
    return any(_inside(given, part) for part in text.split(","))


def in_ipset(address: str | None, entries: list[Entry], own: Firewall, cluster: Firewall) -> bool:
    """The most specific entry that holds the address decides; `nomatch` says no."""
    best, found = -1, False
    for entry in entries:
        cidr = str(entry["cidr"])
        if SCOPED.fullmatch(cidr):
            alias = find_alias(cidr, own, cluster)
            cidr = str(alias["cidr"]) if alias else ""
        if cidr and _inside(address, cidr):
            length = ipaddress.ip_network(cidr, strict=False).prefixlen
            if length > best:
                best, found = length, not entry.get("nomatch")
    return found


def _inside(address: str | None, part: str) -> bool:
    """The address is in this network, range or is this very one."""
    if address is None:
        return False
    given = ipaddress.ip_address(address)
    if re.search(r"-", part):
        first, last = (ipaddress.ip_address(end) for end in part.split("-"))
        return first.version == given.version and first <= given <= last
    network = ipaddress.ip_network(part, strict=False)
    return network.version == given.version and given in network


def of_dict(given: dict) -> Packet:
    """A packet from JSON. Raises TypeError or ValueError."""
    return replace(Packet(), **given)
