"""What the lab's own network keeps a guest from, with real packets from inside one.

Everything happens in a network namespace of its own, whose loopback plays the world: the hub, other ports of the host,
the internet, a name server, a metadata service. Each target counts what arrives. The same attempts are made by a guest
with the restriction and by the same guest without: what the second delivers is what the first was kept from.

This is the lab's isolation (QEMU's user networking), not that of the roles for a real host.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

INTERNET, RESOLVER, METADATA = "203.0.113.80", "203.0.113.53", "169.254.169.254"
HUB_PORT, OTHER_PORT, NEIGHBOUR_PORT = 18000, 18022, 18118

#: Where a guest sends a token, and by what; all of it must be in vain but the first.
TARGETS = {
    "hub": ("tcp", "192.168.100.2", 8000),
    "another port of the hub's address": ("tcp", "192.168.100.2", OTHER_PORT),
    "the host's other port": ("tcp", "192.168.100.1", OTHER_PORT),
    "the hub's port, at the host": ("tcp", "192.168.100.1", HUB_PORT),
    "internet": ("tcp", INTERNET, 443),
    "metadata service": ("tcp", METADATA, 80),
    "a DNS server": ("udp", RESOLVER, 53),
    "the host's DNS": ("udp", "192.168.100.3", 53),
    "another guest, by the host": ("tcp", "192.168.100.1", NEIGHBOUR_PORT),
    "another guest, by its address": ("tcp", "192.168.100.18", 7000),
}

#: Runs in the guest: send "<name>" to each target at once, print who answered.
SENDER = """
import json, socket, sys, threading
answers = {}
def send(name, kind, host, port):
    try:
        with socket.socket(type=socket.SOCK_STREAM if kind == 'tcp' else socket.SOCK_DGRAM) as s:
            s.settimeout(20)
            s.connect((host, port))
            s.sendall(name.encode())
            answers[name] = s.recv(100).decode()
    except OSError as error:
        answers[name] = f'no: {error}'
threads = [threading.Thread(target=send, args=(n, *t)) for n, t in json.loads(sys.argv[1]).items()]
[t.start() for t in threads]; [t.join() for t in threads]
print(json.dumps(answers))
"""

#: Runs in the neighbour: keep what comes to port 7000.
LISTENER = """
import socket
with socket.create_server(('', 7000)) as server:
    while True:
        client, _ = server.accept()
        with open('/run/seen', 'ab') as file: file.write(client.recv(100) + b'\\n')
        client.sendall(b'ok'); client.close()
