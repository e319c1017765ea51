"""Power calls on a machine that runs, is paused, hibernates, or is locked."""

from __future__ import annotations

import time

import pytest
from autovibe_lab.api import power
from autovibe_lab.tests.testing import Client, LabInThread


@pytest.fixture
def lab(tmp_path):
    lab = LabInThread(tmp_path / "lab", time_scale=0.05)
    yield lab
    lab.close()


@pytest.fixture
def machine(client):
    machine = client.create()
    client.ok(machine.status.start.post())
    return machine


def log(client: Client, upid: str) -> list[str]:
    return [line["t"] for line in client.node.tasks(upid).log.get(limit=0)]


def status(machine: object) -> tuple[str, str]:
    found = machine.status.current.get()
    return found["status"], found["qmpstatus"]


def test_a_paused_machine_is_stopped_not_shut_down(client, machine):
    client.ok(machine.status.suspend.post())
    assert status(machine) == ("running", "paused")
    for call in (machine.status.shutdown.post, machine.status.reboot.post):
        assert client.refused(call).content == "VM is paused - cannot shutdown"
    client.ok(machine.status.resume.post())
    assert status(machine) == ("running", "running")
    client.ok(machine.status.suspend.post())
    client.ok(machine.status.shutdown.post(forceStop=1))
    assert status(machine) == ("stopped", "stopped")


def test_hibernation(client, machine):
    machine.agent("file-write").post(file="/tmp/x", content="kept")
    upid = machine.status.suspend.post(todisk=1)
    client.ok(upid)
    assert ":qmsuspend:" in upid
    config = machine.config.get()
    assert config["lock"] == "suspended"
    assert config["vmstate"] == f"null:100/vm-100-state-suspend-{time.strftime('%Y-%m-%d')}.raw"
    assert log(client, upid)[1:] == ["State saved, quitting", "TASK OK"]
    assert client.refused(machine.config.put, name="no").content == "VM is locked (suspended)"
    upid = machine.status.start.post()
    client.ok(upid)
    assert log(client, upid)[0::2] == ["Resuming suspended VM", "Resumed VM, removing state"]
    assert not {"lock", "vmstate", "runningmachine", "runningcpu"} & machine.config.get().keys()
    assert machine.agent("file-read").get(file="/tmp/x")["content"] == "kept"
    client.ok(machine.status.suspend.post(todisk=1))
    upid = machine.status.resume.post()
    client.ok(upid)
    assert ":qmresume:" in upid
    assert status(machine) == ("running", "running")


def test_a_hibernated_machine_can_be_deleted(client, machine):
    client.ok(machine.status.suspend.post(todisk=1))
    client.ok(machine.delete())


def test_a_reboots_task_ends_before_the_guest_is_back(client, machine, monkeypatch):
    # Two seconds in this lab: time enough to look.
    monkeypatch.setattr(power, "REBOOT_GAP", 40)
    machine.config.put(cores=2)
    client.ok(machine.status.reboot.post())
    assert status(machine)[0] == "stopped"
    deadline = time.monotonic() + 60
    while status(machine)[0] != "running":
        assert time.monotonic() < deadline
    assert machine.config.get(current=1)["cores"] == 2


def test_a_reset_is_not_a_new_start(client, machine):
    machine.config.put(cores=2)
    upid = machine.status.reset.post()
    client.ok(upid)
    assert log(client, upid) == ["TASK OK"]
    assert "cores" in [entry["key"] for entry in machine.pending.get() if "pending" in entry]


def test_a_locked_machine_that_runs_is_not_stopped(client, lab, machine):
    lab.node.machines[100].config.current["lock"] = "snapshot"
    for command in ("stop", "shutdown", "suspend", "reset", "reboot"):
        assert client.wait(machine.status(command).post()) == "VM is locked (snapshot)"
    assert status(machine)[0] == "running"


def test_a_backup_has_started_the_machine_paused(client, lab, machine):
    client.ok(machine.status.suspend.post())
    lab.node.machines[100].config.current["lock"] = "backup"
    client.ok(machine.status.start.post())
    assert status(machine) == ("running", "running")


def test_an_aborted_task_ends_as_a_killed_or_an_interrupted_one(tmp_path):
    lab = LabInThread(tmp_path / "bare", time_scale=0.05, bare_guests=True)
    client = Client(lab)
    machine = client.create(agent="0")
    client.ok(machine.status.start.post())
    upid = machine.status.shutdown.post(timeout=300)
    client.node.tasks(upid).delete()
    assert client.wait(upid) == "received interrupt"
    machine.config.put(agent="1")
    client.ok(machine.status.stop.post())
    client.ok(machine.status.start.post())
    upid = machine.status.shutdown.post(timeout=300)
    client.node.tasks(upid).delete()
    assert client.wait(upid) == "unexpected status"
    assert log(client, upid) == ["QEMU Guest Agent is not running - received interrupt"]
    client.node.tasks(upid).delete()  # an ended one: nothing
    lab.close()
