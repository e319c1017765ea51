"""What a guest tries, and what is to come of it.

Runs in the test host: `guest_attempts.py SECONDS PROFILE` prints what arrived, of all that was waited for so long. What
the profile lets pass is waited for longer: it ends the wait when it comes, however busy the machine is.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from guest_world import (
    API,
    BRIDGE,
    G1,
    G2,
    G3,
    GATEWAY,
    GATEWAY_MAC,
    HOST_MAIN,
    HUB,
    INTERNET,
    MARKER,
    METADATA,
    NEIGHBOUR,
    Probe,
    arp,
    ethernet,
    forget_neighbours,
    ipv4,
    mac,
    tcp_header,
    udp_header,
)

ALL, IPV6_ALL, MDNS = "ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01", "01:00:5e:00:00:fb"
ZERO = "00:00:00:00:00:00"
ME = mac(G1)
SYN = tcp_header(40000, 8000)


def ipv6(destination: str, header: int = 17) -> bytes:
    """A packet to a link-local address; what follows is not looked at by whoever would pass it on."""
    link_local = bytes.fromhex("fe80000000000000") + bytes(7) + b"\x01"
    return (
        bytes.fromhex("60000000") + bytes([0, MARKER]) + bytes([header, 255]) + link_local + bytes.fromhex(destination)
    )


def to_hub(payload: bytes, source: str = G1, lladdr: str = ME, protocol: int = 6, fragment: int = 0) -> bytes:
    return ethernet(mac(HUB), lladdr, 0x0800, ipv4(source, HUB, protocol, payload, fragment))


def to_g2(payload: bytes, lladdr: str = "") -> bytes:
    return ethernet(lladdr or mac(G2), ME, 0x0800, payload)


Try = Callable[[Probe], bool]
#: (what is tried, what is expected, how). All but the last few are tried by the guest g1.
ATTEMPTS: list[tuple[str, str, Try]] = [
    # The hub
    ("TCP to the hub's port 8000", "open", lambda p: p.tcp("g1", "hub", HUB, 8000)),
    ("TCP to the hub's port 22", "closed", lambda p: p.tcp("g1", "hub", HUB, 22)),
    ("TCP to the hub's port 5432", "closed", lambda p: p.tcp("g1", "hub", HUB, 5432)),
    ("UDP to the hub's port 8000", "closed", lambda p: p.udp("g1", "hub", HUB, 8000)),
    ("ping the hub", "closed", lambda p: p.ping("g1", HUB)),
    ("GRE to the hub", "closed", lambda p: p.frame("g1", "hub", to_hub(b"\x00\x00\x08\x00", protocol=47))),
    ("first fragment to the hub's port 8000", "closed", lambda p: p.frame("g1", "hub", to_hub(SYN, fragment=0x2000))),
    ("later fragment to the hub", "closed", lambda p: p.frame("g1", "hub", to_hub(SYN, fragment=0x0003))),
    ("hub's port 8000 from another's source address", "closed",
     lambda p: p.frame("g1", "hub", to_hub(SYN, source="192.168.100.99"))),
    ("hub's port 8000 from an address outside", "closed", lambda p: p.frame("g1", "hub", to_hub(SYN, source=INTERNET))),
    ("hub's port 8000 as another guest (its MAC and IP)", "closed",
     lambda p: p.frame("g1", "hub", to_hub(SYN, source=G2, lladdr=mac(G2)))),
    ("hub's port 8000 with a made-up MAC", "closed",
     lambda p: p.frame("g1", "hub", to_hub(SYN, lladdr="02:00:00:00:00:99"))),
    ("tell the hub by ARP to be another guest", "closed",
     lambda p: p.frame("g1", "hub", ethernet(mac(HUB), ME, 0x0806, arp(2, (ME, G2), (mac(HUB), HUB))))),
    # The host
    ("TCP to the host's bridge address, port 22", "closed", lambda p: p.tcp("g1", "host", GATEWAY, 22)),
    ("TCP to the host's bridge address, port 8006", "closed", lambda p: p.tcp("g1", "host", GATEWAY, 8006)),
    ("UDP to the host's bridge address", "closed", lambda p: p.udp("g1", "host", GATEWAY, 1234)),
    ("DNS (UDP) to the host", "closed", lambda p: p.udp("g1", "host", GATEWAY, 53)),
    ("DNS (TCP) to the host", "closed", lambda p: p.tcp("g1", "host", GATEWAY, 53)),
    ("ping the host's bridge address", "closed", lambda p: p.ping("g1", GATEWAY)),
    ("TCP to the host's other address, port 8006", "closed", lambda p: p.tcp("g1", "host", HOST_MAIN, 8006)),
    ("ping the host's other address", "closed", lambda p: p.ping("g1", HOST_MAIN)),
    ("ARP request for the host's address", "routed",
     lambda p: p.frame("g1", "host", ethernet(ALL, ME, 0x0806, arp(1, (ME, G1), (ZERO, GATEWAY))), BRIDGE)),
    ("DHCP discover to the host", "closed",
     lambda p: p.frame("g1", "host", ethernet(ALL, ME, 0x0800, ipv4("0.0.0.0", "255.255.255.255", 17,
                                                                    udp_header(68, 67))), BRIDGE)),
    ("IPv6 multicast to the host", "closed",
     lambda p: p.frame("g1", "host", ethernet(IPV6_ALL, ME, 0x86DD, ipv6("ff02" + "00" * 13 + "01")), BRIDGE)),
    # Beyond the host
    ("TCP to the internet", "internet", lambda p: p.tcp("g1", "world", INTERNET, 443)),
    ("TCP to the AI provider", "api", lambda p: p.tcp("g1", "world", API, 443)),
    ("TCP to the AI provider's other ports", "internet", lambda p: p.tcp("g1", "world", API, 80)),
    ("UDP to the internet", "internet", lambda p: p.udp("g1", "world", INTERNET, 4433, INTERNET)),
    ("ping the internet", "internet", lambda p: p.ping("g1", INTERNET)),
    ("DNS (UDP) to a server outside", "internet", lambda p: p.udp("g1", "world", INTERNET, 53, INTERNET)),
    ("DNS (TCP) to a server outside", "internet", lambda p: p.tcp("g1", "world", INTERNET, 53)),
    ("metadata address, TCP", "closed", lambda p: p.tcp("g1", "world", METADATA, 80)),
    ("TCP to the host's neighbour", "closed", lambda p: p.tcp("g1", "world", NEIGHBOUR, 8006)),
    # Another guest
    ("TCP to another guest", "closed", lambda p: p.tcp("g1", "g2", G2, 22)),
    ("UDP to another guest", "closed", lambda p: p.udp("g1", "g2", G2, 22)),
    ("ping another guest", "closed", lambda p: p.ping("g1", G2)),
    ("TCP to another guest, by the host's MAC", "closed",
     lambda p: p.frame("g1", "g2", to_g2(ipv4(G1, G2, 6, SYN), GATEWAY_MAC))),
    ("packet for the hub, by another guest's MAC", "closed",
     lambda p: p.frame("g1", "g2", to_g2(ipv4(G1, HUB, 6, SYN)))),
    ("IPv6 to another guest", "closed",
     lambda p: p.frame("g1", "g2", ethernet(mac(G2), ME, 0x86DD, ipv6("fe80" + "00" * 13 + "02")))),
    ("TCP by IPv6 to another guest", "closed", lambda p: p.tcp("g1", "g2", "fe80::af:c0ff:fea8:640b", 22)),
    ("IPv6 router advertisement", "closed",
     lambda p: p.frame("g1", "g2", ethernet(IPV6_ALL, ME, 0x86DD, ipv6("ff02" + "00" * 13 + "01", 58)))),
    ("ARP request for another guest", "closed",
     lambda p: p.frame("g1", "g2", ethernet(ALL, ME, 0x0806, arp(1, (ME, G1), (ZERO, G2))))),
    ("ARP request for the hub, heard by another guest", "closed",
     lambda p: p.frame("g1", "g2", ethernet(ALL, ME, 0x0806, arp(1, (ME, G1), (ZERO, HUB))))),
    ("tell another guest by ARP to be the hub", "closed",
     lambda p: p.frame("g1", "g2", ethernet(mac(G2), ME, 0x0806, arp(2, (ME, HUB), (mac(G2), G2))))),
    ("tell all by ARP to be the hub", "closed",
     lambda p: p.frame("g1", "g2", ethernet(ALL, ME, 0x0806, arp(2, (ME, HUB), (ZERO, HUB))))),
    ("DHCP offer to another guest", "closed",
     lambda p: p.frame("g1", "g2", ethernet(ALL, ME, 0x0800, ipv4(G1, "255.255.255.255", 17, udp_header(67, 68))))),
    ("multicast (mDNS) to another guest", "closed",
     lambda p: p.frame("g1", "g2", ethernet(MDNS, ME, 0x0800, ipv4(G1, "224.0.0.251", 17, udp_header(5353, 5353))))),
    ("broadcast to another guest", "closed",
     lambda p: p.frame("g1", "g2", ethernet(ALL, ME, 0x0800, ipv4(G1, "192.168.100.255", 17, udp_header(9, 9))))),
    ("VLAN-tagged frame to another guest", "closed",
     lambda p: p.frame("g1", "g2", ethernet(mac(G2), ME, 0x8100, b"\x00\x05\x08\x00" + ipv4(G1, G2, 6, SYN)))),
    ("frame of another protocol to another guest", "closed",
     lambda p: p.frame("g1", "g2", ethernet(mac(G2), ME, 0x88B5))),
    ("unknown unicast, heard by another guest", "closed",
     lambda p: p.frame("g1", "g2", ethernet("02:00:00:00:00:77", ME, 0x0800, ipv4(G1, G2, 6, SYN)))),
    # Others
    ("the hub: TCP to a guest", "closed", lambda p: p.tcp("hub", "g1", G1, 22)),
    ("the hub: ping a guest", "closed", lambda p: p.ping("hub", G1)),
    ("the hub: TCP to the host", "closed", lambda p: p.tcp("hub", "host", GATEWAY, 8006)),
    ("the hub: TCP to the internet by this leg", "closed", lambda p: p.tcp("hub", "world", INTERNET, 443)),
    ("the world: TCP to a guest through the host", "closed", lambda p: p.tcp("world", "g1", G1, 22)),
    ("a guest that Proxmox VE does not know: TCP to the hub's port 8000", "closed",
     lambda p: p.tcp("g3", "hub", HUB, 8000)),
    ("a guest that Proxmox VE does not know: as the guest g1", "closed",
     lambda p: p.frame("g3", "hub", to_hub(SYN))),
    ("another guest: TCP to the hub's port 8000", "open", lambda p: p.tcp("g2", "hub", HUB, 8000)),
]  # fmt: skip

#: Which expectations each profile turns to open.
OPEN = {
    "none": {"open", "closed", "routed", "internet", "api"},
    "hub_only": {"open"},
    "api_direct": {"open", "routed", "api"},
    "open": {"open", "routed", "internet", "api"},
}
assert len({name for name, _, _ in ATTEMPTS}) == len(ATTEMPTS)
assert G3 != G2


def expected(profile: str) -> dict[str, bool]:
    """What is to arrive. `none` is without any rules: then everything does."""
    return {name: kind in OPEN[profile] for name, kind, _ in ATTEMPTS}


#: For a packet that is to arrive, in seconds.
PATIENCE = 20


def main() -> None:
    wait, passes = float(sys.argv[1]), expected(sys.argv[2])
    probe = Probe(wait)
    start = time.monotonic()
    seen = {}
    forget_neighbours()
    for name, _, attempt in ATTEMPTS:
        probe.wait = max(wait, PATIENCE) if passes[name] else wait
        seen[name] = attempt(probe)
        if seen[name]:
            forget_neighbours()
    print(json.dumps({"seen": seen, "seconds": time.monotonic() - start}))


if __name__ == "__main__":
    main()