"""


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Targets that were reached, by `restricted` and by `open`."""
    from autovibe_lab import image

    image.build()
    unshare = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
    done = subprocess.run([*unshare, sys.executable, __file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.vm
def test_a_guest_reaches_the_hub_and_nothing_else(delivered: dict[str, list[str]]) -> None:
    assert delivered["restricted"] == ["hub"]


@pytest.mark.vm
def test_without_the_restriction_it_would_reach_them(delivered: dict[str, list[str]]) -> None:
    # Two guests share no wire, restricted or not, and the hub's address has one port: these have nothing to open.
    never = {"another guest, by its address", "another port of the hub's address"}
    assert set(delivered["open"]) == set(TARGETS) - never


# -- the scenario, in the namespace


class World:
    """Listeners for every target; `seen` holds the tokens that have arrived."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    async def start(self) -> None:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        resolvers = {RESOLVER, *_host_resolvers()}
        for address in {INTERNET, METADATA} | {address for address in resolvers if not address.startswith("127.")}:
            subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
        tcp = [("127.0.0.1", HUB_PORT), ("127.0.0.1", OTHER_PORT), (INTERNET, 443), (METADATA, 80)]
        for host, port in tcp:
            await asyncio.start_server(self._tcp, host, port)
        loop = asyncio.get_running_loop()
        for address in resolvers:
            await loop.create_datagram_endpoint(lambda: _Datagrams(self.seen), (address, 53))

    async def _tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.seen.add((await reader.read(100)).decode())
        writer.write(b"ok")
        writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, seen: set[str]) -> None:
        self.seen = seen

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple) -> None:
        self.seen.add(data.decode())
        self.transport.sendto(b"ok", address)


def _host_resolvers() -> list[str]:
    lines = [line.split() for line in Path("/etc/resolv.conf").read_text().splitlines()]
    return [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver" and "." in words[1]]


async def _execute(guest: object, *argv: str, wait: bool = True) -> str:
    """Run a command in the guest; its output."""
    request = {"path": argv[0], "arg": list(argv[1:]), "capture-output": wait}
    pid = (await guest.agent("guest-exec", request, 60))["pid"]
    while wait:
        status = await guest.agent("guest-exec-status", {"pid": pid}, 60)
        if status["exited"]:
            return base64.b64decode(status.get("out-data", "")).decode()
        await asyncio.sleep(0.1)
    return ""


async def _answers(port: int) -> None:
    """Until the neighbour's listener answers the host: from then on silence means that nothing came."""
    async with asyncio.timeout(180):
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"host")
            try:
                if await reader.read(100) == b"ok":
                    return
            except OSError:
                await asyncio.sleep(0.1)
            finally:
                writer.close()


async def _attempt(guest: object) -> None:
    # A guest has no default route; a program that is root in it can set one.
    await _execute(guest, "ip", "route", "add", "default", "via", "192.168.100.1")
    await _execute(guest, "python3", "-c", SENDER, json.dumps(TARGETS))


async def _scenario(state: Path) -> dict[str, list[str]]:
    from autovibe_lab import cloudinit, disks, image
    from autovibe_lab.paths import LabPaths, Network
    from autovibe_lab.qemu import QemuGuest

    lab = LabPaths(state)
    lab.make()
    image.install(image.folder(), lab)
    world = World()
    await world.start()

    async def boot(number: int, restrict: bool = True) -> QemuGuest:
        config = {
            "name": f"m{number}",
            "scsi0": f"local:{number}/vm-{number}-disk-0.qcow2",
            "ide2": f"local:{number}/vm-{number}-cloudinit.qcow2,media=cdrom",
            "net0": f"virtio=BC:24:11:00:00:{number},bridge=vmbr1",
            "ipconfig0": f"ip=192.168.100.{number}/24",
            "agent": "1",
        }
        disk = lab.images(number) / f"vm-{number}-disk-0.qcow2"
        if not disk.exists():
            await disks.convert_import(lab.imports / "autovibe-guest.qcow2", disk)
        await cloudinit.write_drive(config, number, lab.images(number) / f"vm-{number}-cloudinit.qcow2")
        guest = QemuGuest(number, lab, Network(HUB_PORT), restrict=restrict)
        guests.append(guest)
        await guest.start(config)
        await guest.agent("guest-ping", timeout=300)
        return guest

    guests: list[QemuGuest] = []
    found = {}
    try:
        neighbour, guest = await asyncio.gather(boot(18), boot(17))
        await _execute(neighbour, "python3", "-c", LISTENER, wait=False)
        forward = f"hostfwd_add net0 tcp:127.0.0.1:{NEIGHBOUR_PORT}-192.168.100.18:7000"
        await neighbour._monitor("human-monitor-command", command_line=forward)
        await _answers(NEIGHBOUR_PORT)
        for kind in ("restricted", "open"):
            world.seen.clear()
            await _execute(neighbour, "sh", "-c", ": >/run/seen")
            if kind == "open":
                await guest.stop()
                guest = await boot(17, restrict=False)
            await _attempt(guest)
            at_neighbour = (await _execute(neighbour, "cat", "/run/seen")).splitlines()
            found[kind] = sorted(world.seen | set(at_neighbour))
        return found
    finally:
        for guest in guests:
            await guest.stop()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="autovibe-isolation-") as folder:
        print(json.dumps(asyncio.run(_scenario(Path(folder)))))
