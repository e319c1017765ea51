"""Checkpoints through the collection's core, where a whole ansible-playbook run would prove no more."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder
from autovibe_lab.guest import GuestError, NullGuest
from autovibe_lab.testing import LabInThread

if not any(isinstance(finder, _AnsibleCollectionFinder) for finder in sys.meta_path):
    _AnsibleCollectionFinder(paths=[str(Path(__file__).parents[1] / "collections")])._install()

from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.checkpoints import (
    Checkpoint,
    Checkpoints,
)
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.client import Client, Endpoint
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.errors import FreezeHung, NotPossible, PveError
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.machines import Machines
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.promotion import promoted
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.retention import Keep


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    found = LabInThread(tmp_path_factory.mktemp("lab"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def checkpoints(lab):
    ca = str(lab.state / "ca.pem")
    password = (lab.state / "root-password").read_text().strip()
    root = Client(Endpoint("127.0.0.1", "root@pam", lab.lab.port, password=password, ca_path=ca))
    if "autovibe" not in [pool["poolid"] for pool in root.get("/pools")]:
        root.post("/pools", poolid="autovibe")
    root.close()
    user, _, token = (lab.state / "token-id").read_text().strip().partition("!")
    secret = (lab.state / "token-secret").read_text().strip()
    end = Endpoint("127.0.0.1", user, lab.lab.port, token, secret, ca_path=ca)
    client = Client(end)
    yield Checkpoints(Machines(client, "pve1", 30))
    client.close()


@pytest.fixture
def vmid(checkpoints, request):
    """A running null guest of its own."""
    machines = checkpoints.machines
    vmid = int(machines.client.get("/cluster/nextid"))
    machines.task(
        machines.client.post("/nodes/pve1/qemu", vmid=vmid, scsi0="null:1", agent="enabled=1", pool="autovibe")
    )
    machines.task(machines.client.post(machines.path(vmid, "status", "start")))
    return vmid


def test_a_guest_that_does_not_freeze_holds_nothing_up(checkpoints, vmid, monkeypatch):
    """The snapshot is called off, nothing of it is left, and the next one works."""
    answers = NullGuest.agent

    async def hangs(guest, command, *arguments, **options):
        if command == "guest-fsfreeze-freeze":
            await asyncio.sleep(3600)
        return await answers(guest, command, *arguments, **options)

    monkeypatch.setattr(NullGuest, "agent", hangs)
    with pytest.raises(FreezeHung, match="did not freeze its filesystems within 0.3 s"):
        checkpoints.present(vmid, Checkpoint("cold", freeze_timeout=0.3))
    assert len(checkpoints.tree(vmid)) == 0
    assert "lock" not in checkpoints.machines.config(vmid)
    monkeypatch.undo()
    assert checkpoints.present(vmid, Checkpoint("cold")).facts["frozen"]


def test_a_checkpoint_costs_few_calls_and_knows_whether_it_was_frozen(lab, checkpoints, vmid):
    """Two reads, the snapshot, the task list, its log, and what came of it; again, two reads."""
    last = lab.aids.last()
    assert checkpoints.present(vmid, Checkpoint("one")).facts["frozen"]
    made = [call["path"].rpartition("/")[2] for call in lab.aids.calls(last)]
    assert len([what for what in made if what != "tasks"]) == 5
    assert made[:3] == ["config", "snapshot", "snapshot"]
    last = lab.aids.last()
    assert not checkpoints.present(vmid, Checkpoint("one")).changed
    assert len(lab.aids.calls(last)) == 2
    for wanted, ends in ((Checkpoint("one"), []), (Checkpoint("one", start=True), ["start"])):
        last = lab.aids.last()
        assert checkpoints.restored(vmid, wanted).changed
        made = [call["path"].rpartition("/")[2] for call in lab.aids.calls(last)]
        assert [what for what in made if what != "tasks"] == ["config", "snapshot", "rollback", *ends]
    last = lab.aids.last()
    assert not checkpoints.absent(vmid, Checkpoint("none")).changed
    assert len(lab.aids.calls(last)) == 2
    checkpoints.machines.set_config(vmid, {"agent": "enabled=0"})
    wanted = Checkpoint("two")
    assert not checkpoints.present(vmid, wanted).facts["frozen"]
    assert wanted.warnings == [
        f"The guest agent of VM {vmid} is not enabled: its filesystems are not frozen for the snapshot."
    ]


def test_an_agent_that_is_dead_is_told_by_the_tasks_log(checkpoints, vmid, monkeypatch):
    async def dead(guest, command, *arguments, **options):
        raise GuestError("no answer")

    monkeypatch.setattr(NullGuest, "agent", dead)
    wanted = Checkpoint("cold")
    assert not checkpoints.present(vmid, wanted).facts["frozen"]
    assert "does not answer: its filesystems are not frozen" in wanted.warnings[0]


def test_checkpoints_are_made_in_turns_at_their_node(checkpoints, vmid, monkeypatch):
    """Whatever begins a task does so within one of the node's slots."""
    machines, begun = checkpoints.machines, {}
    call = Client._call

    def noted(client, method, path, **arguments):
        if method != "GET":
            begun[f"{method} {path.rpartition('/')[2]}"] = machines.tasks.shared("pve1")._depth
        return call(client, method, path, **arguments)

    monkeypatch.setattr(Client, "_call", noted)
    checkpoints.present(vmid, Checkpoint("one"))
    checkpoints.restored(vmid, Checkpoint("one", start=True))
    checkpoints.absent(vmid, Checkpoint("one"))
    assert begun == {"POST snapshot": 1, "POST rollback": 1, "POST start": 1, "DELETE one": 1}


