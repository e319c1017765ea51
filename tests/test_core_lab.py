"""The collection's core against a lab in this process: what it costs, what it survives, what it never touches."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder
from autovibe_lab.auth import TOKEN_ID
from autovibe_lab.guest import NullGuest
from autovibe_lab.tests.testing import Client as LabClient
from autovibe_lab.tests.testing import LabInThread

if not any(isinstance(finder, _AnsibleCollectionFinder) for finder in sys.meta_path):
    _AnsibleCollectionFinder(paths=[str(Path(__file__).parents[1] / "collections")])._install()

from ansible_collections.autovibe.proxmox.plugins.module_utils.pve import errors  # noqa: E402
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.client import Client, Endpoint  # noqa: E402
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.config import Identity, Wanted  # noqa: E402
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.machines import Machines  # noqa: E402
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.node import Image, Source  # noqa: E402
from inprocess import task  # noqa: E402

BASE = 100


@pytest.fixture(autouse=True)
def private_runtime(tmp_path, monkeypatch):
    """A runtime folder of its own: no other test's polls and turns."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def started_lab(state: Path, **settings: Any) -> Iterator[LabInThread]:
    lab = LabInThread(state, **settings)
    try:
        LabClient(lab).template(BASE)
        yield lab
    finally:
        lab.close()


@pytest.fixture
def lab(tmp_path) -> Iterator[LabInThread]:
    yield from started_lab(tmp_path / "lab")


@pytest.fixture
def cluster(tmp_path) -> Iterator[LabInThread]:
    yield from started_lab(tmp_path / "lab", nodes=2)


def connected(lab: LabInThread, node: str | None = "pve1", root: bool = False, timeout: float = 60) -> Machines:
    """As a process of a play: with a client, a session and slots of its own."""
    user, _, token = TOKEN_ID.partition("!")
    who = {"user": user, "token_id": token, "token_secret": lab.lab.secrets.token_secret}
    if root:
        who = {"user": "root@pam", "password": lab.lab.secrets.root_password}
    client = Client(Endpoint("127.0.0.1", port=lab.lab.port, ca_path=str(lab.state / "ca.pem"), **who))
    return Machines(client, node, timeout)


def spawn(machines: Machines, name: str, vmid: int | None = None, **options: Any) -> dict[str, Any]:
    options = {"state": "started", "source": lambda: Source(BASE), **options}
    return machines.ensure(vmid, Wanted(name=name, cores=2), **options).facts


def calls(lab: LabInThread, method: str, end: str) -> int:
    listed = lab.aid("GET", "calls")
    return sum(1 for call in listed if call["method"] == method and call["path"].endswith(end))


def test_a_spawn_makes_few_calls(lab):
    machines = connected(lab)
    before = len(lab.aid("GET", "calls"))
    spawn(machines, "web", 200)
    made = [f"{call['method']} {call['path'].rpartition('/')[2]}" for call in lab.aid("GET", "calls")[before:]]
    assert [call for call in made if call != "GET tasks"] == [
        "GET pending",
        "POST clone",
        "GET config",
        "PUT config",
        "POST start",
    ]


def test_twenty_waits_cost_about_one(lab):
    """Twenty at once wait for a second and a half: each alone would ask a dozen times."""
    for number in range(20):
        LabClient(lab).clone(BASE, 300 + number)
    lab.aid("PUT", "latency", {"profile": "pve84", "time_scale": 1})
    starting = [connected(lab) for _ in range(20)]
    upids = [m.client.post(m.path(300 + number, "status", "start")) for number, m in enumerate(starting)]
    before = calls(lab, "GET", "/tasks")
    with ThreadPoolExecutor(20) as threads:
        list(threads.map(lambda pair: pair[0].task(pair[1]), zip(starting, upids, strict=True)))
    assert calls(lab, "GET", "/tasks") - before <= 60


def test_four_at_a_time_on_a_node(lab):
    shared = [connected(lab).tasks.shared("pve1") for _ in range(12)]
    inside, most, guard = 0, 0, threading.Lock()
    arrived = threading.Barrier(4)

    def take(one: Any) -> None:
        nonlocal inside, most
        with one.turn(), one.turn():
            with guard:
                inside += 1
                most = max(most, inside)
            arrived.wait(60)  # four get in together, or this breaks
            with guard:
                inside -= 1

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(take, shared))
    assert most == 4


def test_a_turn_that_does_not_come_is_done_without(lab):
    holders = [connected(lab).tasks.shared("pve1") for _ in range(4)]
    turns = [one.turn() for one in holders]
    for turn in turns:
        turn.__enter__()
    begun = time.monotonic()
    with connected(lab).tasks.shared("pve1").turn(patience=0.1):
        assert 0.1 <= time.monotonic() - begun < 10
    for turn in turns:
        turn.__exit__(None, None, None)


