"""Disks that are copied: clones, moves, their formats, and who has to wait for whom meanwhile."""

from __future__ import annotations

from collections import Counter

import pytest
from autovibe_lab.tests.testing import Client, LabInThread


@pytest.fixture
def lab(tmp_path):
    lab = LabInThread(tmp_path / "lab", time_scale=0.02, null_guests=True)
    yield lab
    lab.close()


@pytest.fixture
def other(client, lab):
    """Another storage."""
    client.api.storage.post(storage="other", type="dir", path="/srv/other", content="images")


def log(client: Client, upid: str) -> list[str]:
    return [line["t"] for line in client.node.tasks(upid).log.get(limit=0)]


def timeout(vmid: int) -> str:
    return f"can't lock file '/var/lock/qemu-server/lock-{vmid}.conf' - got timeout"


def test_a_disk_moves_to_another_storage_and_format(client, other):
    machine = client.create(scsi0="local:1")
    client.ok(machine.move_disk.post(disk="scsi0", storage="other", format="raw", delete=1))
    assert machine.config.get()["scsi0"] == "other:100/vm-100-disk-0.raw,size=1G"
    assert client.wait(machine.snapshot.post(snapname="raw")) == "snapshot feature is not available"
    client.ok(machine.move_disk.post(disk="scsi0", storage="local", format="qcow2"))
    config = machine.config.get()
    assert (config["scsi0"], config["unused0"]) == (
        "local:100/vm-100-disk-0.qcow2,size=1G",
        "other:100/vm-100-disk-0.raw",
    )


def test_what_is_not_moved(client, other):
    machine = client.create(scsi0="local:1")
    client.ok(machine.snapshot.post(snapname="base"))
    for params, message in (
        ({"disk": "scsi7", "storage": "other"}, "disk 'scsi7' does not exist"),
        ({"disk": "ide2", "storage": "other"}, "you can't move a cdrom"),
        ({"disk": "scsi0", "storage": "local"}, "you can't move to the same storage with same format"),
        (
            {"disk": "scsi0", "storage": "other", "delete": 1},
            "you can't move a disk with snapshots and delete the source",
        ),
    ):
        assert client.refused(machine.move_disk.post, **params).content == message


def test_a_clone_of_another_format_on_another_storage(client, other):
    client.template(scsi0="local:1", ide2="local:cloudinit")
    copy = client.clone(100, 101, full=1, storage="other", format="raw").config.get()
    assert copy["scsi0"] == "other:101/vm-101-disk-0.raw,size=1G"
    assert copy["ide2"] == "other:101/vm-101-cloudinit.raw,media=cdrom,size=4M"


def test_a_disk_that_is_attached_again_has_its_size(client):
    machine = client.create(scsi0="local:3")
    machine.config.put(delete="scsi0")
    assert machine.config.get()["boot"] == "order=net0"
    machine.config.put(scsi0="local:100/vm-100-disk-0.qcow2")
    assert machine.config.get()["scsi0"].endswith("size=3G")


def test_a_stopped_source_is_shared_and_a_running_one_is_not(client):
    """A copy of 1 GiB at 5 MiB/s takes four seconds here, a lock is waited for a fifth of one."""
    client.template(scsi0="local:1")
    first = client.node.qemu(100).clone.post(newid=101, full=1, bwlimit=5120)
    assert client.refused(client.node.qemu(100).config.put, memory=512).content == timeout(100)
    client.clone(100, 102)
    assert client.wait(client.node.qemu(100).delete()) == timeout(100)
    assert client.wait(client.node.qemu(101).status.start.post()) == timeout(101)
    client.ok(first)

    machine = client.clone(100, 103)
    client.ok(machine.status.start.post())
    first = machine.clone.post(newid=104, full=1, bwlimit=5120)
    for upid in (
        machine.status.stop.post(),
        machine.clone.post(newid=105, full=1),
        machine.snapshot.post(snapname="no"),
    ):
        assert client.wait(upid) == timeout(103)
    client.ok(first)
    assert [105 in {entry["vmid"] for entry in client.node.qemu.get()}] == [False]
    assert log(client, first)[-5:] == [
        "freeze filesystem",
        "drive-scsi0: Cancelling block job",
        "drive-scsi0: Done.",
        "unfreeze filesystem",
        "TASK OK",
    ]


def test_the_second_for_an_id_is_told_by_its_task(client, lab):
    client.template(scsi0="local:1")
    lab.node.tasks.gate.clear()
    upids = [client.node.qemu(100).clone.post(newid=101, name=f"n{number}") for number in range(3)]
    lab.loop.call_soon_threadsafe(lab.node.tasks.gate.set)
    ends = Counter(client.wait(upid) for upid in upids)
    assert ends == {"OK": 1, "unable to create VM 101: config file already exists": 2}


def test_who_waits_too_long_for_a_slow_storage_leaves_no_machine(client, lab):
    client.template(scsi0="local:1")
    lab.node.disk_delay = 0.07
    lab.node.tasks.gate.clear()
    upids = {newid: client.node.qemu(100).clone.post(newid=newid) for newid in range(101, 109)}
    lab.loop.call_soon_threadsafe(lab.node.tasks.gate.set)
    ends = {newid: client.wait(upid) for newid, upid in upids.items()}
    failed = {newid for newid, end in ends.items() if end != "OK"}
    late = "clone failed: can't lock file '/var/lock/pve-manager/pve-storage-null' - got timeout"
    assert failed
    assert {end.replace("local", "null") for newid, end in ends.items() if newid in failed} == {late}
    assert {entry["vmid"] for entry in client.node.qemu.get()} == {100, *upids} - failed
