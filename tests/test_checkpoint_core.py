"""Checkpoints through the collection's core, where a whole ansible-playbook run would prove no more."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

import pytest
from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder
from autovibe_lab.guest import NullGuest
from autovibe_lab.testing import LabInThread

if not any(isinstance(finder, _AnsibleCollectionFinder) for finder in sys.meta_path):
    _AnsibleCollectionFinder(paths=[str(Path(__file__).parents[1] / "collections")])._install()

from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.checkpoints import (
    Checkpoint,
    Checkpoints,
)
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.client import Client, Endpoint
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.errors import FreezeHung, PveError
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