def test_without_a_folder_that_is_ours_alone_all_works_as_well(lab, tmp_path, monkeypatch):
    from ansible_collections.autovibe.proxmox.plugins.module_utils.pve import shared

    monkeypatch.setattr(shared, "MEMORY", "/nonexistent")
    monkeypatch.setattr(shared.tempfile, "tempdir", str(tmp_path))
    folder = Path(shared.folder())
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    assert shared.folder() is None
    assert spawn(connected(lab), "web", 200)["status"] == "running"


def test_many_without_ids_get_one_each(lab):
    with ThreadPoolExecutor(10) as threads:
        made = list(threads.map(lambda n: spawn(connected(lab), f"web{n}"), range(10)))
    assert len({one["vm_id"] for one in made}) == 10
    assert len(connected(lab).list()) == 11


@pytest.mark.parametrize("action", ["drop_before", "drop_after"])
@pytest.mark.parametrize("call", [("POST", r".*/clone"), ("PUT", r".*/config"), ("POST", r".*/start")])
def test_a_lost_answer_makes_no_second_vm(lab, action, call):
    method, path = call
    lab.aid("POST", "faults", {"method": method, "path": path, "action": action, "count": 1})
    assert spawn(connected(lab), "web")["status"] == "running"
    assert [vm["name"] for vm in connected(lab).list() if vm["vmid"] != BASE] == ["web"]


def test_an_id_that_another_took_meanwhile_is_not_ours(lab):
    """The clone's call is lost; before we look again, somebody else makes a VM with the id that we meant."""
    machines = connected(lab)
    asked = machines.client.post

    def lost(path: str, **data: Any) -> Any:
        machines.client.post = asked
        LabClient(lab).clone(BASE, data["newid"], name="others")
        raise errors.NoAnswer("lost")

    machines.client.post = lost
    made = spawn(machines, "mine")
    assert sorted((vm["name"], vm["vmid"]) for vm in machines.list() if vm["vmid"] != BASE) == [
        ("mine", made["vm_id"]),
        ("others", 101),
    ]


def half_made(lab: LabInThread, vmid: int, **config: str) -> None:
    LabClient(lab).clone(BASE, vmid)
    current = lab.node.machines[vmid].config.current
    current |= {"lock": "clone", "description": " qmclone temporary file", "name": f"VM {vmid}", **config}


def test_a_half_made_clone_is_reported_with_the_admins_command(lab):
    half_made(lab, 200)
    with pytest.raises(errors.HalfMadeClone) as caught:
        spawn(connected(lab), "web", 200)
    assert "qm unlock 200 && qm destroy 200 --purge --destroy-unreferenced-disks 1" in caught.value.message


def test_root_in_person_removes_a_half_made_clone_and_makes_it_anew(lab):
    half_made(lab, 200)
    root = connected(lab, root=True)
    assert spawn(root, "web", 200, check=True)["created"]
    assert lab.node.machines[200].config.current["lock"] == "clone"
    assert spawn(root, "web", 200)["status"] == "running"
    half_made(lab, 201)
    assert root.remove(201, Wanted(name="web2")).changed
    assert 201 not in lab.node.machines


def test_a_half_made_clone_of_somebody_else_stays(lab):
    half_made(lab, 200, name="db", description="autovibe installation=i machine=other")
    wanted = Wanted(name="web", identity=Identity.of(installation="i", machine="m"))
    with pytest.raises(errors.HalfMadeClone):
        connected(lab, root=True).ensure(200, wanted, source=lambda: Source(BASE))
    assert 200 in lab.node.machines


def test_a_vm_is_found_on_its_node(cluster):
    there = LabClient(cluster).api.nodes("pve2")
    upid = there.qemu.post(vmid=300, name="there", scsi0="null:1")
    Machines.task(connected(cluster, "pve2"), upid)
    found = connected(cluster, None).ensure(None, Wanted(name="there"), state="started").facts
    assert (found["node"], found["vm_id"], found["status"]) == ("pve2", 300, "running")
    assert connected(cluster, None).ensure(300, Wanted(cores=3)).facts["node"] == "pve2"
    # A new one goes where its source is.
    assert spawn(connected(cluster, None), "new", source=lambda: Source(BASE))["node"] == "pve1"
    assert spawn(connected(cluster, None), "other", 301)["node"] == "pve1"


