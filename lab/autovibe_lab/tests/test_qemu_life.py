"""A real guest: its boot, its agent, its way to the hub, snapshots, another daemon, its end."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from autovibe_lab import cloudinit, coding_clis, disks, image, qemu
from autovibe_lab.guest import AgentError, GuestError
from autovibe_lab.paths import LabPaths, Network
from autovibe_lab.qemu import QemuGuest

pytestmark = pytest.mark.vm

CONFIG = {
    "name": "m17",
    "scsi0": "local:117/vm-117-disk-0.qcow2",
    "ide2": "local:117/vm-117-cloudinit.qcow2,media=cdrom",
    "boot": "order=scsi0",
    "memory": "1024",
    "net0": "virtio=BC:24:11:00:00:17,bridge=vmbr1",
    "ipconfig0": "ip=192.168.100.17/24",
    "agent": "enabled=1",
    "smbios1": "uuid=11111111-2222-3333-4444-555566667777",
}


class Bench:
    """A lab's files, one guest on them, and a port for the hub."""

    def __init__(self, state: Path, hub_port: int) -> None:
        self.lab, self.hub_port = LabPaths(state), hub_port
        self.runner = asyncio.Runner()
        self.lab.make()
        image.install(image.build(), self.lab)
        self.guest = self.new_guest()

    def new_guest(self) -> QemuGuest:
        return QemuGuest(117, self.lab, Network(self.hub_port))

    @property
    def disk(self) -> Path:
        return self.lab.volume(CONFIG["scsi0"])

    async def prepare(self) -> None:
        await disks.convert_import(self.lab.imports / "autovibe-guest.qcow2", self.disk)
        await cloudinit.write_drive(CONFIG, 117, self.lab.volume(CONFIG["ide2"].split(",")[0]))

    async def boot(self, **config: str) -> None:
        await self.guest.start(CONFIG | config)
        await self.guest.agent("guest-ping", timeout=300)

    async def run(self, *argv: str) -> str:
        """The output of a command in the guest."""
        request = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
        pid = (await self.guest.agent("guest-exec", request, 60))["pid"]
        while True:
            status = await self.guest.agent("guest-exec-status", {"pid": pid}, 60)
            if status["exited"]:
                out, err = (base64.b64decode(status.get(name, "")).decode() for name in ("out-data", "err-data"))
                assert status.get("exitcode") == 0, out + err
                return out
            await asyncio.sleep(0.05)

    async def python(self, program: str) -> str:
        return await self.run("python3", "-c", program)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    # Bound and not listening: a hub that is down, whose port nobody else gets. One that comes up may share it.
    port = socket.socket()
    port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    port.bind(("127.0.0.1", 0))
    bench = Bench(tmp_path_factory.mktemp("lab"), port.getsockname()[1])
    try:
        bench.runner.run(bench.prepare())
        bench.runner.run(bench.boot())
        yield bench
    finally:
        bench.runner.run(bench.guest.stop())
        bench.runner.close()
        port.close()
    assert qemu.orphans(bench.lab) == []


@contextlib.asynccontextmanager
async def hub(bench: Bench, serve: Callable) -> AsyncIterator[None]:
    server = await asyncio.start_server(serve, "127.0.0.1", bench.hub_port)
    try:
        yield
    finally:
        server.close()


def test_the_guest_is_who_its_configuration_says(bench: Bench) -> None:
    async def body() -> None:
        assert (await bench.run("hostname")).strip() == "m17"
        assert (await bench.run("cat", "/etc/machine-id")).strip() == "11111111222233334444555566667777"
        addresses = json.loads(await bench.run("ip", "-json", "address", "show", "dev", "eth0"))[0]
        assert addresses["address"] == "bc:24:11:00:00:17"
        assert [(a["local"], a["prefixlen"]) for a in addresses["addr_info"]] == [("192.168.100.17", 24)]
        assert (await bench.run("ip", "route")).split()[:3] == ["192.168.100.0/24", "dev", "eth0"]
        assert "bootstrap.py" in await bench.run("ps", "ax")

    bench.runner.run(body())


