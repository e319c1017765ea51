"""Backups: made, described, pruned, restored."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from autovibe_lab import retention
from autovibe_lab.jobs import Job, Jobs, next_event
from autovibe_lab.tests.testing import Client, LabInThread

DAY = 86400


@pytest.fixture
def guest(client: Client) -> object:
    """A running null guest that has a file."""
    machine = client.create(100, tags="a;b")
    client.ok(machine.status.start.post())
    machine.agent("file-write").post(file="/etc/motd", content="hello")
    return machine


def backup(client: Client, **params: object) -> str:
    client.ok(client.node.vzdump.post(**({"vmid": 100, "storage": "local"} | params)))
    return client.node.storage(params.get("storage", "local")).content.get(content="backup")[-1]["volid"]


def motd(machine: object) -> str:
    return machine.agent("file-read").get(file="/etc/motd")["content"]


def test_a_backup_says_what_it_is(client: Client, guest: object) -> None:
    guest.firewall.rules.post(type="in", action="DROP", enable=1)
    volid = backup(client, compress="zstd", **{"notes-template": "{{guestname}} {{vmid}}", "protected": 1})
    entry = client.node.storage("local").content.get(content="backup")[0]
    assert entry["volid"] == volid
    assert volid.startswith("local:backup/vzdump-qemu-100-20")
    assert volid.endswith(".vma.zst")
    assert (entry["vmid"], entry["subtype"], entry["format"]) == (100, "qemu", "vma.zst")
    assert (entry["notes"], entry["protected"]) == ("base 100", 1)
    assert "protected volume" in client.wait(client.node.storage("local").content(volid).delete())
    client.node.storage("local").content(volid).put(notes="other", protected=0)
    assert client.node.storage("local").content(volid).get()["notes"] == "other"
    config = client.node.vzdump.extractconfig.get(volume=volid)
    assert "name: base\n" in config
    assert config.endswith("#qmdump#map:scsi0:drive-scsi0:null:qcow2:\n")
    client.ok(client.node.storage("local").content(volid).delete())
    assert client.node.storage("local").content.get(content="backup") == []
    assert not list((client.lab.state / "dump").iterdir())


@pytest.mark.parametrize("mode", ["snapshot", "suspend", "stop"])
def test_a_guest_comes_back_with_its_content(client: Client, guest: object, mode: str) -> None:
    guest.firewall.rules.post(type="in", action="DROP", enable=1)
    volid = backup(client, mode=mode)
    assert guest.status.current.get()["status"] == "running"
    assert "lock" not in guest.config.get()
    guest.agent("file-write").post(file="/etc/motd", content="changed")
    client.ok(client.node.qemu.post(vmid=101, archive=volid, unique=1, storage="null", name="again"))
    old, new = guest.config.get(), client.node.qemu(101).config.get()
    assert (new["name"], new["tags"], new["memory"]) == ("again", "a;b", old["memory"])
    assert new["scsi0"] == "null:101/vm-101-disk-0.qcow2,size=1G"
    assert new["ide2"].startswith("null:101/vm-101-cloudinit")
    assert new["net0"] != old["net0"]
    assert new["smbios1"] != old["smbios1"]
    assert new["vmgenid"] != old["vmgenid"]
    assert client.node.qemu(101).firewall.rules.get() == guest.firewall.rules.get()
    client.ok(client.node.qemu(101).status.start.post())
    assert motd(client.node.qemu(101)) == "hello"


def test_a_restore_over_a_guest_needs_force(client: Client, guest: object) -> None:
    volid = backup(client)
    refused = client.refused(client.node.qemu.post, vmid=100, archive=volid)
    assert "unable to restore VM 100 - VM 100 already exists on node 'pve1'" in str(refused)
    assert "vm is running" in str(client.refused(client.node.qemu.post, vmid=100, archive=volid, force=1))
    client.ok(guest.status.stop.post())
    before = guest.config.get()
    client.ok(client.node.qemu.post(vmid=100, archive=volid, force=1))
    after = guest.config.get()
    assert {key for key in before if before[key] != after.get(key)} == {"vmgenid", "digest"}
    assert "does not exist" in str(client.refused(client.node.qemu.post, vmid=102, archive="local:backup/vzdump-x.vma"))


def test_a_stopped_guest_shows_as_running_meanwhile(tmp_path: Path) -> None:
    lab = LabInThread(tmp_path / "lab", time_scale=0.05)
    client = Client(lab)
    try:
        machine = client.create(100)
        upid = client.node.vzdump.post(vmid=100, storage="local", bwlimit=10 << 10)
        while (status := machine.status.current.get())["status"] == "stopped":
            pass
        assert (status["qmpstatus"], status["lock"]) == ("prelaunch", "backup")
        assert "is running" in str(client.refused(machine.delete))
        client.ok(machine.status.start.post())
        client.node.tasks(upid).delete()
        assert client.wait(upid) == "interrupted by signal"
        after = machine.status.current.get()
        assert (after["qmpstatus"], after.get("lock")) == ("running", None)
        assert client.node.storage("local").content.get(content="backup") == []
    finally:
        lab.close()


def test_a_description_is_not_lengthened_by_a_restore(client: Client) -> None:
    client.create(100, description="two\nlines")
    volid = backup(client)
    client.ok(client.node.qemu.post(vmid=101, archive=volid))
    assert client.node.qemu(101).config.get()["description"] == client.node.qemu(100).config.get()["description"]


def test_a_backup_server_verifies(client: Client, guest: object) -> None:
    client.api.storage.post(storage="vault", type="pbs", server="10.0.0.8", datastore="main", username="a@pbs")
    volid = backup(client, storage="vault")
    entry = client.node.storage("vault").content.get()[0]
    assert volid.startswith("vault:backup/vm/100/20")
    assert entry["format"] == "pbs-vm"
    assert entry["verification"]["state"] == "ok"
    client.ok(client.node.qemu.post(vmid=101, archive=volid))
    assert motd_of_stopped(client, 101) == "hello"


def motd_of_stopped(client: Client, vmid: int) -> str:
    client.ok(client.node.qemu(vmid).status.start.post())
    return motd(client.node.qemu(vmid))


def test_a_failed_guest_fails_the_job(client: Client, guest: object) -> None:
    upid = client.node.vzdump.post(vmid="100,4242", storage="local")
    assert client.wait(upid) == "job errors"
    assert len(client.node.storage("local").content.get(content="backup")) == 1
    said = client.wait(client.node.vzdump.post(vmid=100, storage="null"))
    assert said.endswith("can't use storage 'null' for backups - wrong content type")
    assert client.refused(client.node.vzdump.post).errors == {"vmid": "property is missing"}


def test_old_backups_are_pruned(client: Client, guest: object) -> None:
    first = backup(client)
    client.node.storage("local").content(first).put(protected=1)
    for _ in range(2):
        backup(client, **{"prune-backups": "keep-last=1"})
    left = [entry["volid"] for entry in client.node.storage("local").content.get(content="backup")]
    assert len(left) == 2
    assert left[0] == first
    marks = client.node.storage("local").prunebackups.get(**{"prune-backups": "keep-last=1"})
    assert [entry["mark"] for entry in marks] == ["protected", "keep"]


def test_retention_counts_periods() -> None:
    noon = 1_700_000_000 - 1_700_000_000 % DAY + DAY // 2
    backups = [{"volid": str(n), "vmid": 1, "subtype": "qemu", "ctime": noon - n * DAY // 4 * 2} for n in range(12)]

    def kept(text: str) -> list[int]:
        marked = retention.marks(backups, retention.parse(text))
        return sorted(int(entry["volid"]) for entry in marked if entry["mark"] == "keep")

    assert kept("keep-last=2") == [0, 1]
    assert kept("keep-all=1") == list(range(12))
    assert len(kept("keep-daily=3")) == 3
    assert len(kept("keep-last=1,keep-daily=3")) == 4


def test_planned_backups_are_kept(client: Client, guest: object) -> None:
    client.lab.node.cluster.jobs.all["nightly"] = Job(
        "nightly", {"vmid": "100", "schedule": "02:00", "storage": "local"}
    )
    client.lab.node.cluster.jobs.save()
    again = Jobs(client.lab.state / "jobs.cfg").all
    assert again == client.lab.node.cluster.jobs.all
    assert again["nightly"].shown()["enabled"] == 1
    client.ok(guest.status.stop.post())
    client.ok(guest.delete(purge=1))
    assert client.lab.node.cluster.jobs.all == {}


@pytest.mark.parametrize(
    ("schedule", "when"),
    [
        ("02:00", "2026-11-23 02:00"),
        ("*/15", "2026-11-22 14:15"),
        ("*:30", "2026-11-22 14:30"),
        ("mon 01:05", "2026-11-23 01:05"),
        ("sat,sun 18:15", "2026-11-22 18:15"),
        ("daily", "2026-11-23 00:00"),
    ],
)
def test_a_schedule_has_a_next_time(schedule: str, when: str) -> None:
    now = time.mktime(time.strptime("2026-11-22 14:01", "%Y-%m-%d %H:%M"))
    assert time.strftime("%Y-%m-%d %H:%M", time.localtime(next_event(schedule, now))) == when


def test_a_schedule_that_makes_no_sense_has_none() -> None:
    assert next_event("sometimes", 0) is None