def test_a_guest_has_its_time_to_shut_down_beside_the_timeout(lab, monkeypatch):
    async def deaf(guest, timeout):
        await asyncio.sleep(timeout)
        return False

    spawn(connected(lab), "web", 200)
    monkeypatch.setattr(NullGuest, "shutdown", deaf)
    # Longer than the timeout, which is long enough for all else on a busy machine.
    done = connected(lab, timeout=4).ensure(200, Wanted(), state="stopped", shutdown_timeout=5)
    assert done.facts["status"] == "stopped"


def test_a_password_among_the_options_is_set_once(lab):
    machines, wanted = connected(lab), Wanted(name="web", options={"cipassword": "hunter22"})
    assert machines.ensure(200, wanted, source=lambda: Source(BASE)).changed
    assert not machines.ensure(200, wanted).changed
    assert machines.ensure(200, replace(wanted, new_password=True)).changed
    for changed in (True, False):
        assert machines.ensure(200, Wanted(options={"cipassword": ""})).changed is changed


def test_files_for_a_vm_that_does_not_run_are_told(lab, tmp_path):
    (tmp_path / "motd").write_text("hello")
    arguments = {"name": "web", "source": {"vm_id": BASE}, "files": [{"path": "/etc/motd", "src": f"{tmp_path}/motd"}]}
    for check in (True, False):
        done = task(lab, "machine", check=check, **arguments)
        assert re.fullmatch(r"VM( \d+)? is stopped: its files are not put into it; .*", done["warnings"][0])
    assert "warnings" not in task(lab, "machine", **arguments, state="started")


def test_a_clone_goes_to_the_node_that_is_given(cluster):
    """Its source is on another node, on shared storage; a broken-off run's clone is waited for there."""
    machines = connected(cluster, "pve2")
    wanted = Wanted(name="web", cores=2, disk_size="4G")
    told = machines.ensure(300, wanted, source=lambda: Source(BASE), state="started", check=True)
    done = machines.ensure(300, wanted, source=lambda: Source(BASE), state="started")
    assert (told.after, told.facts["node"]) == (done.after, "pve2")
    assert done.facts["status"] == "running"
    assert 300 in cluster.node.cluster.nodes["pve2"].machines
    assert not machines.ensure(300, wanted, source=lambda: Source(BASE), state="started").changed
    cluster.aids.drop_after("POST", "/nodes/pve1/qemu/100/clone")
    assert spawn(connected(cluster, "pve2"), "dropped", 301)["node"] == "pve2"
    cluster.aids.latency(profile="pve84", time_scale=2)
    connected(cluster, "pve2").begin_clone(Source(BASE, node="pve1"), 302, name="killed")
    assert spawn(connected(cluster, "pve2"), "killed", 302)["status"] == "running"
    assert len(cluster.node.cluster.nodes["pve2"].machines) == 3


def test_a_clone_from_local_storage_stays_on_its_node(cluster):
    root = connected(cluster, root=True)
    root.task(root.client.post("/nodes/pve1/qemu", vmid=110, name="local", scsi0="local:1"))
    root.task(root.client.post("/nodes/pve1/qemu/110/template"))
    for check in (True, False):
        with pytest.raises(errors.NotPossible, match="VM 110 is on node pve1; a clone of it goes to node pve2 only"):
            connected(cluster, "pve2").ensure(300, Wanted(name="web"), source=lambda: Source(110), check=check)


def test_a_source_of_a_name_is_found_on_another_node(cluster):
    arguments = {"node": "pve2", "name": "web", "source": {"name": "base"}, "state": "started"}
    LabClient(cluster).node.qemu(BASE).config.put(name="base")
    assert task(cluster, "machine", **arguments)["machine"]["node"] == "pve2"
    assert not task(cluster, "machine", **arguments)["changed"]


def test_an_id_of_another_node_is_taken(cluster):
    upid = LabClient(cluster).api.nodes("pve2").qemu.post(vmid=300, name="there", scsi0="null:1")
    connected(cluster, "pve2").task(upid)
    with pytest.raises(errors.IdTaken, match="VM id 300, by a VM of another node"):
        spawn(connected(cluster, "pve1"), "web", 300)


