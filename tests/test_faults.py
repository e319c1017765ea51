"""Every call of a spawn fails once, in every way: the same task run again ends in the desired state, with one VM."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from autovibe_lab.testing import LabInThread
from autovibe_lab.tests.testing import Client
from inprocess import load_plugins, task

load_plugins()
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve import tasks  # noqa: E402

TEMPLATE, INSTALLATION = 100, str(uuid.uuid4())
FAULTS = {
    "500": {"action": "status", "status": 500, "reason": "fault on demand"},
    "dropped before": {"action": "drop_before"},
    "dropped after": {"action": "drop_after"},
    "lock timeout": {"action": "lock"},
}
#: Calls of the agent that are writes by their method only.
HARMLESS = ("agent/ping", "agent/exec")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabInThread]:
    lab = LabInThread(tmp_path_factory.mktemp("faults") / "lab")
    lab.node.pools.create("autovibe", "")
    Client(lab).template(TEMPLATE, name="base", ide2="none,media=cdrom")
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("files") / "identity"
    file.write_text("the machine's identity")
    return file


class Spawn:
    """One machine of its own, asked for as often as one likes."""

    def __init__(self, lab: LabInThread, secret: Path, number: int, given: bool) -> None:
        self.lab, self.secret = lab, secret
        self.name = f"faulty-{uuid.uuid4().hex[:8]}"
        self.identity = {"installation": INSTALLATION, "machine": str(uuid.uuid4())}
        self.vmid = 5000 + number if given else None

    def run(self) -> dict[str, Any]:
        return task(
            self.lab,
            "machine",
            state="started",
            vm_id=self.vmid,
            name=self.name,
            identity=self.identity,
            source={"vm_id": TEMPLATE},
            pool="autovibe",
            cores=2,
            memory=512,
            tags=["spawned"],
            net={"bridge": "vmbr1"},
            files=[{"path": "/etc/identity", "src": str(self.secret)}],
            timeout=30,
        )

    def problems(self) -> list[str]:
        """What is not as it was asked for."""
        mine = [machine for machine in self.lab.node.machines.values() if machine.vmid != TEMPLATE]
        if len(mine) != 1:
            return [f"there are {len(mine)} VMs: {[(machine.vmid, machine.name) for machine in mine]}"]
        (machine,) = mine
        config = machine.config.current
        wanted = {"name": self.name, "cores": "2", "memory": "512", "lock": None, "template": None}
        found = [f"{key} is {config.get(key)}" for key, value in wanted.items() if config.get(key) != value]
        found += [] if self.identity["machine"] in config.get("description", "") else ["no identity"]
        found += [] if "spawned" in config.get("tags", "").split(";") else [f"tags are {config.get('tags')}"]
        found += [] if "bridge=vmbr1" in config["net0"] else [f"net0 is {config['net0']}"]
        found += [f"waits for a restart: {machine.config.pending}"] if machine.config.pending else []
        found += [] if machine.running() else ["it does not run"]
        found += [] if self.lab.node.pools.of(machine.vmid) == "autovibe" else ["it is not in the pool"]
        found += [] if machine.guest.files.get("/etc/identity") == self.secret.read_bytes() else ["no identity file"]
        found += [] if self.vmid in (None, machine.vmid) else [f"its id is {machine.vmid}"]
        return found + self._stray()

    def _stray(self) -> list[str]:
        named = {volid for volid, _ in self.lab.node.volumes()}
        folder = self.lab.node.paths.storage("null") / "images"
        names = {path.name for path in folder.glob("*/*")} - {volid.rpartition("/")[2] for volid in named}
        return [f"volumes of nobody: {sorted(names)}"] if names else []

    def remove(self) -> None:
        """All but the template: the next one begins on the same node."""
        client = Client(self.lab)
        for vmid in [vmid for vmid in self.lab.node.machines if vmid != TEMPLATE]:
            client.ok(client.node.qemu(vmid).status.stop.post())
            client.ok(client.node.qemu(vmid).delete())


@pytest.mark.parametrize("given", [True, False], ids=["id given", "found by identity"])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_call_of_a_spawn_may_fail_once(lab, secret, fault, given):
    wrong, hit = [], []
    for number in itertools.count():
        spawn = Spawn(lab, secret, number, given)
        begun = lab.aids.last()
        lab.aids("POST", "faults", {"method": "*", "path": ".*", "skip": number} | FAULTS[fault])
        first = spawn.run()
        matched = [f"{call['method']} {call['path']}" for call in lab.aids.calls(begun) if "fault" in call]
        lab.aids.reset()
        said = f"{fault} of call {number}, {matched}; the first run: {first.get('msg', 'well')}"
        wrong += [f"{problem} ({said})" for problem in run_again(spawn)]
        spawn.remove()
        if not matched:
            break
        hit += matched
    assert wrong == []
    assert any(call.endswith("/clone") for call in hit)
    assert any(call.endswith("/agent/file-write") for call in hit)


@pytest.mark.parametrize("given", [True, False], ids=["id given", "found by identity"])
@pytest.mark.parametrize(("call", "slowness"), [("clone", 10), ("status/start", 4)])
def test_a_task_of_the_first_run_is_still_under_way(lab, secret, call, slowness, given, monkeypatch):
    """On a node that takes its time, a first run that was told of a failure leaves a task running."""
    spawn = Spawn(lab, secret, 1, given)
    lab.aids.latency(profile="pve84", time_scale=slowness)
    lab.aids.fail("POST", f".*/{call}", reason="fault on demand", execute=True)
    assert "fault on demand" in spawn.run()["msg"]
    # What was begun goes on slowly: a clone has neither name nor identity for a second.
    lab.aids.latency(profile="off", time_scale=1)
    monkeypatch.setattr(tasks, "RUN_BEGAN", time.time())  # the second run is a process of its own
    assert any(one["status"] == "running" for one in lab.aids.tasks())
    assert run_again(spawn) == []
    spawn.remove()


def run_again(spawn: Spawn) -> list[str]:
    """The second run sets right what is missing, and the third finds nothing to do."""
    second = spawn.run()
    if second.get("failed"):
        return [f"the second run failed: {second['msg']}"]
    found, last = spawn.problems(), spawn.lab.aids.last()
    third = spawn.run()
    writes = [call for call in spawn.lab.aids.writes(last) if not call.endswith(HARMLESS)]
    return [*found, f"the third run wrote {writes}"] if writes or third.get("changed") else found
