"""Several nodes in one cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from autovibe_lab.tests.testing import Client, LabInThread


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[LabInThread]:
    lab = LabInThread(tmp_path / "lab", nodes=3)
    yield lab
    lab.close()


def placed(client: Client, kind: str) -> dict:
    """Where the cluster says that things are."""
    key = {"vm": "vmid", "node": "node", "storage": "id"}[kind]
    return {entry[key]: (entry["node"], entry["status"]) for entry in client.api.cluster.resources.get(type=kind)}


def test_every_node_is_listed(client):
    names = ["pve1", "pve2", "pve3"]
    assert [node["node"] for node in client.api.nodes.get()] == names
    assert list(placed(client, "node")) == names
    cluster, *nodes = client.api.cluster.status.get()
    assert (cluster["nodes"], cluster["quorate"]) == (3, 1)
    assert [node["name"] for node in nodes] == names
    assert [(node["nodeid"], node["local"]) for node in nodes] == [(1, 1), (2, 0), (3, 0)]
    assert client.api.nodes("pve2").status.get()["uptime"] >= 0
    assert "hostname lookup 'pve9' failed" in client.refused(client.api.nodes("pve9").status.get).content


def test_guests_and_tasks_belong_to_a_node(client):
    client.create(100)
    other = client.api.nodes("pve2")
    upid = other.qemu.post(vmid=101, name="there", scsi0="null:1")
    assert upid.startswith("UPID:pve2:")
    assert Client.wait(On(client, "pve2"), upid) == "OK"
    assert placed(client, "vm") == {100: ("pve1", "stopped"), 101: ("pve2", "stopped")}
    assert [vm["vmid"] for vm in other.qemu.get()] == [101]
    assert [task["node"] for task in client.node.tasks.get()] == ["pve1"]
    assert {task["node"] for task in client.api.cluster.tasks.get()} == {"pve1", "pve2"}
    assert client.refused(client.node.tasks(upid).status.get).errors == {"upid": "no such task"}


def test_a_vm_id_is_taken_in_the_whole_cluster(client):
    client.template(100)
    assert client.api.cluster.nextid.get() == "101"
    other = client.api.nodes("pve2")
    error = client.refused(other.qemu.post, vmid=100)
    assert error.content == "unable to create VM 100 - VM 100 already exists on node 'pve1'"
    missing = client.refused(other.qemu(100).config.get)
    assert missing.content == "Configuration file 'nodes/pve2/qemu-server/100.conf' does not exist"
    On(client, "pve2").wait(other.qemu.post(vmid=101))
    assert client.refused(client.node.qemu(100).clone.post, newid=101).content == "VM 101 already exists on node 'pve2'"


def test_a_clone_goes_to_another_node_on_shared_storage_only(client):
    client.api.pools.post(poolid="all")
    client.template(100)
    client.ok(client.node.qemu(100).clone.post(newid=101, target="pve3", name="far", pool="all"))
    assert placed(client, "vm")[101] == ("pve3", "stopped")
    far = client.api.nodes("pve3").qemu(101)
    assert far.config.get()["name"] == "far"
    assert [(member["vmid"], member["node"]) for member in client.api.pools("all").get()["members"]] == [(101, "pve3")]
    assert On(client, "pve3").wait(far.status.start.post()) == "OK"
    # The base is in use, on whichever node its clone is.
    assert "is still in use by linked cloned" in client.wait(client.node.qemu(100).delete())
    client.create(102, scsi0="local:1", ide2="none,media=cdrom")
    error = client.refused(client.node.qemu(102).clone.post, newid=103, target="pve3")
    assert error.content == "can't clone VM to node 'pve3' (VM uses local storage)"
    error = client.refused(client.node.qemu(100).clone.post, newid=103, target="pve3", full=1, storage="local")
    assert error.content == "can't clone to non-shared storage 'local'"
    error = client.refused(client.node.qemu(100).clone.post, newid=103, target="pve9")
    assert error.content == "no such cluster node 'pve9'"


def test_storages_are_shared_or_not(client):
    shared = {entry["id"]: entry["shared"] for entry in client.api.cluster.resources.get(type="storage")}
    assert (shared["storage/pve2/null"], shared["storage/pve2/local"]) == (1, 0)


def test_a_node_that_is_down(client, lab):
    On(client, "pve2").wait(client.api.nodes("pve2").qemu.post(vmid=101))
    lab.aids.online("pve2", False)
    assert client.refused(client.api.nodes("pve2").qemu.get).status_code == 595
    assert placed(client, "vm") == {101: ("pve2", "unknown")}
    assert placed(client, "node")["pve2"] == ("pve2", "offline")
    assert client.api.nodes.get()[1]["status"] == "offline"
    lab.aids.online("pve2", True)
    assert [vm["vmid"] for vm in client.api.nodes("pve2").qemu.get()] == [101]


def test_nodes_keep_their_state(tmp_path):
    lab = LabInThread(tmp_path / "kept", nodes=2)
    On(Client(lab), "pve2").wait(lab.api().nodes("pve2").qemu.post(vmid=101, name="kept"))
    lab.close()
    lab = LabInThread(tmp_path / "kept", nodes=2)
    client = Client(lab)
    assert placed(client, "vm") == {101: ("pve2", "stopped")}
    assert len(client.api.nodes("pve2").tasks.get()) == 1
    lab.close()


class On(Client):
    """The same client, waiting for the tasks of another node."""

    def __init__(self, client: Client, node: str) -> None:
        self.lab, self.api, self.node = client.lab, client.api, client.api.nodes(node)
