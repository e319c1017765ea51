"""The hub's own VM: adopted and checkpointed by ansible-playbook, a null guest with its SMBIOS uuid playing it."""

from __future__ import annotations

import subprocess
import threading
import uuid
from typing import Any

import pytest
from hub_vm import Vm, hub_admin
from labs import ROOT, Lab, running_lab, until
from test_least_privilege import Admin


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("state"), site="least") as found:
        yield found


@pytest.fixture(scope="module")
def admin(lab: Lab) -> Admin:
    return hub_admin(lab)


MACHINE = str(uuid.uuid4())


def asked_of(vm: Vm, **more: Any) -> dict[str, Any]:
    """The variables of a playbook."""
    return {"machine_vm_id": vm.id, "hub_smbios_uuid": vm.uuid, "machine_uuid": MACHINE, **more}


def test_a_hubs_vm_gets_an_identity_and_tags_and_keeps_all_else(lab, admin):
    vm = Vm(admin, 150, description="Ann's hub\nDo not stop!", tags="mine;prod")
    before, status = vm.config, admin.call("GET", "nodes/pve1/qemu/150/status/current")
    told = lab.ok("hub", "--check", "--diff", **asked_of(vm, machine_tags=["type-hub"]))
    assert told.changed
    assert vm.config == before
    # As the hub sees it: the firmware may write the uuid in capitals.
    asked = asked_of(vm, machine_tags=["type-hub"], hub_smbios_uuid=vm.uuid.upper())
    done = lab.ok("hub", "--diff", **asked)
    assert told.results[-1]["diff"] == done.results[-1]["diff"]
    after = vm.config
    identity, *notes = after["description"].splitlines()
    assert identity.startswith("autovibe installation=")
    assert identity.endswith(f"machine={MACHINE} type=hub")
    assert notes == ["Ann's hub", "Do not stop!"]
    tags = {"mine", "prod", "autovibe", f"id-{MACHINE.replace('-', '')}", "type-hub"}
    assert set(after["tags"].split(";")) == tags
    changed = {key for key in before | after if before.get(key) != after.get(key)} - {"digest"}
    assert changed == {"description", "tags"}
    assert admin.call("GET", "nodes/pve1/qemu/150/status/current")["pid"] == status["pid"]
    writes = lab.writes()
    assert not lab.ok("hub", **asked).changed
    assert lab.writes() == writes


def test_another_vm_than_this_computer_is_not_touched(lab, admin):
    vm = Vm(admin, 151)
    before = vm.config
    other = str(uuid.uuid4())
    runs = [
        lab.play("hub", **asked_of(vm, hub_smbios_uuid=other)),
        lab.play("hub_checkpoint", **asked_of(vm, hub_smbios_uuid=other, machine_checkpoint={"name": "before"})),
    ]
    for run in runs:
        assert run.results[-1]["error_class"] == "IdentityError"
        assert f"has the SMBIOS uuid {vm.uuid}, not {other}" in run.message
    # A VM that was not adopted is not snapshotted, even though it is this computer's.
    run = lab.play("hub_checkpoint", **asked_of(vm, machine_checkpoint={"name": "before"}))
    assert "without the identity" in run.message
    assert (vm.config, vm.snapshots) == (before, set())


def test_a_vm_of_another_installation_is_not_taken_over(lab, admin):
    vm = Vm(admin, 152, description="autovibe installation=1234 machine=5678\nSomebody's")
    before = vm.config
    run = lab.play("hub", **asked_of(vm))
    assert run.results[-1]["error_class"] == "IdentityError"
    assert "carries another identity, 'autovibe installation=1234 machine=5678'" in run.message
    assert vm.config == before


def test_a_vm_that_the_token_may_not_see_says_what_to_grant(lab, admin):
    vm = Vm(admin, 153, granted=False)
    run = lab.play("hub", **asked_of(vm))
    assert "There is no VM 153" in run.message
    assert "proxmox_host_hub_vm_ids" in run.message
    assert "qm destroy" not in run.output
    vm.grant()
    assert lab.ok("hub", **asked_of(vm)).changed


def test_without_a_proof_nothing_is_done(lab, admin):
    vm = Vm(admin, 154)
    for playbook in ("hub", "hub_checkpoint"):
        asked = asked_of(vm, hub_smbios_uuid="", hub_product_uuid="/nonexistent", machine_checkpoint={"name": "x1"})
        run = lab.play(playbook, **asked)
        assert run.rc != 0
        assert "Nothing proves that VM 154 is this computer" in run.message


