"""A hub's own VM: adopted by `autovibe hub`, checkpointed while the hub itself stands still, and left alone else.

A null guest with the SMBIOS uuid that the hub is told plays the VM; SIGSTOP makes the hub's processes stand still.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import psutil
import pytest
from hub_vm import Vm, hub_admin
from sites import BINARIES, ROOT, Site, running_site
from test_least_privilege import Admin
from test_worker_kills import Aids, is_gone, kill_worker_while_held, wait_for

UUID = str(uuid4())
VM = 150


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site("--no-image", environment={"AUTOVIBE_HUB_SMBIOS_UUID": UUID}) as site:
        yield site


@pytest.fixture(scope="module")
def aids(site: Site) -> Aids:
    return Aids(site)


@pytest.fixture(scope="module")
def admin(site: Site) -> Admin:
    return hub_admin(SimpleNamespace(folder=site.state / "lab", url=f"https://127.0.0.1:{site.lab_port}"))


@pytest.fixture(scope="module")
def vm(admin: Admin) -> Vm:
    return Vm(admin, VM, smbios_uuid=UUID, description="Ann's hub", tags="mine")


@pytest.fixture(scope="module")
def adopted(site: Site, vm: Vm) -> dict[str, Any]:
    return site.json("hub", "adopt", str(VM))


def processes_of(site: Site) -> list[psutil.Process]:
    """All that would run in the hub's VM: its processes, its database, Ansible; not the lab's."""
    supervisor = site.supervisor()
    postmaster = psutil.Process(int((site.state / "pg" / "data" / "postmaster.pid").read_text().split()[0]))
    return [one for top in (supervisor, postmaster) for one in [top, *top.children(recursive=True)]]


def is_ansible(process: psutil.Process) -> bool:
    """Not if it is gone by now: the database's processes and the scheduler's come and go."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return "ansible" in " ".join(process.cmdline())
    return False


@contextlib.contextmanager
def standing_still(site: Site) -> Iterator[None]:
    """As a VM does whose processors are halted."""
    stopped = processes_of(site)
    assert any(is_ansible(one) for one in stopped), "its own run is under way"
    try:
        for process in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        yield
    finally:
        for process in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def test_another_vm_is_refused_in_one_line(site: Site, admin: Admin) -> None:
    other = Vm(admin, VM + 1)
    before = other.config
    refused = site.run("hub", "adopt", str(VM + 1))
    assert refused.returncode == 1
    assert f"not {UUID}: it is another VM than the one that is meant" in refused.stderr
    assert refused.stderr.count("\n") == 1
    missing = site.run("hub", "adopt", "199")
    assert "There is no VM 199 that the token may see; add 199 to proxmox_host_hub_vm_ids" in missing.stderr
    too_early = site.run("hub", "checkpoint")
    assert (too_early.returncode, "`autovibe hub adopt VMID` does it once" in too_early.stderr) == (1, True)
    assert other.config == before
    assert "vm: not adopted" in site.autovibe("hub")


def test_the_hub_is_adopted_and_shown_like_other_machines(site: Site, vm: Vm, adopted: dict[str, Any]) -> None:
    assert (adopted["vm_id"], adopted["node"], adopted["project"]) == (VM, "pve1", "hub")
    config = vm.config
    identity, notes = config["description"].strip().split("\n")
    assert f"machine={adopted['machine']} type=hub" in identity
    assert notes == "Ann's hub"
    assert {"mine", "autovibe", "type-hub"} < set(config["tags"].split(";"))
    assert [(row["name"], row["type"], row["status"]) for row in site.json("machine", "list")] == [
        ("hub", "hub", "active")
    ]
    digest = config["digest"]
    assert site.json("hub", "adopt", str(VM)) == adopted
    assert vm.config["digest"] == digest


def test_a_checkpoint_is_made_and_shown(site: Site, aids: Aids, adopted: dict[str, Any]) -> None:
    made = site.json("hub", "checkpoint", "--label", "before the upgrade")
    assert (made["status"], made["type"], made["description"]) == ("verified", "manual", "before the upgrade")
    assert f"av-{made['uuid'].replace('-', '')}" in aids.snapshots(VM)
    status = site.autovibe("hub", "status")
    assert f"vm: VM {VM} on pve1 (machine hub of project hub)" in status
    assert f"last checkpoint: {made['uuid'][:8]} of " in status
    assert "0.0 hours old\n" in status, "frozen, and not late"
    found = {one["name"]: one for one in site.json("doctor")}
    assert found["hub's VM"]["state"] == "ok"
    site.autovibe("checkpoint", "verify")
    assert site.json("checkpoint", "show", made["uuid"])["status"] == "verified"


