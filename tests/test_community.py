"""community.proxmox's own modules and inventory, and proxmoxer's Tasks, against the lab as against a node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from labs import ROOT, running_lab
from proxmoxer import ProxmoxAPI
from proxmoxer.tools import Tasks


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("state")) as found:
        yield found


@pytest.fixture(scope="module")
def connection(lab):
    """As root, whose password is what one has on a new node."""
    return {
        "api_host": "127.0.0.1",
        "api_port": lab.port,
        "api_user": "root@pam",
        "api_password": (lab.folder / "root-password").read_text().strip(),
        "validate_certs": False,
    }


def tasks():
    """(name, module, arguments): each is to succeed."""
    vm = {"node": "pve1", "vmid": 820, "timeout": 30}
    return [
        ("cloned", "proxmox_kvm", {"clone": "null", "name": "community", "newid": 820, "node": "pve1", "full": False,
                                   "timeout": 30}),
        ("updated", "proxmox_kvm", {**vm, "cores": 2, "memory": 256, "update": True}),
        ("started", "proxmox_kvm", {**vm, "state": "started"}),
        ("started_again", "proxmox_kvm", {**vm, "state": "started"}),
        ("current", "proxmox_kvm", {**vm, "state": "current"}),
        ("snapped", "proxmox_snap", {"vmid": 820, "snapname": "before", "state": "present", "timeout": 30}),
        ("snapped_again", "proxmox_snap", {"vmid": 820, "snapname": "before", "state": "present", "timeout": 30}),
        ("rolled_back", "proxmox_snap", {"vmid": 820, "snapname": "before", "state": "rollback", "timeout": 30}),
        ("unsnapped", "proxmox_snap", {"vmid": 820, "snapname": "before", "state": "absent", "timeout": 30}),
        ("started_later", "proxmox_kvm", {**vm, "state": "started"}),
        ("vms", "proxmox_vm_info", {"vmid": 820, "config": "current", "network": False}),
        ("user", "proxmox_user", {"userid": "dev@pve", "comment": "a developer", "password": "secret-enough"}),
        ("users", "proxmox_user_info", {"userid": "dev@pve"}),
        ("user_gone", "proxmox_user", {"userid": "dev@pve", "state": "absent"}),
        ("pool", "proxmox_pool", {"poolid": "community", "comment": "c"}),
        ("pool_again", "proxmox_pool", {"poolid": "community", "comment": "c"}),
        ("member", "proxmox_pool_member", {"poolid": "community", "member": "820"}),
        ("member_again", "proxmox_pool_member", {"poolid": "community", "member": "820"}),
        ("member_gone", "proxmox_pool_member", {"poolid": "community", "member": "820", "state": "absent"}),
        ("pool_gone", "proxmox_pool", {"poolid": "community", "state": "absent"}),
        ("storages", "proxmox_storage_info", {"storage": "local"}),
        ("nodes", "proxmox_node_info", {}),
        ("tasks", "proxmox_tasks_info", {"node": "pve1"}),
        ("stopped", "proxmox_kvm", {**vm, "state": "stopped", "force": True}),
        ("stopped_again", "proxmox_kvm", {**vm, "state": "stopped", "force": True}),
        ("absent", "proxmox_kvm", {**vm, "state": "absent"}),
        ("absent_again", "proxmox_kvm", {**vm, "state": "absent"}),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def named(lab, connection):
    book = []
    for name, module, arguments in tasks():
        book.append({"name": name, f"community.proxmox.{module}": {**connection, **arguments}, "register": name})
    ran = lab.tasks_run(*[{**task, "ignore_errors": True} for task in book])
    failed = {name: result.get("msg") for name, result in ran.named.items() if result.get("failed")}
    assert failed == {}
    return ran.named


def changed(named, *names):
    return [named[name]["changed"] for name in names]


def test_kvm_clones_configures_starts_stops_and_removes(named):
    assert changed(named, "cloned", "started", "started_again") == [True, True, False]
    assert named["current"]["status"] == "running"
    assert changed(named, "stopped", "stopped_again", "absent", "absent_again") == [True, False, True, False]


def test_snapshots_come_roll_back_and_go(named):
    assert changed(named, "snapped", "snapped_again", "rolled_back", "unsnapped") == [True, False, True, True]


def test_facts_are_read(named):
    (vm,) = named["vms"]["proxmox_vms"]
    assert (vm["name"], vm["config"]["cores"], vm["status"]) == ("community", 2, "running")
    assert named["storages"]["proxmox_storages"][0]["type"] == "dir"
    assert [node["node"] for node in named["nodes"]["proxmox_nodes"]] == ["pve1"]
    assert {task["type"] for task in named["tasks"]["proxmox_tasks"]} >= {"qmclone", "qmstart", "qmsnapshot"}


def test_users_and_pools_come_and_go(named):
    assert changed(named, "user", "user_gone") == [True, True]
    assert named["users"]["proxmox_users"][0]["comment"] == "a developer"
    assert changed(named, "pool", "pool_again", "member", "member_again", "member_gone", "pool_gone") == [
        True, False, True, False, True, True,
    ]  # fmt: skip


def test_the_inventory_lists_the_vms(lab, connection, tmp_path):
    source = tmp_path / "lab.proxmox.yml"
    settings = {
        "plugin": "community.proxmox.proxmox",
        "url": lab.url,
        "user": connection["api_user"],
        "password": connection["api_password"],
        "want_facts": True,
        "want_proxmox_nodes_ansible_host": False,
    }
    source.write_text(json.dumps(settings))
    lab.tasks_run({"name": "m", "autovibe.proxmox.machine": {"vm_id": 830, "name": "listed", "state": "started",
                                                            "source": {"name": "null"}}})  # fmt: skip
    tool = Path(sys.executable).with_name("ansible-inventory")
    done = subprocess.run(
        [str(tool), "-i", str(source), "--list"],
        cwd=ROOT,
        env={**os.environ, "REQUESTS_CA_BUNDLE": str(lab.folder / "ca.pem")},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "proxmox_all_running" in found, json.dumps(found) + done.stderr
    assert "listed" in found["proxmox_all_running"]["hosts"]
    assert found["_meta"]["hostvars"]["listed"]["proxmox_vmid"] == 830


def test_proxmoxers_tasks_wait_and_decode(lab, connection):
    api = ProxmoxAPI(
        "127.0.0.1", port=lab.port, user="root@pam", password=connection["api_password"],
        verify_ssl=str(lab.folder / "ca.pem"),
    )  # fmt: skip
    upid = api.nodes("pve1").qemu.post(vmid=840, name="tasks", scsi0="null:1", memory=64)
    status = Tasks.blocking_status(api, upid, timeout=60)
    assert (status["status"], status["exitstatus"]) == ("stopped", "OK")
    decoded = Tasks.decode_upid(upid)
    assert (decoded["node"], decoded["type"], decoded["id"], decoded["user"]) == ("pve1", "qmcreate", "840", "root@pam")
    assert "TASK OK" in Tasks.decode_log(api.nodes("pve1").tasks(upid).log.get())
