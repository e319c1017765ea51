"""A real guest's life through the API: the same calls as for a null guest, with a kernel behind them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from autovibe_lab import image
from autovibe_lab.paths import LabPaths
from autovibe_lab.tests.testing import Client, LabInThread

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="needs qemu-system-x86"),
]


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Client]:
    try:
        built = image.build()
    except image.ImageError as error:
        pytest.skip(f"no guest image: {error}")
    lab = LabInThread(tmp_path / "lab")
    image.install(built, LabPaths(tmp_path / "lab"))
    yield Client(lab)
    for machine in lab.node.machines.values():
        if machine.guest:
            lab.run(machine.guest.stop())
    lab.close()


def answered(machine: object, within: float = 300) -> None:
    """The guest agent answers."""
    deadline = time.monotonic() + within
    while True:
        try:
            machine.agent.ping.post()
            return
        except Exception:
            if time.monotonic() > deadline:
                raise


def speaks_utf8(machine: object) -> None:
    """Each character is one byte on the wire: UTF-8 goes through as its bytes, in a path, an argument and input too."""
    path, said = (text.encode().decode("latin-1") for text in ("/workspace/Grüße €", "naïve ☃"))
    machine.agent("file-write").post(file=path, content=said)
    assert machine.agent("file-read").get(file=path)["content"] == said
    script = 'cat "$1" - && printf %s "$2"'
    command = ["sh", "-c", script, "sh", path, said]
    pid = machine.agent.exec.post(command=command, **{"input-data": said})["pid"]
    while not (result := machine.agent("exec-status").get(pid=pid))["exited"]:
        continue
    assert result["out-data"] == said * 3


def test_a_real_guest_keeps_its_disk_through_snapshot_template_and_clone(real):
    node = real.node
    source = {"scsi0": "local:0,import-from=local:import/autovibe-guest.qcow2", "ide2": "local:cloudinit"}
    real.template(100, memory=512, **source)
    machine = real.clone(100, 101, name="one", full=0)
    machine.config.put(ipconfig0="ip=192.168.100.17/24")
    real.ok(machine.status.start.post())
    answered(machine)

    pid = machine.agent.exec.post(command=["sh", "-c", "hostname; cat; exit 3"], **{"input-data": "in\n"})["pid"]
    while not (result := machine.agent("exec-status").get(pid=pid))["exited"]:
        continue
    assert (result["exitcode"], result["out-data"]) == (3, "one\nin\n")
    names = {interface["name"]: interface for interface in machine.agent("network-get-interfaces").get()["result"]}
    assert names["eth0"]["ip-addresses"][0]["ip-address"] == "192.168.100.17"
    assert real.refused(machine.agent.exec.post, command=["/no/such/binary"]).status_code == 596

    speaks_utf8(machine)
    real.ok(machine.status.suspend.post(todisk=1))
    assert machine.config.get()["lock"] == "suspended"
    real.ok(machine.status.start.post())
    answered(machine)
    assert "lock" not in machine.config.get()

    machine.agent("file-write").post(file="/workspace/x", content="first")
    real.ok(machine.snapshot.post(snapname="ram", vmstate=1))
    machine.agent("file-write").post(file="/workspace/x", content="second")
    real.ok(machine.snapshot("ram").rollback.post())
    assert machine.agent("file-read").get(file="/workspace/x")["content"] == "first"

    real.ok(machine.snapshot("ram").delete())
    pid = machine.agent.exec.post(command=["sync"])["pid"]
    while not machine.agent("exec-status").get(pid=pid)["exited"]:
        continue
    real.ok(machine.status.reset.post())
    answered(machine)
    real.ok(machine.resize.put(disk="scsi0", size="+1G"))
    real.ok(machine.status.shutdown.post(timeout=120, forceStop=1))
    real.ok(machine.template.post())
    second = real.clone(101, 102, full=0)
    real.ok(second.status.start.post())
    answered(second)
    assert second.agent("file-read").get(file="/workspace/x")["content"] == "first"
    real.ok(second.status.stop.post())
    for vmid in (102, 101, 100):
        real.ok(node.qemu(vmid).delete(purge=1))
    assert os.listdir(LabPaths(real.lab.state).state / "images") == []