def test_a_vm_that_has_moved_to_another_node_is_not_gone(cluster):
    me = {"identity": {"installation": "i", "machine": "m"}}
    moved = {"node": "pve2", "vm_id": 300, "name": "web", "source": {"vm_id": BASE}, **me, "tags": ["id-m"]}
    assert task(cluster, "machine", **moved)["changed"]
    for who in ({"vm_id": 300}, me, {"vm_id": 300, **me}):
        for module, more in (("machine", {"force": True}), ("checkpoint", {"name": "before"})):
            done = task(cluster, module, state="absent", node="pve1", **who, **more)
            assert (done.get("failed"), done.get("error_class")) == (True, "NotFound"), (module, who, done)
            assert "VM 300 is on node pve2, not pve1; give that node, or none." in done["msg"]
    assert 300 in cluster.node.cluster.nodes["pve2"].machines
    # What only has its tag, or its id, is another VM.
    for given, who in (({"description": "a clone"}, me), ({"tags": "else"}, {"vm_id": 300, **me})):
        LabClient(cluster).api.nodes("pve2").qemu(300).config.put(**given)
        for module, more in (("machine", {}), ("checkpoint", {"name": "before"})):
            done = task(cluster, module, state="absent", node="pve1", **who, **more)
            assert (done.get("failed"), done.get("changed")) == (None, False), done
    assert not task(cluster, "machine", state="absent", node="pve1", vm_id=301)["changed"]


def test_a_vm_is_made_of_an_image(lab):
    machines = connected(lab)
    wanted = Wanted(name="img", cores=2, net={"bridge": "vmbr1"}, disk_size="3G", tags=["a"])
    source = {"source": lambda: Image("null:2", "null"), "state": "started"}
    told = machines.ensure(None, wanted, **source, check=True)
    done = machines.ensure(None, wanted, **source)
    assert told.after == done.after
    assert done.after["disk_size"] == "3G"
    assert not machines.ensure(None, wanted, **source).changed


def test_a_vm_is_made_of_a_checkpoint(lab):
    client = LabClient(lab)
    base = client.clone(BASE, 200, name="db")
    client.ok(base.snapshot.post(snapname="before"))
    base.config.put(cores=4)
    machines = connected(lab)
    made = machines.ensure(None, Wanted(name="copy", memory=300), source=lambda: Source(200, "before"))
    assert machines.config(made.facts["vm_id"])["cores"] == 1
    with pytest.raises(errors.NotFound, match="VM 200 has no snapshot 'after'; there are: before"):
        machines.ensure(None, Wanted(name="copy2"), source=lambda: Source(200, "after"))


def test_a_vm_moves_to_its_pool(lab):
    client = LabClient(lab)
    client.api.pools.post(poolid="autovibe")
    client.clone(BASE, 200, name="web", pool="autovibe")
    client.api.pools.post(poolid="other")
    change = connected(lab, root=True).ensure(200, Wanted(pool="other"))
    assert (change.before["pool"], change.after["pool"]) == ("autovibe", "other")
    assert not connected(lab, root=True).ensure(200, Wanted(pool="other")).changed


@pytest.mark.parametrize("one", ["started", "stopped", "paused"])
@pytest.mark.parametrize("other", ["started", "stopped", "paused"])
def test_every_power_state_is_reached_from_every_other(lab, one, other):
    machines = connected(lab)
    state = {"started": "running"}
    spawn(machines, "web", 200, state=one)
    change = machines.ensure(200, Wanted(), state=other)
    assert change.facts["status"] == state.get(other, other)
    assert change.changed == (one != other)
    assert not machines.ensure(200, Wanted(), state=other).changed


def test_a_task_that_is_under_way_is_waited_for(lab):
    """A start whose process was killed still goes on: there is no second one."""
    machines = connected(lab)
    spawn(machines, "web", 200, state="stopped")
    lab.aid("PUT", "latency", {"profile": "pve84", "time_scale": 0.3})
    machines.client.post(machines.path(200, "status", "start"))
    assert machines.ensure(200, Wanted(), state="started").facts["status"] == "running"
    assert calls(lab, "POST", "/200/status/start") == 1


def test_a_password_is_set_once_or_always(lab):
    machines = connected(lab)
    spawn(machines, "web", 200)
    with_password = Wanted(cipassword="planted-password")
    assert machines.ensure(200, with_password, check=True).after["cipassword"] == "(set anew)"
    assert machines.ensure(200, with_password).after["cipassword"] == "(set anew)"
    assert not machines.ensure(200, with_password).changed
    always = Wanted(cipassword="planted-password", new_password=True)
    change = machines.ensure(200, always)
    assert (change.before["cipassword"], change.after["cipassword"]) == ("(set)", "(set anew)")


def test_a_failed_task_brings_its_log(lab):
    client = LabClient(lab)
    client.create(200, net0="virtio,bridge=vmbr9")
    with pytest.raises(errors.TaskFailed) as caught:
        connected(lab).ensure(200, Wanted(), state="started")
    assert any("vmbr9" in line for line in caught.value.log)


def test_nothing_of_the_environment_replaces_the_certificate_or_the_token(lab, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "other-ca.pem"))
    assert connected(lab).client.get("/version")["version"].startswith("8.")


def test_a_proxy_of_the_environment_is_used(lab, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(errors.Unreachable):
        connected(lab).client.get("/version")
