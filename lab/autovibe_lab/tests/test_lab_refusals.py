"""What a node refuses: at once, or in a task after a 200."""

from __future__ import annotations

import pytest
from autovibe_lab.tests.testing import Client, LabInThread


def test_tasks_fail_after_a_200(client):
    node = client.node
    missing = "Configuration file 'nodes/pve1/qemu-server/4242.conf' does not exist"
    assert client.wait(node.qemu(4242).status.start.post()) == missing
    assert client.wait(node.qemu(4242).status.stop.post()) == (
        "unable to find configuration file for VM 4242 on node 'pve1'"
    )
    machine = client.create()
    client.ok(machine.status.start.post())
    assert client.wait(machine.status.start.post()) == "VM 100 already running"
    client.ok(machine.snapshot.post(snapname="av-1"))
    assert client.wait(machine.snapshot.post(snapname="av-1")) == "snapshot name 'av-1' already used"
    assert client.wait(machine.snapshot("nope").rollback.post()) == "snapshot 'nope' does not exist"
    assert client.wait(machine.snapshot("nope").delete()) == "snapshot 'nope' does not exist"
    assert client.wait(machine.resize.put(disk="scsi0", size="512M")) == "shrinking disks is not supported"
    assert client.wait(machine.resize.put(disk="scsi7", size="+1G")) == "disk 'scsi7' does not exist"


def test_a_running_machine_is_neither_deleted_nor_made_a_template(client):
    machine = client.create()
    client.ok(machine.status.start.post())
    assert client.refused(machine.delete).content == "VM 100 is running - destroy failed"
    assert client.refused(machine.template.post).content == "you can't convert a VM to template if VM is running"


def test_a_template_neither_starts_nor_is_snapshotted(client):
    machine = client.template()
    assert client.wait(machine.status.start.post()) == "you can't start a vm if it's a template"
    assert client.wait(machine.snapshot.post(snapname="av-1")) == "you can't take a snapshot if it's a template"
    assert client.refused(machine.template.post).content == "you can't convert a template to a template"


def test_a_machine_with_snapshots_becomes_no_template(client):
    machine = client.create()
    client.ok(machine.snapshot.post(snapname="av-1"))
    refused = client.refused(machine.template.post)
    assert refused.content == "unable to create template, because VM contains snapshots"


def test_what_a_clone_is_refused_for(client):
    machine = client.create()
    client.create(101)

    def refused(**params: object) -> tuple[int, str]:
        error = client.refused(machine.clone.post, **params)
        return error.status_code, error.content

    assert refused(newid=101) == (500, "unable to create VM 101: config file already exists")
    assert refused(newid=102, full=0) == (
        500,
        "Linked clone feature is not supported for 'null:100/vm-100-disk-0.qcow2' (scsi0)",
    )
    assert refused(newid=102, pool="nope") == (403, "Permission check failed (pool 'nope' does not exist)")
    assert refused(newid=102, snapname="nope") == (500, "snapshot 'nope' does not exist")
    assert refused(newid=102, target="pve9") == (500, "no such cluster node 'pve9'")
    assert refused(newid=102, tags="a")[0] == 400


def test_power_calls_on_a_stopped_machine(client):
    machine = client.create()
    client.ok(machine.status.stop.post())
    client.ok(machine.status.shutdown.post())
    for command in ("reset", "suspend", "resume", "reboot"):
        assert client.refused(machine.status(command).post).content == "VM 100 not running"


def test_the_agent_of_a_machine_that_has_none_or_does_not_run(client):
    machine = client.create()
    assert client.refused(machine.agent.ping.post).content == "VM 100 is not running"
    machine.config.put(agent="0")
    assert client.refused(machine.agent.ping.post).content == "No QEMU guest agent configured"


def test_ids_that_are_taken(client):
    client.create()
    assert client.api.cluster.nextid.get() == "101"
    assert client.api.cluster.nextid.get(vmid=101) == "101"
    assert client.refused(client.api.cluster.nextid.get, vmid=100).errors == {"vmid": "VM 100 already exists"}
    duplicate = client.refused(client.node.qemu.post, vmid=100)
    assert duplicate.content == "unable to create VM 100 - VM 100 already exists on node 'pve1'"


def test_a_failed_create_leaves_nothing(client, lab):
    upid = client.node.qemu.post(vmid=100, scsi0="null:1", ide2="local:iso/none.iso,media=cdrom")
    assert client.wait(upid) == "unable to create VM 100 - volume 'local:iso/none.iso' does not exist"
    assert client.node.qemu.get() == []
    assert client.node.storage("null").content.get() == []


def test_a_start_on_a_missing_bridge_fails(client):
    machine = client.create(net0="virtio,bridge=vmbr99")
    upid = machine.status.start.post()
    assert client.wait(upid) == "start failed: QEMU exited with code 1"
    assert client.node.tasks(upid).log.get()[-3]["t"] == "bridge 'vmbr99' does not exist"


@pytest.fixture
def locked(client, lab):
    """A machine that another operation has locked."""
    machine = client.create()
    lab.node.machines[100].config.current["lock"] = "snapshot"
    return machine


def test_a_locked_machine(client, locked):
    message = "VM is locked (snapshot)"
    for upid in (
        locked.status.start.post(),
        locked.snapshot.post(snapname="lk"),
        locked.snapshot("base").rollback.post(),
        locked.snapshot("base").delete(),
        locked.resize.put(disk="scsi0", size="+1M"),
        locked.delete(),
    ):
        assert client.wait(upid) == message
    for call, params in (
        (locked.config.put, {"name": "x"}),
        (locked.clone.post, {"newid": 101, "full": 1}),
        (locked.template.post, {}),
    ):
        error = client.refused(call, **params)
        assert (error.status_code, error.content) == (500, message)
    client.ok(locked.status.stop.post())


def test_a_held_configuration_times_out(tmp_path):
    lab = LabInThread(tmp_path / "lab", lock_timeout=0.2)
    client = Client(lab)
    machine = client.create()
    timeout = "can't lock file '/var/lock/qemu-server/lock-100.conf' - got timeout"
    holding = lab.node.machines[100].lock.hold(1, shared=True)
    lab.run(holding.__aenter__())
    assert client.refused(machine.config.put, name="x").content == timeout
    upid = machine.status.start.post()
    assert client.wait(upid) == timeout
    assert client.node.tasks(upid).log.get()[0]["t"] == "trying to acquire lock..."
    client.ok(machine.clone.post(newid=101))  # shares the lock
    lab.run(holding.__aexit__(None, None, None))
    machine.config.put(name="x")
    lab.close()