def test_claude_code_runs_as_the_agents_user(bench: Bench) -> None:
    output = bench.runner.run(bench.run("su", "agent", "-c", "cd /workspace && touch mine && claude --version"))
    assert output.startswith(coding_clis.CLAUDE_VERSION)


def test_the_guest_hears_a_stream_as_it_comes_and_may_close_its_half(bench: Bench) -> None:
    heard = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read())  # until the guest has closed its half
        for number in range(3):
            writer.write(b"%d" % number)
            await writer.drain()
            heard.append(await asyncio.wait_for(acknowledged.get(), 60))
        writer.close()

    async def acknowledge(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The first connection streams, each later one says what has arrived of it.
        if not heard:
            await serve(reader, writer)
        else:
            await acknowledged.put(await reader.read())
            writer.close()

    program = """
import socket
def connect(): return socket.create_connection(('192.168.100.2', 8000), 60)
stream = connect(); stream.sendall(b'hello'); stream.shutdown(socket.SHUT_WR)
while part := stream.recv(10):
    with connect() as other: other.sendall(part); other.shutdown(socket.SHUT_WR); other.recv(1)
print('end')
"""

    async def body() -> None:
        async with hub(bench, acknowledge):
            assert (await bench.python(program)).strip() == "end"
        assert heard == [b"hello", b"0", b"1", b"2"]

    acknowledged: asyncio.Queue[bytes] = asyncio.Queue()
    bench.runner.run(body())


def test_many_connections_at_once_reach_the_hub_and_leave_no_relay(bench: Bench) -> None:
    count, together = 20, asyncio.Barrier(20)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = await reader.readline()
        await together.wait()  # none is answered before all are there
        writer.write(number * 1000)
        writer.close()

    program = f"""
import socket
all = [socket.create_connection(('192.168.100.2', 8000), 60) for _ in range({count})]
for n, s in enumerate(all): s.sendall(b'%04d\\n' % n)
for n, s in enumerate(all):
    data = b''
    while part := s.recv(65536): data += part
    assert data == (b'%04d\\n' % n) * 1000, (n, len(data))
    s.close()
"""

    async def body() -> None:
        async with hub(bench, serve):
            await bench.python(program)
        async with asyncio.timeout(60):
            while len(qemu.orphans(bench.lab)) > 1:
                await asyncio.sleep(0.05)

    bench.runner.run(body())


def test_a_hub_that_is_down_is_a_closed_connection_and_the_next_one_works(bench: Bench) -> None:
    program = "import socket; s = socket.create_connection(('192.168.100.2', 8000), 60); print(s.recv(10).decode())"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"here")
        writer.close()

    async def body() -> None:
        assert (await bench.python(f"try:\n {program}\nexcept OSError: print()")).strip() == ""
        async with hub(bench, serve):
            assert (await bench.python(program)).strip() == "here"

    bench.runner.run(body())


def test_the_agents_answers_find_their_requests(bench: Bench) -> None:
    async def body() -> None:
        outputs = await asyncio.gather(*(bench.run("echo", str(number)) for number in range(8)))
        assert [output.strip() for output in outputs] == [str(number) for number in range(8)]
        await bench.guest.pause()
        with pytest.raises(AgentError, match="got timeout"):
            await bench.guest.agent("guest-get-host-name", timeout=0.3)
        await bench.guest.resume()
        assert await bench.guest.agent("guest-ping", timeout=60) == {}

    bench.runner.run(body())


def test_another_daemon_adopts_the_guest(bench: Bench) -> None:
    async def body() -> None:
        pid = qemu.orphans(bench.lab)
        await bench.guest.close()
        assert not bench.guest.running()
        bench.guest = bench.new_guest()
        assert await bench.guest.adopt(CONFIG)
        assert qemu.orphans(bench.lab) == pid
        assert (await bench.run("hostname")).strip() == "m17"
        with pytest.raises(GuestError, match="already running"):
            await bench.guest.start(CONFIG)

    bench.runner.run(body())


