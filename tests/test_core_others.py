"""The core beside others: their VMs, clones, restores and looks at the task list, and what killed runs have left."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder
from autovibe_lab.tests.testing import Client as LabClient
from autovibe_lab.tests.testing import LabInThread

if not any(isinstance(finder, _AnsibleCollectionFinder) for finder in sys.meta_path):
    _AnsibleCollectionFinder(paths=[str(Path(__file__).parents[1] / "collections")])._install()

from ansible_collections.autovibe.proxmox.plugins.module_utils.pve import errors, tasks  # noqa: E402
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.backups import Backup, Backups
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.checkpoints import Checkpoint, Checkpoints
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.config import Identity, Wanted
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.images import Image as DiskImage
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.machines import Machines
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.node import Image, Source
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.promotion import promoted
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.restoring import Restore, restored
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.templates import Inputs, Step, Templates
from inprocess import task
from test_core_lab import BASE, connected, spawn, started_lab

ME = {"installation": "i", "machine": "m"}


@pytest.fixture(autouse=True)
def private_runtime(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[LabInThread]:
    yield from started_lab(tmp_path / "lab")


class Killed(BaseException):
    """This process is gone; its task goes on."""


def killed_while(lab: LabInThread, machines: Machines, kind: str, monkeypatch: Any, work: Any) -> None:
    """A run that is killed when it waits for its first task, which goes on slowly; the next run is another process."""

    def killed(upid: Any) -> None:
        upid() if callable(upid) else None
        raise Killed

    lab.aids.latency(profile="pve84", time_scale=12)
    with monkeypatch.context() as patch:
        patch.setattr(machines, "task", killed)
        with pytest.raises(Killed):
            work()
    lab.aids.latency(profile="off", time_scale=1)
    monkeypatch.setattr(tasks, "RUN_BEGAN", time.time())  # perhaps in the very second in which the task began
    assert [task["type"] for task in lab.aids.tasks() if task["status"] == "running"] == [kind]


def inputs(size: int) -> Inputs:
    return Inputs("web", DiskImage(volume=f"null:{size}"), "null")


@pytest.mark.parametrize(("source", "patience"), [(102, 60), (BASE, 1.5)], ids=["another source", "no patience left"])
def test_root_leaves_a_clone_alone_that_is_under_way(lab, source, patience):
    """An earlier run has begun it from an older template, say. That it is not done yet does not make it a half one."""
    LabClient(lab).template(102)
    lab.aids.latency(profile="pve84", time_scale=20)
    theirs = connected(lab)
    upid = theirs.begin_clone(Source(source), 200, name="web")
    while 200 not in lab.node.machines:
        time.sleep(0.01)
    root = connected(lab, root=True, timeout=patience)
    if patience < 10:
        with pytest.raises(errors.TaskTimeout, match="under way"):
            spawn(root, "web", 200, state="present")
    else:
        spawn(root, "web", 200, state="present")
    theirs.task(upid)
    assert [task["type"] for task in lab.aids.tasks() if task["type"] in ("qmclone", "qmdestroy")] == ["qmclone"]


@pytest.mark.parametrize("given", [None, 205], ids=["next id", "given id"])
def test_another_clone_with_our_id_that_began_at_the_same_moment_is_no_failure_of_ours(lab, given, monkeypatch):
    """Both calls found the id free; the task of the later one says that it no longer is."""
    theirs, ours, upids = connected(lab), connected(lab), []
    begin = ours.begin_clone

    def overtaken(source: Source, newid: int, **values: Any) -> str:
        if upids:
            return begin(source, newid, **values)
        lab.node.tasks.gate.clear()
        upids.append(theirs.begin_clone(source, newid, name="theirs"))
        upid = begin(source, newid, **values)
        lab.loop.call_soon_threadsafe(lab.node.tasks.gate.set)
        return upid

    monkeypatch.setattr(ours, "begin_clone", overtaken)
    wanted = Wanted(name="ours", identity=Identity.of(**ME))

    def made() -> int:
        return ours.ensure(given, wanted, source=lambda: Source(BASE), lookup=False).facts["vm_id"]

    if given:
        with pytest.raises(errors.IdentityError, match="belongs to another VM"):
            made()
        vmid = given
    else:
        vmid = made() - 1
    theirs.task(upids[0])
    assert ours.config(vmid)["name"] == "theirs"
    ends = [one["exitstatus"] for one in lab.aids.tasks() if one["type"] == "qmclone"]
    assert sum("already exists" in end for end in ends) == 1


def test_a_process_that_was_stopped_while_it_looked_stops_nobody(lab):
    holder, begun = connected(lab).tasks.shared("pve1"), time.monotonic()
    with holder.polling() as mine:
        assert mine
        connected(lab).task(connected(lab).begin_clone(Source(BASE), 200))
    assert time.monotonic() - begun < 20


def test_locks_that_cannot_be_had_are_done_without(lab):
    machines = connected(lab, timeout=10)
    for what in ("poll", "slot0", "slot1", "slot2", "slot3"):
        os.mkdir(machines.tasks.shared("pve1")._path(what))
    assert spawn(machines, "web", 200)["status"] == "running"


def test_a_template_of_another_installation_is_no_older_version(lab):
    templates = Templates(connected(lab))
    templates.ensure(inputs(1), installation="theirs")
    assert templates.ensure(inputs(2), installation=None, keep=1).facts["removed"] == []


def test_a_vm_that_an_earlier_run_has_made_meanwhile_keeps_its_power_state(lab, monkeypatch):
    """Found only after its clone was waited for: present leaves it as it is, running."""
    machines = connected(lab)
    monkeypatch.setattr(machines, "_settle_earlier", lambda _origin: spawn(connected(lab), "web", 200))
    done = machines.ensure(None, Wanted(name="web"), source=lambda: Source(BASE))
    assert (done.facts["vm_id"], done.facts["status"]) == (200, "running")


def test_two_hosts_of_a_play_build_one_template(lab):
    """Two find none at once; the third finds one that is being made, and would take it for one that was given up."""
    wanted = Inputs("web", DiskImage(volume="null:1"), "null", steps=(Step(("true",)),))
    builders = [Templates(connected(lab)) for _ in range(3)]

    def build(one: Templates) -> int:
        return one.ensure(wanted, installation="i").facts["vm_id"]

    with lab.aids.held("POST", ".*/agent/exec") as held, ThreadPoolExecutor(3) as threads:
        done = [threads.submit(build, one) for one in builders[:2]]
        held.wait()
        done.append(threads.submit(build, builders[2]))
        wait(done, timeout=1)
        held.release()
        assert {one.result(60) for one in done} == {101}
    kinds = [task["type"] for task in lab.aids.tasks() if task["id"] == "101"]
    assert sorted(kinds) == ["qmcreate", "qmshutdown", "qmstart", "qmtemplate"]


@pytest.mark.parametrize("full", [False, True])
def test_a_clone_with_the_name_of_its_template_is_none_of_its_versions(lab, full):
    """It inherits the template's description, too."""
    machines = connected(lab)
    templates = Templates(machines)
    first = templates.ensure(inputs(1), vmid=300, installation="i").facts["vm_id"]
    machines.clone(Source(first, full=full), 200, name="web")
    machines.ensure(200, Wanted(), state="started")
    assert not templates.ensure(inputs(1), installation="i", keep=1).changed
    templates.ensure(inputs(2), installation="i", keep=1)
    assert machines.look(200).running
    with pytest.raises(errors.IdentityError, match="VM 200 is a clone"):
        templates.ensure(inputs(1), vmid=200, installation="i")