def test_a_checkpoint_is_made_while_the_hub_stands_still(site: Site, aids: Aids, adopted: dict[str, Any]) -> None:
    """Proxmox freezes, takes the snapshot and thaws; the answer comes to a hub that has slept through all that."""
    snapshots = len(aids.snapshots(VM))
    hold = aids.ask("POST", "holds", method="POST", path=f"/nodes/pve1/qemu/{VM}/snapshot")["id"]
    asked = subprocess.Popen(
        [BINARIES / "autovibe", "hub", "checkpoint", "--json"],
        cwd=ROOT,
        env=site.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: aids.ask("GET", f"holds/{hold}")["state"] == "holding", "the snapshot's call")
        with standing_still(site):
            wait_for(lambda: len(aids.snapshots(VM)) == snapshots + 1, "the snapshot")
            aids.ask("DELETE", f"holds/{hold}")
        output, _ = asked.communicate(timeout=240)
    finally:
        asked.kill()
    assert (asked.returncode, json.loads(output)["status"]) == (0, "verified")
    assert len(aids.snapshots(VM)) == snapshots + 1


def test_a_checkpoint_whose_answer_is_lost_is_made_once(site: Site, aids: Aids, adopted: dict[str, Any]) -> None:
    """The connection did not survive the standstill."""
    snapshots = len(aids.snapshots(VM))
    aids.ask("POST", "faults", method="POST", path=f"/nodes/pve1/qemu/{VM}/snapshot", action="drop_after", count=1)
    assert site.json("hub", "checkpoint")["status"] == "verified"
    assert len(aids.snapshots(VM)) == snapshots + 1


def test_a_hub_that_dies_meanwhile_finds_its_checkpoint(site: Site, aids: Aids, adopted: dict[str, Any]) -> None:
    """As after it was taken back to that very checkpoint, in which its own run is unfinished."""
    snapshots = len(aids.snapshots(VM))
    held = rf"/nodes/pve1/qemu/{VM}/snapshot"
    made = kill_worker_while_held(site, aids, held, lambda: site.json("hub", "checkpoint", "--no-wait"))
    wait_for(lambda: site.json("checkpoint", "show", made["uuid"])["status"] == "verified", "the checkpoint", 180)
    assert len(aids.snapshots(VM)) == snapshots + 1


def test_whoever_wants_it_to_end_is_refused(site: Site, vm: Vm, adopted: dict[str, Any]) -> None:
    checkpoint = site.json("hub", "checkpoint")["uuid"]
    before = vm.status
    for words in (
        ("machine", "terminate", "hub"),
        ("machine", "pause", "hub"),
        ("machine", "resume", "hub"),
        ("machine", "restore", "hub", checkpoint),
        ("machine", "checkpoint", "hub"),
        ("checkpoint", "verify", checkpoint, "--restore"),
    ):
        refused = site.run(*words)
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1), words
        assert "hub" in refused.stderr
    site.autovibe("budget", "set", "hub", "5")
    refused = site.run("machine", "spawn", "hub", "--from", checkpoint, "--prompt", "x")
    assert (refused.returncode, "it would be a second hub" in refused.stderr) == (1, True)
    assert (vm.status["status"], vm.status["pid"]) == ("running", before["pid"])


def test_a_vm_that_has_become_another_is_not_snapshotted(
    site: Site, aids: Aids, vm: Vm, adopted: dict[str, Any]
) -> None:
    """Restored from a backup, say, with a new uuid: what runs in it is not this hub."""
    snapshots = aids.snapshots(VM)
    vm.admin.call("PUT", f"nodes/pve1/qemu/{VM}/config", smbios1=f"uuid={uuid4()}")
    try:
        refused = site.run("hub", "checkpoint")
    finally:
        vm.admin.call("PUT", f"nodes/pve1/qemu/{VM}/config", smbios1=f"uuid={UUID}")
    assert refused.returncode == 1
    assert f"not {UUID}: it is another VM" in refused.stderr
    assert aids.snapshots(VM) == snapshots


def test_a_deleted_checkpoint_is_removed_and_the_vm_stays(
    site: Site, aids: Aids, vm: Vm, adopted: dict[str, Any]
) -> None:
    checkpoints = [row for row in site.json("checkpoint", "list", "hub") if row["status"] == "verified"]
    old = min(checkpoints, key=lambda row: row["created_at"])
    site.autovibe("checkpoint", "delete", old["uuid"])
    wait_for(lambda: f"av-{old['uuid'].replace('-', '')}" not in aids.snapshots(VM), "its removal")
    assert vm.config["smbios1"] == f"uuid={UUID}"


def test_nothing_of_a_run_is_left(site: Site, adopted: dict[str, Any]) -> None:
    """The scheduler's own runs come and go meanwhile."""
    runs = [one for one in processes_of(site) if is_ansible(one)]
    wait_for(lambda: all(is_gone(one) for one in runs), "the end of all runs")
    wait_for(lambda: not list(site.state.glob("runs/*/secrets")), "the secrets' removal")