def test_a_snapshot_of_the_frozen_disk_comes_back(bench: Bench) -> None:
    async def body() -> None:
        await bench.run("sh", "-c", "echo before >/workspace/file")
        assert await bench.guest.agent("guest-fsfreeze-freeze", timeout=60) >= 1
        await bench.guest.snapshot("av-disk", ram=False)
        await bench.guest.agent("guest-fsfreeze-thaw", timeout=60)
        await bench.run("sh", "-c", "echo after >/workspace/file")
        await bench.guest.stop()
        assert (await disks.info(bench.disk)).snapshots == ("av-disk",)
        await disks.snapshot_apply(bench.disk, "av-disk")
        await bench.boot()
        assert (await bench.run("cat", "/workspace/file")).strip() == "before"
        await bench.guest.delete_snapshot("av-disk")
        assert (await disks.info(bench.disk)).snapshots == ()

    bench.runner.run(body())


def test_a_snapshot_with_ram_goes_on_where_it_was(bench: Bench) -> None:
    async def body() -> None:
        await bench.run("sh", "-c", "echo before >/run/file")
        await bench.guest.snapshot("av-ram", ram=True)
        await bench.run("sh", "-c", "echo after >/run/file")
        await bench.guest.stop()
        await bench.boot(vmstate="av-ram")
        assert (await bench.run("cat", "/run/file")).strip() == "before"
        with pytest.raises(GuestError, match="av-ram"):
            await bench.guest.snapshot("av-ram", ram=False)

    bench.runner.run(body())


def test_a_shutdown_is_clean_by_the_agent_and_by_the_power_button(bench: Bench) -> None:
    async def body() -> None:
        await bench.run("sh", "-c", "echo kept >/workspace/file")
        assert await bench.guest.shutdown(180)
        assert not bench.guest.running()
        assert await bench.guest.shutdown(1)
        await bench.boot()
        assert (await bench.run("cat", "/workspace/file")).strip() == "kept"
        await bench.guest._monitor("system_powerdown")
        await asyncio.wait_for(bench.guest.wait(), 180)

    bench.runner.run(body())


def test_a_guest_that_dies_is_seen_and_starts_again(bench: Bench) -> None:
    async def body() -> None:
        await bench.boot()
        for pid in qemu.orphans(bench.lab):
            os.kill(pid, signal.SIGKILL)
        await asyncio.wait_for(bench.guest.wait(), 60)
        with pytest.raises(AgentError, match="not running"):
            await bench.guest.agent("guest-ping")
        await bench.boot()

    bench.runner.run(body())


def test_a_failed_start_says_why(bench: Bench) -> None:
    async def body() -> None:
        await bench.guest.stop()
        with pytest.raises(GuestError, match="volume 'local:117/none.qcow2' does not exist"):
            await bench.guest.start(CONFIG | {"scsi0": "local:117/none.qcow2"})
        with pytest.raises(GuestError, match="start failed: QEMU exited: .*memory"):
            await bench.guest.start(CONFIG | {"memory": "99999999999"})
        assert not bench.guest.running()

    bench.runner.run(body())


def test_the_firewall_closes_the_way_to_the_hub_for_new_connections(bench: Bench) -> None:
    program = "import socket; s = socket.create_connection(('192.168.100.2', 8000), 60); print(s.recv(10).decode())"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"here")
        writer.close()

    async def body() -> None:
        if not bench.guest.running():
            await bench.boot()
        closed = bench.lab.closed(117, "net0")
        async with hub(bench, serve):
            closed.touch()
            assert (await bench.python(f"try:\n {program}\nexcept OSError: print()")).strip() == ""
            closed.unlink()
            assert (await bench.python(program)).strip() == "here"

    bench.runner.run(body())