def test_a_backup_of_an_earlier_vm_with_the_id_is_none_of_this_one(lab):
    """Its age would do; its SMBIOS uuid tells. The one that is made instead does for the next run."""
    machines = connected(lab)
    backups = Backups(machines)
    spawn(machines, "earlier", 200)
    old = backups.present(200, Backup("local", 3600)).facts["volume"]
    assert not backups.present(200, Backup("local", 3600)).changed
    machines.remove(200, Wanted(), force=True)
    spawn(machines, "later", 200)
    predicted = backups.present(200, Backup("local", 3600), check=True)
    made = backups.present(200, Backup("local", 3600))
    assert made.changed
    assert made.facts["volume"] != old
    assert (predicted.before, predicted.after) == (made.before, made.after)
    assert not backups.present(200, Backup("local")).changed


def test_a_vm_that_somebody_restored_is_not_ours(lab):
    machines, root = connected(lab), connected(lab, root=True)
    backups = Backups(machines)
    volumes = []
    for vmid in (200, 201):
        spawn(machines, f"web{vmid}", vmid)
        volumes.append(backups.present(vmid, Backup("local", 0)).facts["volume"])
    machines.task(machines.client.post("/nodes/pve1/qemu", vmid=300, archive=volumes[1]))
    root.task(root.client.post("/nodes/pve1/qemu", vmid=301, archive=volumes[0]))
    for vmid in (300, 301):
        with pytest.raises(errors.IdentityError, match="not a restore of"):
            restored(backups, Restore(volumes[0], vmid))
    machines.task(machines.client.post("/nodes/pve1/qemu", vmid=302, archive=volumes[0]))
    assert restored(backups, Restore(volumes[0], 302, identity=Identity.of(**ME))).changed, "our run was broken off"
    with pytest.raises(errors.IdentityError, match="not a restore of"):
        restored(backups, Restore(volumes[0], 302, identity=Identity.of(installation="i", machine="other")))


