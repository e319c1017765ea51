"""One thing changed by hand is one call to set right, as check mode says; and power states, whatever was before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from autovibe_lab.tests.testing import Client as LabClient
from autovibe_lab.tests.testing import LabInThread
from inprocess import task
from test_core_lab import BASE, started_lab

ME = {"vm_id": 200, "name": "web"}
WEB = {
    **ME,
    "source": {"vm_id": BASE},
    "cores": 2,
    "memory": 512,
    "disk_size": "2G",
    "tags": ["a"],
    "pool": "autovibe",
    "net": {"bridge": "vmbr1", "mac": "BC:24:11:00:02:00", "firewall": True},
    "ip": "192.168.100.51/24",
    "gateway": "192.168.100.1",
    "ciuser": "admin",
    "nameservers": ["192.168.100.2"],
    "searchdomain": "example.net",
    "smbios": {"serial": "one"},
    "onboot": True,
    "protection": False,
    "options": {"cpulimit": 2},
    "description": "made",
    "state": "started",
}
#: What somebody does by hand, and the one call that sets it right.
DRIFTS = {
    "name": ({"name": "other"}, "config"),
    "cores": ({"cores": 4}, "config"),
    "memory": ({"memory": 1024}, "config"),
    "tags": ({"tags": "b"}, "config"),
    "another bridge": ({"net0": "virtio=BC:24:11:00:02:00,bridge=vmbr0,firewall=1"}, "config"),
    "no firewall": ({"net0": "virtio=BC:24:11:00:02:00,bridge=vmbr1"}, "config"),
    "another MAC": ({"net0": "virtio=BC:24:11:00:02:01,bridge=vmbr1,firewall=1"}, "config"),
    "address": ({"ipconfig0": "ip=192.168.100.52/24,gw=192.168.100.1"}, "config"),
    "user": ({"ciuser": "root"}, "config"),
    "name server": ({"nameserver": "1.1.1.1"}, "config"),
    "search domain": ({"delete": "searchdomain"}, "config"),
    "serial": ({"smbios1": "serial=dHdv,base64=1"}, "config"),
    "onboot": ({"delete": "onboot"}, "config"),
    "protection": ({"protection": 1}, "config"),
    "an option": ({"cpulimit": 1}, "config"),
    "description": ({"description": "by hand"}, "config"),
    "several": ({"cores": 4, "tags": "b", "ciuser": "root", "onboot": 0}, "config"),
    "stopped": ("stop", "start"),
    "paused": ("suspend", "resume"),
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabInThread]:
    for lab in started_lab(tmp_path_factory.mktemp("drifts") / "lab"):
        LabClient(lab).api.pools.post(poolid="autovibe")
        yield lab


@pytest.fixture
def private_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture(scope="module")
def web(lab: LabInThread) -> LabClient:
    assert task(lab, "machine", **WEB)["changed"]
    return LabClient(lab)


def healed(lab: LabInThread, module: str, arguments: dict[str, Any]) -> list[str]:
    """The writes of a run after a drift; what it says in check mode is what it does, and once more is nothing."""
    last = lab.aids.last()

    def written() -> list[str]:
        return [call for call in lab.aids.writes(last) if call != "POST /access/ticket"]

    told = task(lab, module, check=True, **arguments)
    assert written() == []
    done = task(lab, module, **arguments)
    writes = written()
    assert (told["changed"], done["changed"]) == (True, True), (told, done)
    assert told["diff"] == done["diff"]
    assert not task(lab, module, **arguments)["changed"]
    assert written() == writes
    return writes


@pytest.mark.parametrize("drift", DRIFTS)
def test_each_drift_of_a_machine_is_one_write(lab, web, drift):
    by_hand, call = DRIFTS[drift]
    vm = web.node.qemu(200)
    web.ok(vm.status(by_hand).post()) if isinstance(by_hand, str) else vm.config.put(**by_hand)
    (write,) = healed(lab, "machine", WEB)
    assert write.rpartition("/")[2] == call


def test_a_drift_of_the_pool_is_one_write(lab, web):
    root = lab.lab.secrets.root_password
    if "other" not in {pool["poolid"] for pool in web.api.pools.get()}:
        web.api.pools.post(poolid="other")
    web.api.pools.put(poolid="other", vms="200", **{"allow-move": 1})
    assert healed(lab, "machine", {**WEB, "api_user": "root@pam", "api_password": root, "api_token_id": None,
                                   "api_token_secret_file": None}) == ["PUT /pools"]  # fmt: skip


def test_a_drift_of_a_checkpoint_and_of_a_backup_is_one_write(lab, web):
    checkpoint = {"vm_id": 200, "name": "before", "description": "first"}
    backup = {"vm_id": 200, "storage": "local", "max_age": 3600, "notes": "first", "protected": True}
    task(lab, "checkpoint", **checkpoint)
    volume = task(lab, "backup", **backup)["backup"]["volume"]
    web.node.qemu(200).snapshot("before").config.put(description="by hand")
    assert healed(lab, "checkpoint", checkpoint) == ["PUT /nodes/pve1/qemu/200/snapshot/before/config"]
    for by_hand in ({"notes": "by hand"}, {"protected": 0}):
        web.node.storage("local").content(volume).put(**by_hand)
        (write,) = healed(lab, "backup", backup)
        assert write.startswith("PUT /nodes/pve1/storage/local/content/")
    web.ok(web.node.qemu(200).snapshot("before").delete())


def test_a_machine_with_snapshots_stops_and_starts_again(lab, web):
    web.ok(web.node.qemu(200).snapshot.post(snapname="cold"))
    web.ok(web.node.qemu(200).snapshot.post(snapname="warm", vmstate=1))
    for state, call in (("stopped", "stop"), ("started", "start"), ("paused", "suspend"), ("started", "resume")):
        (write,) = healed(lab, "machine", {**ME, "state": state})
        assert write.rpartition("/")[2] == call
    assert {one["name"] for one in web.node.qemu(200).snapshot.get()} == {"cold", "warm", "current"}
    for name in ("warm", "cold"):
        web.ok(web.node.qemu(200).snapshot(name).delete())


@pytest.mark.parametrize(
    ("state", "calls", "status"),
    [
        ("present", [], "stopped"),
        ("stopped", [], "stopped"),
        ("started", ["start"], "running"),
        ("paused", ["start", "suspend"], "paused"),
    ],
)
def test_a_hibernated_machine_goes_on_where_it_was(lab, web, state, calls, status):
    vm = web.node.qemu(200)
    web.ok(vm.status.suspend.post(todisk=1))
    assert vm.config.get()["lock"] == "suspended"
    if calls:
        assert [write.rpartition("/")[2] for write in healed(lab, "machine", {**ME, "state": state})] == calls
    done = task(lab, "machine", **ME, state=state)
    assert (done["changed"], done["machine"]["status"]) == (False, status)
    assert ("lock" in vm.config.get()) == (not calls)
    task(lab, "machine", **ME, state="started")


def test_a_change_of_a_hibernated_machine_is_refused_in_one_line(lab, web):
    """Nothing of its configuration may differ when it goes on."""
    vm = web.node.qemu(200)
    web.ok(vm.status.suspend.post(todisk=1))
    for check in (True, False):
        done = task(lab, "machine", check=check, **ME, cores=4)
        assert done.get("error_class") == "NotPossible", done
        assert "VM 200 is hibernated; start it first" in done["msg"]
    assert healed(lab, "machine", {**ME, "cores": 4, "state": "started"}) == [
        "POST /nodes/pve1/qemu/200/status/start",
        "PUT /nodes/pve1/qemu/200/config",
    ]
    assert task(lab, "machine", **ME, cores=4)["machine"]["restart_required"] == ["cores"]


def test_a_hibernated_machine_is_removed(lab, web):
    assert task(lab, "machine", vm_id=210, name="gone", source={"vm_id": BASE}, state="started")["changed"]
    web.ok(web.node.qemu(210).status.suspend.post(todisk=1))
    done = task(lab, "machine", vm_id=210, name="gone", state="absent")
    assert (done["changed"], 210 in lab.node.machines) == (True, False)
