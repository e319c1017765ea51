"""Tasks, and the test aids that hold answers back."""

from __future__ import annotations

import threading
import time

import pytest
import requests
from autovibe_lab.tasks import Tasks


def test_the_list_filters_and_counts(client):
    client.template()
    began = int(time.time())
    for newid in (101, 102):
        client.clone(100, newid)
    tasks = client.node.tasks
    assert [task["type"] for task in tasks.get(typefilter="qmclone")] == ["qmclone"] * 2
    assert tasks.get(vmid=101) == []  # a clone's task is its source's
    assert len(tasks.get(limit=1)) == 1
    assert tasks.get(source="active") == []
    assert len(tasks.get(source="all", since=began, limit=500)) >= 2
    assert tasks.get(since=began + 100) == []
    client.wait(client.node.qemu(4242).status.start.post())
    assert [task["id"] for task in tasks.get(errors=1)] == ["4242"]
    entry = tasks.get(limit=1)[0]
    assert (entry["user"], entry["tokenid"]) == ("autovibe@pve", "autovibe")


def test_an_unknown_task(client):
    upid = "UPID:pve1:00000001:00000001:5F000000:qmstart:100:root@pam:"
    assert client.refused(client.node.tasks(upid).status.get).errors == {"upid": "no such task"}
    assert client.node.tasks(upid).log.get() == {"n": 1, "t": "unable to open file - No such file or directory"}


def test_a_log_in_pages(client):
    client.create()
    upid = client.node.tasks.get()[0]["upid"]
    lines = client.node.tasks(upid).log.get(limit=0)
    assert lines[-1]["t"] == "TASK OK"
    assert client.node.tasks(upid).log.get(start=1, limit=1) == lines[1:2]


def test_tasks_outlive_the_process(client, lab):
    client.create()
    before = client.node.tasks.get()
    again = Tasks("pve1", lab.state / "tasks")
    assert [task.list_entry() for task in again.all.values()] == before[::-1]


def test_an_aborted_clone_leaves_nothing(client, lab):
    client.ok(client.node.qemu.post(vmid=100, name="base", scsi0="null:1"))
    upid = client.node.qemu(100).clone.post(newid=101, name="new", description="mine", bwlimit=1)
    config = client.node.qemu(101).config.get()
    assert (config["description"], config["lock"]) == (" qmclone temporary file", "clone")
    assert client.node.qemu(101).status.current.get()["name"] == "VM 101"
    client.node.tasks(upid).delete()
    assert client.wait(upid) == (
        "clone failed: copy failed: command '/usr/bin/qemu-img convert -p -n -r 1K -f qcow2 -O qcow2 "
        "/var/lib/vz/null/images/100/vm-100-disk-0.qcow2 zeroinit:/var/lib/vz/null/images/101/vm-101-disk-0.qcow2' "
        "failed: interrupted by signal"
    )
    assert client.refused(client.node.qemu(101).config.get).status_code == 500
    assert len(client.node.storage("null").content.get()) == 1
    assert client.node.qemu(100).config.put(name="free") is None


@pytest.mark.parametrize("running", [False, True])
def test_a_clones_killed_worker_leaves_half_a_machine(client, lab, running):
    client.api.pools.post(poolid="p")
    client.template()
    if running:
        upid = client.node.qemu(100).clone.post(newid=101, name="new", pool="p", full=1, bwlimit=1)
        lab.aids.kill(upid)
    else:
        lab.aids.kill_next("qmclone", 100)
        upid = client.node.qemu(100).clone.post(newid=101, name="new", pool="p")
    assert client.wait(upid) == "unexpected status"
    assert "TASK" not in client.node.tasks(upid).log.get(limit=0)[-1]["t"]
    config = client.node.qemu(101).config.get()
    assert config["lock"] == "clone"
    assert config.get("description") == (None if running else " qmclone temporary file")
    assert client.api.pools("p").get()["members"] == []
    assert [volume["volid"] for volume in client.node.storage("null").content.get(vmid=101)]
    assert client.wait(client.node.qemu(101).delete()) == "VM is locked (clone)"
    client.clone(100, 102)  # its locks died with it


def test_a_held_call_is_executed_and_not_answered(client, lab):
    client.template()
    hold = lab.aid("POST", "holds", {"method": "POST", "path": "/nodes/pve1/qemu/100/clone"})["id"]
    answers = []
    thread = threading.Thread(target=lambda: answers.append(client.node.qemu(100).clone.post(newid=101)))
    thread.start()
    deadline = time.monotonic() + 60
    while lab.aid("GET", f"holds/{hold}")["state"] != "holding":
        assert time.monotonic() < deadline
    while not any(machine["vmid"] == 101 for machine in lab.api().nodes("pve1").qemu.get()):
        assert time.monotonic() < deadline
    assert answers == []
    released = lab.aid("DELETE", f"holds/{hold}")
    assert (released["state"], released["matched"]) == ("released", 1)
    thread.join(60)
    client.ok(answers[0])
    assert [task["id"] for task in lab.aid("GET", "tasks") if task["type"] == "qmclone"] == ["100"]
    calls = lab.aid("GET", "calls")
    assert sum(call["path"] == "/nodes/pve1/qemu/100/clone" for call in calls) == 1


def test_faults_answer_instead(client, lab):
    client.create()
    fault = {"method": "POST", "path": ".*/status/start", "status": 596, "reason": "Broken pipe", "count": 1}
    lab.aid("POST", "faults", fault)
    assert client.refused(client.node.qemu(100).status.start.post).status_code == 596
    assert client.node.qemu(100).status.current.get()["status"] == "stopped"
    client.ok(client.node.qemu(100).status.start.post())


def test_the_aids_want_the_labs_token(lab):
    response = requests.get(f"{lab.url}/lab/calls", verify=str(lab.state / "ca.pem"), timeout=30)
    assert response.status_code == 401


@pytest.mark.parametrize("pool", ["autovibe", "autovibe/sub"])
def test_pools_outlive_a_restart(client, lab, pool):
    from autovibe_lab.pools import Pools

    if "/" in pool:
        client.api.pools.post(poolid=pool.partition("/")[0])
    client.api.pools.post(poolid=pool, comment="a: b")
    client.template()
    client.clone(100, 101, pool=pool)
    assert [member["vmid"] for member in client.api.pools(pool).get()["members"]] == [101]
    kept = Pools(lab.state / "user.cfg").all[pool]
    assert (kept.comment, kept.vms) == ("a: b", {101})