def test_each_operation_rolls_a_running_guest_back_once(lab):
    machines = connected(lab)
    checkpoints = Checkpoints(machines)
    spawned = Wanted(name="web", identity=Identity.of(**ME, operation="spawn"))
    machines.ensure(200, spawned, source=lambda: Source(BASE), state="started")
    checkpoints.present(200, Checkpoint("saved", ram=True))
    for operation in ("one", "two"):
        wanted = Checkpoint("saved", identity=Identity.of(**ME, operation=operation))
        assert checkpoints.restored(200, wanted).changed, operation
        assert not checkpoints.restored(200, wanted).changed, operation
        machines.ensure(200, Wanted(identity=wanted.identity), state="started")
        assert not checkpoints.restored(200, wanted).changed, operation


@pytest.mark.parametrize("name", ["saved", "saved_too"])
def test_a_promotion_that_was_killed_is_gone_on_with(lab, name, monkeypatch):
    machines = connected(lab)
    checkpoints = Checkpoints(machines)
    spawn(machines, "web", 200, state="stopped")
    checkpoints.present(200, Checkpoint(name))
    killed_while(lab, machines, "qmclone", monkeypatch, lambda: promoted(checkpoints, 200, Checkpoint(name), None))
    for changed in (True, False):
        assert promoted(Checkpoints(connected(lab)), 200, Checkpoint(name), None).changed == changed
    assert sorted(lab.node.machines) == [BASE, 101, 200]


def test_a_vm_of_an_image_whose_run_was_killed_is_made_once(lab, monkeypatch):
    machines, image = connected(lab), {"source": lambda: Image("null:1", "null")}
    killed_while(lab, machines, "qmcreate", monkeypatch, lambda: machines.ensure(None, Wanted(name="web"), **image))
    assert connected(lab).ensure(None, Wanted(name="web"), **image).facts["vm_id"] == 101
    assert sorted(lab.node.machines) == [BASE, 101]


def test_a_template_whose_run_was_killed_is_made_once(lab, monkeypatch):
    machines = connected(lab)
    killed_while(
        lab, machines, "qmcreate", monkeypatch, lambda: Templates(machines).ensure(inputs(1), installation="i")
    )
    assert Templates(connected(lab)).ensure(inputs(1), installation="i").facts["vm_id"] == 101
    assert sorted(lab.node.machines) == [BASE, 101]


@pytest.mark.parametrize("identity", [None, Identity.of(**ME)])
def test_an_id_that_another_took_meanwhile_is_not_promoted(lab, identity):
    """The clone's call is lost; before we look again, somebody else makes a VM with the id that we meant."""
    machines = connected(lab)
    checkpoints = Checkpoints(machines)
    machines.ensure(200, Wanted(name="web", identity=identity), source=lambda: Source(BASE))
    checkpoints.present(200, Checkpoint("saved_too"))
    asked = machines.client.post

    def lost(path: str, **data: Any) -> Any:
        machines.client.post = asked
        LabClient(lab).clone(BASE, data["newid"], name="others")
        raise errors.NoAnswer("lost")

    machines.client.post = lost
    made = promoted(checkpoints, 200, Checkpoint("saved_too", identity=identity), None).facts["vm_id"]
    others = lab.node.machines[101].config.current
    assert (others["name"], "template" in others, made) == ("others", False, 102)