def test_a_storage_without_snapshots_is_told_with_the_reason(lab, checkpoints):
    """In check mode by its type, else when Proxmox VE has refused."""
    root = lab.lab.secrets.root_password
    client = Client(
        replace(checkpoints.client.endpoint, user="root@pam", token_id=None, token_secret=None, password=root)
    )
    client.post("/storage", storage="thick", type="lvm", vgname="vg", content="images")
    machines = Machines(client, "pve1", 30)
    machines.task(client.post("/nodes/pve1/qemu", vmid=900, scsi0="thick:1", pool="autovibe"))
    for check in (True, False):
        with pytest.raises(NotPossible, match=r"A snapshot of VM 900: .*'thick' \(lvm\) takes no snapshots"):
            Checkpoints(machines).present(900, Checkpoint("one"), check=check)
    client.close()


def test_a_checkpoint_that_another_process_has_begun_is_waited_for(lab, checkpoints, vmid):
    """Its task had not locked the VM when it was looked at: the refusal of ours makes us look again."""
    other = Checkpoints(Machines(Client(checkpoints.client.endpoint), "pve1", 30))
    machines = checkpoints.machines
    path = machines.path(vmid, "snapshot")
    with lab.aids.held("GET", path) as held, ThreadPoolExecutor(1) as thread:
        done = thread.submit(other.present, vmid, Checkpoint("one"))
        held.wait()
        machines.task(machines.client.post(path, snapname="one"))
        held.release()
        assert done.result(30).facts["exists"]
    other.client.close()
    assert list(checkpoints.tree(vmid).by_name) == ["one"]


@pytest.mark.parametrize("fault", ["fail", "drop_before", "drop_after", "lock"])
def test_a_second_run_ends_what_a_fault_broke_off(lab, checkpoints, vmid, fault):
    """Each write of snapshot, promotion, rollback and retention fails once; run again, all stands as it was to be."""
    machines = checkpoints.machines

    def twice(path, step, method="POST"):
        getattr(lab.aids, fault)(method, path)
        with contextlib.suppress(PveError):  # what is known not to have been executed was done again already
            step()
        lab.aids.reset()
        return step()

    one = f"/nodes/pve1/qemu/{vmid}"
    for name in ("one", "two", "three"):
        made = twice(f"{one}/snapshot", lambda name=name: checkpoints.present(vmid, Checkpoint(name)))
        assert made.facts["exists"]
    target = vmid + 500
    for method, path in (("POST", f"{one}/clone"), ("PUT", r".*/config"), ("POST", r".*/template")):
        twice(path, lambda: promoted(checkpoints, vmid, Checkpoint("two"), target, pool="autovibe"), method)
    assert machines.look(target).template
    twice(f"{one}/snapshot/one/rollback", lambda: checkpoints.restored(vmid, Checkpoint("one", start=True)))
    assert machines.look(vmid).running
    twice(f"{one}/snapshot/three", lambda: checkpoints.retained(vmid, None, Keep(last=1, among=("t*",))), "DELETE")
    assert sorted(checkpoints.tree(vmid).by_name) == ["one", "three", "two"]
    kept = checkpoints.retained(vmid, None, Keep(last=1))
    reasons = {one["name"]: one["reason"] for one in kept.facts["kept"]}
    assert reasons == {"one": "current", "two": "promoted", "three": "last"}
