"""A null guest's whole life through proxmoxer, as a client of a real node would see it."""

from __future__ import annotations

import re
from pathlib import Path

from autovibe_lab.testing import LabInThread

UPID = re.compile(r"UPID:pve1:[0-9A-F]{8}:[0-9A-F]{8}:[0-9A-F]{8}:\w+:\d+:autovibe@pve!autovibe:")


def test_a_null_guest_lives_from_template_to_its_end(client):
    client.api.pools.post(poolid="autovibe")
    client.template(tags="b;a")
    upid = client.node.qemu(100).clone.post(newid=101, name="one", description="mine", pool="autovibe")
    assert UPID.fullmatch(upid)
    client.ok(upid)
    machine = client.node.qemu(101)
    config = machine.config.get()
    assert (config["name"], config["description"], config["tags"]) == ("one", "mine", "a;b")
    assert config["scsi0"] == "null:100/base-100-disk-0.qcow2/101/vm-101-disk-0.qcow2,size=1G"

    machine.config.put(cores=2, ipconfig0="ip=192.168.100.17/24", tags="autovibe;id-1")
    client.ok(machine.status.start.post())
    assert machine.status.current.get()["status"] == "running"
    assert machine.agent.ping.post() == {"result": {}}
    interfaces = machine.agent("network-get-interfaces").get()["result"]
    assert interfaces[1]["ip-addresses"][0]["ip-address"] == "192.168.100.17"

    machine.agent("file-write").post(file="/etc/x", content="first")
    client.ok(machine.snapshot.post(snapname="av-1", description="here"))
    machine.agent("file-write").post(file="/etc/x", content="second")
    client.ok(machine.snapshot("av-1").rollback.post(start=1))
    assert machine.agent("file-read").get(file="/etc/x")["content"] == "first"

    client.ok(machine.status.shutdown.post(timeout=5))
    client.ok(machine.snapshot("av-1").delete())
    client.ok(machine.template.post())
    client.clone(101, 102, full=0)
    assert client.wait(machine.delete()) == (
        "base volume 'null:100/base-100-disk-0.qcow2/101/base-101-disk-0.qcow2' is still in use by linked cloned"
    )
    client.ok(client.node.qemu(102).delete(purge=1))
    client.ok(machine.delete())
    assert [entry["vmid"] for entry in client.api.cluster.resources.get(type="vm")] == [100]


def test_exec_answers_at_once(client):
    machine = client.create()
    client.ok(machine.status.start.post())
    pid = machine.agent.exec.post(command=["sh", "-c", "true"])["pid"]
    assert machine.agent("exec-status").get(pid=pid) == {"exited": 1, "exitcode": 0}
    again = client.refused(machine.agent("exec-status").get, pid=pid)
    assert again.status_code == 500
    assert again.content == "Agent error: Invalid parameter 'pid'"


def test_a_clone_has_an_identity_of_its_own(client):
    client.template(description="about the template", smbios1="serial=abc")
    machine = client.clone(100, 101)
    old, new = client.node.qemu(100).config.get(), machine.config.get()
    for key in ("net0", "smbios1", "vmgenid"):
        assert old[key] != new[key]
    assert "serial=abc" in new["smbios1"]
    assert new["description"] == "about the template"
    assert new["name"] == "Copy-of-VM-base"
    assert "template" not in new


def test_a_full_clone_of_a_snapshot_is_what_was_then(client):
    machine = client.create(name="then")
    client.ok(machine.snapshot.post(snapname="av-1"))
    machine.config.put(name="now")
    copy = client.clone(100, 101, snapname="av-1", full=1)
    assert copy.config.get()["name"] == "Copy-of-VM-then"
    client.ok(copy.template.post())
    assert "/base-101-disk-0" in copy.config.get()["scsi0"]


def test_twenty_clones_at_a_time_all_succeed(client):
    client.template()
    upids = [client.node.qemu(100).clone.post(newid=newid, name=f"m{newid}") for newid in range(200, 220)]
    assert {client.wait(upid) for upid in upids} == {"OK"}


def test_a_lab_that_ends_leaves_nothing_where_nobody_looks(tmp_path: Path) -> None:
    """Its sockets are in /tmp when its own folder has a long path."""
    lab = LabInThread(tmp_path / ("long" * 25) / "lab")
    run = lab.node.paths.run
    assert not run.is_relative_to(tmp_path)
    assert run.is_dir()
    lab.close()
    assert not run.exists()