def test_a_vm_with_the_id_and_another_name_is_not_removed(lab):
    machines = connected(lab)
    spawn(machines, "db", 200)
    with pytest.raises(errors.IdentityError, match="VM 200 is 'db', not 'web'"):
        machines.remove(200, Wanted(name="web"), force=True)
    assert machines.remove(200, Wanted(name="db"), force=True).changed


def test_a_description_leaves_the_identity(lab):
    machines = connected(lab)
    machines.ensure(200, Wanted(name="web", identity=Identity.of(**ME)), source=lambda: Source(BASE))
    for notes in ("one", "two"):
        told = machines.ensure(200, Wanted(notes=notes), check=True)
        done = machines.ensure(200, Wanted(notes=notes))
        assert (told.after, done.changed) == (done.after, True)
        assert machines.config(200)["description"].rstrip() == f"autovibe installation=i machine=m\n{notes}"
        assert not machines.ensure(200, Wanted(notes=notes)).changed


def test_an_operation_alone_is_nobodys_identity(lab):
    spawned = Wanted(name="web", identity=Identity.of(**ME))
    connected(lab).ensure(200, spawned, source=lambda: Source(BASE))
    refused = task(lab, "machine", vm_id=200, identity={"operation": "x"}, cores=2)
    assert (refused["failed"], refused["error_class"]) == (True, "SettingsError")


def test_a_checkpoint_of_a_machine_that_is_gone_is_gone(lab):
    for who in ({"machine_name": "gone"}, {"identity": ME}, {"vm_id": 999}):
        done = task(lab, "checkpoint", state="absent", name="saved", **who)
        assert (done["changed"], done["checkpoint"]["exists"]) == (False, False), done


def test_a_volume_that_somebody_keeps_stays_when_its_vm_goes(lab):
    """Proxmox VE would also remove what has the VM's id and is in no configuration: detached, or another cluster's."""
    machines, node = connected(lab), LabClient(lab).node

    def kept() -> list[str]:
        return [one["volid"] for one in node.storage("null").content.get() if one["volid"].endswith("-disk-9.raw")]

    for vmid, wanted in ((200, Wanted(name="web")), (201, Wanted(name="ours", identity=Identity.of(**ME)))):
        machines.ensure(vmid, wanted, source=lambda: Source(BASE))
        node.storage("null").content.post(vmid=vmid, filename=f"vm-{vmid}-disk-9.raw", size="1G")
        assert machines.remove(vmid, wanted).changed
    assert kept() == ["null:200/vm-200-disk-9.raw"]


def test_a_disk_among_the_options_is_refused(lab):
    """The next run would put another new disk in its place."""
    for drive in ("null:1", "null:1,cache=writeback", "file=null:1", "null:0,import-from=local:import/x.qcow2"):
        for key in ("scsi1", "efidisk0"):
            done = task(lab, "machine", name="web", source={"vm_id": BASE}, options={key: drive}, check=True)
            assert (done["failed"], done["error_class"]) == (True, "NotPossible"), (key, drive)
            assert f"options: {key} would be another new disk at each run" in done["msg"]
    assert task(lab, "machine", name="web", source={"vm_id": BASE}, options={"ide3": "none,media=cdrom"})["changed"]


def test_nothing_to_run_is_refused(lab):
    for given in ({"argv": []}, {"shell": ""}):
        done = task(lab, "guest_exec", vm_id=BASE, **given)
        assert (done["failed"], done["error_class"]) == (True, "SettingsError")


def test_check_mode_knows_the_storages(lab):
    done = task(lab, "machine", check=True, name="web", source={"vm_id": BASE}, storage="nope")
    assert (done["failed"], done["error_class"]) == (True, "NotFound")
    assert "no storage 'nope'" in done["msg"]


def test_a_refusal_is_one_line(lab):
    """Proxmox VE's own has several for a value that has parts."""
    done = task(lab, "machine", name="web", source={"vm_id": BASE}, options={"ipconfig1": "ip=nonsense"})
    assert done["error_class"] == "ApiError"
    assert "ipconfig1: invalid format - format error; ipconfig1.ip: invalid format" in done["msg"]
