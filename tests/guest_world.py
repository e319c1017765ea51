"""Guests, a hub and the internet for a test host: network namespaces on the role's own bridge. Runs in the host.

Each guest is a namespace with a veth; the host's end is named as Proxmox VE names a tap and joins vmbr1 as a tap does.
The world stands behind vmbr0 and has the internet's addresses.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

BRIDGE, GATEWAY, GATEWAY_MAC = "vmbr1", "192.168.100.1", "02:af:c0:a8:64:01"
HOST_MAIN, NEIGHBOUR = "10.9.0.1", "10.9.0.254"
API, INTERNET, METADATA = "160.79.104.10", "8.8.8.8", "169.254.169.254"
#: VM id, last byte of the address, whether Proxmox VE knows the VM
GUESTS = {"hub": (101, 2, True), "g1": (110, 10, True), "g2": (111, 11, True), "g3": (112, 12, False)}
HUB, G1, G2, G3 = (f"192.168.100.{number}" for _, number, _ in (GUESTS[name] for name in ("hub", "g1", "g2", "g3")))
#: How long the marker is that a packet of ours ends with
MARKER = 24
_libc = ctypes.CDLL(None, use_errno=True)


def mac(ip: str) -> str:
    return "02:af:" + ":".join(f"{int(part):02x}" for part in ip.split("."))


def sh(script: str) -> str:
    return subprocess.run(["sh", "-ec", script], check=True, capture_output=True, text=True).stdout


def port(name: str) -> str:
    return f"tap{GUESTS[name][0]}i0"


# -- making them


def set_up() -> None:
    """The host's own bridge, the world behind it, and the guests. Again after a boot."""
    sh(
        f"""
        ip netns add world
        ip link add tap900i0 type veth peer name eth0 netns world
        ip link set tap900i0 master vmbr0 up
        ip -n world link set lo up
        ip -n world address add {NEIGHBOUR}/24 dev eth0
        ip -n world link set eth0 up
        for address in {API} {INTERNET} {METADATA}; do ip -n world address add $address/32 dev lo; done
        ip -n world route add 192.168.100.0/24 via {HOST_MAIN}
        ip route replace default via {NEIGHBOUR}
        """
    )
    for name in GUESTS:
        add_guest(name)


def add_guest(name: str) -> None:
    guest, number, known = GUESTS[name]
    address = f"192.168.100.{number}"
    if known:
        folder = Path("/etc/pve/qemu-server")
        folder.mkdir(parents=True, exist_ok=True)
        # The snapshot's NIC is another: it must not be taken for the VM's.
        net = f"net0: virtio={mac(address).upper()},bridge={BRIDGE}\n"
        (folder / f"{guest}.conf").write_text(f"name: {name}\n{net}\n[before]\nnet0: virtio=02:00:00:00:00:01\n")
    sh(f"ip netns add {name}; ip -n {name} link set lo up")
    plug(name)


def plug(name: str) -> None:
    """Make the guest's tap, as each start of a VM does, and put it into the bridge."""
    _, number, _ = GUESTS[name]
    address = f"192.168.100.{number}"
    neighbours = {GATEWAY: GATEWAY_MAC, G1: mac(G1), G2: mac(G2)}
    neighbours.pop(address, None)
    sh(
        f"""
        ip link add {port(name)} type veth peer name eth0 address {mac(address)} netns {name}
        ip link set {port(name)} master {BRIDGE} up
        ip netns exec {name} sysctl -qw net.ipv6.conf.eth0.accept_dad=0
        ip -n {name} address add {address}/24 dev eth0
        ip -n {name} link set eth0 up
        ip -n {name} route add default via {GATEWAY}
        """
        # A guest knows the others' MAC addresses: what stops it is not only that nobody answers its ARP.
        + "\n".join(f"ip -n {name} neigh replace {ip} lladdr {lladdr} dev eth0" for ip, lladdr in neighbours.items())
    )


def unplug(name: str) -> None:
    sh(f"ip link delete {port(name)}")


def replug() -> None:
    """Put the ports back after the bridge was made anew, as the start of a VM does."""
    for name in GUESTS:
        sh(f"ip link set {port(name)} master {BRIDGE} up")


# -- packets