def test_a_hubs_checkpoint_is_made_once_with_its_filesystems_frozen(lab, admin):
    vm = Vm(admin, 155)
    lab.ok("hub", **asked_of(vm))
    asked = asked_of(vm, machine_checkpoint={"name": "av-1", "description": "hub"})
    assert lab.ok("hub_checkpoint", "--check", **asked).changed
    assert vm.snapshots == set()
    made = lab.ok("hub_checkpoint", **asked).fact("checkpoint")
    assert (made["carrier"], made["ram"], made["frozen"]) == ("snapshot", False, True)
    assert vm.snapshots == {"av-1"}
    again = lab.ok("hub_checkpoint", **asked)
    assert not again.changed
    assert lab.tasks(155, "qmsnapshot") == 1
    prune = {"machine_prune": [{"vm_id": 155, "name": "av-1", "carrier": "snapshot"}], "machine_name": "hub"}
    assert lab.ok("prune", **asked_of(vm, **prune)).changed
    assert vm.snapshots == set()


def test_a_checkpoint_whose_run_was_killed_is_found_by_the_next(lab, admin):
    """As after a hub was taken back to the checkpoint: its own run is unfinished in it."""
    vm = Vm(admin, 156)
    lab.ok("hub", **asked_of(vm))
    asked = asked_of(vm, machine_checkpoint={"name": "av-2"})
    lab.kill_held("hub_checkpoint", "POST", "/nodes/pve1/qemu/156/snapshot", **asked)
    assert lab.ok("hub_checkpoint", **asked).fact("checkpoint")["exists"]
    assert lab.tasks(156, "qmsnapshot") == 1


@pytest.fixture
def disk(tmp_path) -> list[str]:
    """The beginning of a command, which is given the folder of a disk of its own and then what to run there.

    The disk is mounted where only that command sees it, so it is gone with it.
    """
    image, mount = tmp_path / "disk", tmp_path / "mnt"
    mount.mkdir()
    subprocess.run(["truncate", "-s", "64M", image], check=True)
    tried = subprocess.run(["mkfs.ext4", "-q", image], capture_output=True).returncode
    command = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount -o loop "$0" "$1" && shift && exec "$@"',
        str(image),
        str(mount),
    ]
    if tried or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("disks can be frozen by root only, where there are loop devices")
    return command


def freeze(run: subprocess.Popen, mount: str, how: str) -> None:
    inside = ["nsenter", "--target", str(run.pid), "--mount", "fsfreeze", how, mount]
    subprocess.run(inside, capture_output=True, check=how == "--freeze")


def test_a_hub_whose_disks_are_frozen_hears_of_its_snapshot(lab, admin, disk):
    """What asks Proxmox must write nothing meanwhile, or a freeze that hangs could not be called off."""
    vm, mount = Vm(admin, 159), disk[-1]
    lab.ok("hub", **asked_of(vm))
    hold = lab.aid("POST", "holds", method="POST", path="/nodes/pve1/qemu/159/snapshot", count=1)["id"]
    kept = {key: value for key, value in lab.environment("ansible.builtin.default").items() if key != "XDG_RUNTIME_DIR"}
    asked = asked_of(vm, machine_checkpoint={"name": "av-4"})
    run = subprocess.Popen(
        [*disk, *lab.argv("hub_checkpoint", asked, ())],
        cwd=ROOT,
        env={**kept, "TMPDIR": mount, "HOME": mount, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []

    def read() -> None:
        for line in run.stdout:
            lines.append(line)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        until(lambda: lab.aid("GET", f"holds/{hold}")["state"] == "holding" or run.poll() is not None)
        freeze(run, mount, "--freeze")
        lab.aid("DELETE", f"holds/{hold}")
        until(lambda: any(line.startswith("changed:") for line in lines) or run.poll() is not None)
    finally:
        freeze(run, mount, "--unfreeze")
        run.wait(60)
        reader.join(60)
    assert run.returncode == 0, "".join(lines)
    assert vm.snapshots == {"av-4"}


@pytest.mark.parametrize("playbook", ["hub", "hub_checkpoint"])
def test_a_hub_is_found_on_whatever_node_it_is(lab, admin, playbook):
    """An empty node, as the hub gives it, is none: a VM of its own may have moved."""
    vm = Vm(admin, {"hub": 157, "hub_checkpoint": 158}[playbook])
    lab.ok("hub", **asked_of(vm, proxmox_node=""))
    checkpoint = {"machine_checkpoint": {"name": "av-3"}}
    assert lab.ok(playbook, **asked_of(vm, proxmox_node="", **checkpoint)).rc == 0
