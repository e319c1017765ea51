"""What the firewall decides, done to real guests: the one connection that they can make, to the hub, is refused when
the verdict says so.

A file in the run folder closes a network device: QEMU's relay looks for it at each new connection. As on a node,
connections that stand go on.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from autovibe_lab.config import NETS, Section
from autovibe_lab.firewall.verdict import Packet, Verdict, verdict
from autovibe_lab.options import parse_net
from autovibe_lab.qemu_command import HUB_ADDRESS, HUB_PORT

if TYPE_CHECKING:
    from autovibe_lab.node import Machine, Node


def of(node: Node, vmid: int, packet: Packet) -> Verdict:
    """The verdict on a packet of this guest. KeyError when it is not there."""
    config = node.machines[vmid].config.current
    return verdict(config, node.firewall.load(vmid), node.firewall.load("cluster"), packet)


def to_hub(config: Section, iface: str) -> Packet:
    """The packet with which a guest's connection to the hub begins."""
    net, number = parse_net(config[iface]), iface.removeprefix("net")
    address = re.search(r"\bip=([0-9.]+)", config.get(f"ipconfig{number}", ""))
    return Packet(
        "out", "tcp", address[1] if address else None, HUB_ADDRESS, HUB_PORT, iface=iface, mac=net.get("macaddr")
    )


def close_or_open(node: Node, machine: Machine) -> None:
    """Decide for each network device of this guest."""
    if machine.is_null:
        return
    for iface in [key for key in machine.config.current if NETS.fullmatch(key)]:
        closed = node.paths.closed(machine.vmid, iface)
        if of(node, machine.vmid, to_hub(machine.config.current, iface)).passes:
            closed.unlink(missing_ok=True)
        else:
            closed.touch()


def refresh(node: Node) -> None:
    """Decide again what each guest that runs may reach, on every node."""
    for other in node.cluster.nodes.values():
        for machine in other.machines.values():
            if machine.running():
                close_or_open(other, machine)