def forget_neighbours() -> None:
    """What spoofing has left in the guests, the host and the bridge, where it was not stopped."""
    guests = "".join(f"ip -n {name} neigh flush dev eth0;" for name in GUESTS)
    sh(f"{guests} ip neigh flush dev {BRIDGE}; ip link set {BRIDGE} type bridge fdb_flush")


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Sockets that are made in the block belong to the namespace; `host` is the host's own."""
    if name == "host":
        yield
        return
    with open("/proc/thread-self/ns/net") as back, open(f"/run/netns/{name}") as there:
        if _libc.setns(there.fileno(), 0) != 0:
            raise OSError(ctypes.get_errno(), f"setns {name}")
        try:
            yield
        finally:
            _libc.setns(back.fileno(), 0)


class Probe:
    """Tries of one kind each; `wait` is how long a packet has to arrive."""

    def __init__(self, wait: float) -> None:
        self.wait = wait
        self._number = 0

    def tcp(self, source: str, target: str, ip: str, number: int) -> bool:
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        with ExitStack() as stack:
            # Port 22 of the host has its sshd.
            with inside(target), suppress(OSError):
                stack.enter_context(socket.create_server(("", number), family=family))
            with inside(source):
                client = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            address = (ip, number, 0, self._interface(source)) if ":" in ip else (ip, number)
            client.settimeout(self.wait)
            return client.connect_ex(address) == 0

    def udp(self, source: str, target: str, ip: str, number: int, bind: str = "") -> bool:
        marker = self._marker()
        with ExitStack() as stack:
            with inside(target):
                receiver = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            receiver.bind((bind, number))
            with inside(source):
                sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            with suppress(OSError):
                sender.sendto(marker, (ip, number))
            return self._arrives(receiver, marker)

    def ping(self, source: str, ip: str) -> bool:
        marker = self._marker()
        packet = struct.pack("!BBHHH", 8, 0, 0, 77, 1) + marker
        packet = packet[:2] + struct.pack("!H", checksum(packet)) + packet[4:]
        with inside(source):
            sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        with sock, suppress(OSError):
            sock.sendto(packet, (ip, 0))
            # Only an answer has type 0; it comes from the one that was asked.
            return self._arrives(sock, b"\x00\x00", marker)
        return False

    def frame(self, source: str, target: str, frame: bytes, device: str = "eth0") -> bool:
        """Whether a frame that ends with a marker of ours arrives at the target's device."""
        marker = self._marker()
        with ExitStack() as stack:
            with inside(target):
                receiver = stack.enter_context(_packets(device))
            with inside(source):
                sender = stack.enter_context(_packets("eth0"))
            sender.send(frame + marker)
            return self._arrives(receiver, marker)

    def _marker(self) -> bytes:
        self._number += 1
        return (b"marker%d-%d" % (os.getpid(), self._number)).ljust(MARKER, b".")

    def _arrives(self, sock: socket.socket, *parts: bytes) -> bool:
        end = time.monotonic() + self.wait
        while (left := end - time.monotonic()) > 0 and select.select([sock], [], [], left)[0]:
            data = sock.recv(65536)
            if all(part in data for part in parts):
                return True
        return False

    @staticmethod
    def _interface(name: str) -> int:
        with inside(name):
            return socket.if_nametoindex("eth0")


def _packets(device: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sock.bind((device, 0))
    return sock


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\x00" * (len(data) % 2)))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def ethernet(destination: str, source: str, kind: int, payload: bytes = b"") -> bytes:
    return bytes.fromhex((destination + source).replace(":", "")) + struct.pack("!H", kind) + payload


def ipv4(source: str, destination: str, protocol: int, payload: bytes, fragment: int = 0, room: int = MARKER) -> bytes:
    """A packet. `room` is kept in its length for the marker that follows."""
    length = 20 + len(payload) + room
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    header = struct.pack("!BBHHHBBH", 0x45, 0, length, 7, fragment, 64, protocol, 0) + addresses
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def tcp_header(source: int, destination: int, flags: int = 2) -> bytes:
    return struct.pack("!HHIIBBHHH", source, destination, 1, 0, 0x50, flags, 1024, 0, 0)


def udp_header(source: int, destination: int, room: int = MARKER) -> bytes:
    return struct.pack("!HHHH", source, destination, 8 + room, 0)


def arp(operation: int, sender: tuple[str, str], target: tuple[str, str]) -> bytes:
    """Sender and target are (MAC, IP)."""
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    for lladdr, ip in (sender, target):
        body += bytes.fromhex(lladdr.replace(":", "")) + socket.inet_aton(ip)
    return body
