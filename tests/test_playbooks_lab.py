"""The playbooks, run by ansible-playbook as a person does, against the lab with null guests."""

from __future__ import annotations

import json
import re
import uuid

import certifi
import pytest
from labs import running_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("state"), site="least") as found:
        yield found


@pytest.fixture
def name() -> str:
    return f"m-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def vm_id(lab) -> int:
    """A VM id that nobody has, far from those that Proxmox takes by itself."""
    lab.last_id = getattr(lab, "last_id", 20000) + 1
    return lab.last_id


NULL = {"name": "null"}


def test_a_template_is_made_once(lab):
    assert not lab.ok("templates", template_name="null", template_disk_source="null:1").changed


def test_other_inputs_make_a_new_version_beside_the_old(lab):
    old = lab.ok("templates", template_name="versions", template_disk_source="null:1").fact("template")
    new = lab.ok("templates", template_name="versions", template_disk_source="null:2").fact("template")
    assert new["vm_id"] != old["vm_id"]
    assert new["inputs"] != old["inputs"]


def test_a_spawn_changes_once(lab, name):
    wanted = {"machine_name": name, "machine_source": NULL, "machine_cores": 2, "machine_ip": "192.168.100.17/24"}
    first = lab.ok("spawn", **wanted)
    machine = first.fact("machine")
    assert first.changed
    assert machine["status"] == "running"
    assert machine["ip"] == "192.168.100.17/24"
    assert machine["mac"]
    assert machine["created"]
    before = lab.writes()
    second = lab.ok("spawn", **wanted)
    assert not second.changed
    assert lab.writes() == before
    assert second.fact("machine") == {**machine, "created": False}


def test_one_difference_is_one_write(lab, name):
    wanted = {"machine_name": name, "machine_source": NULL}
    vmid = lab.ok("spawn", **wanted, machine_tags=["a"]).fact("machine")["vm_id"]
    before = len(lab.writes())
    assert lab.ok("spawn", **wanted, machine_tags=["b"]).changed
    assert lab.writes()[before:] == [f"PUT /nodes/pve1/qemu/{vmid}/config"]


def test_check_mode_tells_the_truth_and_writes_nothing(lab, name, vm_id):
    wanted = {
        "machine_name": name,
        "machine_source": NULL,
        "machine_vm_id": vm_id,
        "machine_mac": "BC:24:11:00:00:17",
        "machine_cores": 2,
    }
    before = lab.writes()
    told = lab.ok("spawn", "--check", "--diff", **wanted)
    assert lab.writes() == before
    done = lab.ok("spawn", "--diff", **wanted)
    assert told.changed
    assert told.results[-1]["diff"] == done.results[-1]["diff"]
    assert not lab.ok("spawn", "--check", **wanted).changed


def test_a_life_from_template_to_final_checkpoint(lab, name):
    """Spawned, checkpointed, restored, ended as a snapshot, promoted; its branch ends as a template and has a child."""
    me = {"machine_name": name}
    point = {**me, "machine_checkpoint": {"name": f"av-{uuid.uuid4().hex}"}}
    vmid = lab.ok("spawn", **me, machine_source=NULL).fact("machine")["vm_id"]
    assert lab.ok("checkpoint", **point).fact("checkpoint")["carrier"] == "snapshot"
    assert not lab.ok("checkpoint", **point).changed
    restored = lab.ok("restore", **point, machine_tags=["restored"])
    assert restored.fact("machine")["status"] == "running"
    final = {**me, "machine_final": {"kind": "auto", "name": f"av-{uuid.uuid4().hex}"}}
    assert lab.ok("terminate", **final).fact("checkpoint")["carrier"] == "snapshot"
    assert not lab.ok("terminate", **final).changed
    promoted = lab.ok("promote", **point).fact("checkpoint")
    assert promoted["carrier"] == "template"
    assert promoted["vm_id"] != vmid
    assert not lab.ok("promote", **point).changed

    child = {"machine_name": f"{name}-2"}
    lab.ok("spawn", **child, machine_source={"vm_id": promoted["vm_id"]})
    end = {**child, "machine_final": {"kind": "auto", "name": f"av-{uuid.uuid4().hex}"}}
    ended = lab.ok("terminate", **end).fact("checkpoint")
    assert ended["carrier"] == "template"
    assert not lab.ok("terminate", **end).changed
    lab.ok("spawn", machine_name=f"{name}-3", machine_source={"vm_id": ended["vm_id"]})


def test_a_machine_can_be_removed(lab, name):
    lab.ok("spawn", machine_name=name, machine_source=NULL)
    gone = {"machine_name": name, "machine_final": {"kind": "none"}}
    assert lab.ok("terminate", **gone).fact("machine")["status"] == "absent"
    assert not lab.ok("terminate", **gone).changed


def test_a_restore_by_one_operation_rolls_back_once(lab, name, vm_id):
    me = {"machine_name": name, "machine_vm_id": vm_id}
    point = {**me, "machine_checkpoint": {"name": "before"}}
    lab.ok("spawn", **me, machine_source=NULL)
    lab.ok("checkpoint", **point)
    operation = {"machine_operation": str(uuid.uuid4())}
    lab.ok("restore", **point, **operation)
    assert not lab.ok("restore", **point, **operation).changed
    assert lab.tasks(vm_id, "qmrollback") == 1
    assert lab.ok("restore", **point, machine_operation=str(uuid.uuid4())).changed
    assert lab.tasks(vm_id, "qmrollback") == 2


def test_many_machines_in_one_run(lab, tmp_path):
    hosts = {
        f"host{n}": {"machine_name": f"many-{n}", "machine_vm_id": 30000 + n, "machine_source": NULL} for n in range(12)
    }
    inventory = tmp_path / "hosts.json"
    inventory.write_text(json.dumps({"machines": {"hosts": hosts}}))
    run = lab.ok("spawn", "-i", str(inventory), "-i", "inventory/lab")
    machines = [result["machine"] for result in run.results if "machine" in result]
    assert sorted(machine["vm_id"] for machine in machines) == [30000 + n for n in range(12)]


KILLS = [
    ("POST", r"/nodes/pve1/qemu/\d+/clone"),
    ("PUT", r"/nodes/pve1/qemu/{id}/config"),
    ("POST", r"/nodes/pve1/qemu/{id}/status/start"),
]


@pytest.mark.parametrize(("method", "path"), KILLS, ids=["clone", "config", "start"])
def test_a_killed_spawn_goes_on(lab, name, vm_id, method, path):
    wanted = {"machine_name": name, "machine_vm_id": vm_id, "machine_source": NULL}
    clones = sum(1 for call in lab.writes() if call.endswith("/clone"))
    lab.kill_held("spawn", method, path.replace("{id}", str(vm_id)), **wanted)
    assert lab.ok("spawn", **wanted).fact("machine")["status"] == "running"
    assert sum(1 for call in lab.writes() if call.endswith("/clone")) == clones + 1
    assert lab.tasks(vm_id, "qmstart") == 1


def test_a_killed_checkpoint_goes_on(lab, name, vm_id):
    me = {"machine_name": name, "machine_vm_id": vm_id}
    lab.ok("spawn", **me, machine_source=NULL)
    point = {**me, "machine_checkpoint": {"name": "before"}}
    lab.kill_held("checkpoint", "POST", f"/nodes/pve1/qemu/{vm_id}/snapshot", **point)
    assert lab.ok("checkpoint", **point).fact("checkpoint")["exists"]
    assert lab.tasks(vm_id, "qmsnapshot") == 1


def test_a_killed_restore_goes_on(lab, name, vm_id):
    me = {"machine_name": name, "machine_vm_id": vm_id}
    point = {**me, "machine_checkpoint": {"name": "before"}, "machine_operation": str(uuid.uuid4())}
    lab.ok("spawn", **me, machine_source=NULL)
    lab.ok("checkpoint", **point)
    lab.kill_held("restore", "POST", f"/nodes/pve1/qemu/{vm_id}/snapshot/before/rollback", **point)
    assert lab.ok("restore", **point).fact("machine")["status"] == "running"
    assert lab.tasks(vm_id, "qmrollback") == 1


@pytest.mark.parametrize("step", ["status/shutdown", "template"])
def test_a_killed_terminate_goes_on(lab, name, vm_id, step):
    me = {"machine_name": name, "machine_vm_id": vm_id}
    lab.ok("spawn", **me, machine_source=NULL)
    final = {**me, "machine_final": {"kind": "auto", "name": "final"}}
    lab.kill_held("terminate", "POST", f"/nodes/pve1/qemu/{vm_id}/{step}", **final)
    assert lab.ok("terminate", **final).fact("checkpoint")["carrier"] == "template"
    assert lab.tasks(vm_id, "qmshutdown") == 1
    assert lab.tasks(vm_id, "qmtemplate") == 1


def test_a_killed_promote_goes_on(lab, name, vm_id):
    me = {"machine_name": name, "machine_vm_id": vm_id}
    lab.ok("spawn", **me, machine_source=NULL)
    point = {**me, "machine_checkpoint": {"name": "before"}, "machine_promote_vm_id": vm_id + 20000}
    lab.ok("checkpoint", **point)
    lab.kill_held("promote", "POST", f"/nodes/pve1/qemu/{vm_id}/clone", **point)
    assert lab.ok("promote", **point).fact("checkpoint")["vm_id"] == vm_id + 20000
    assert lab.tasks(vm_id, "qmclone") == 1


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("POST", r".*/clone", 596, "Broken pipe"),
        ("PUT", r".*/config", 500, "can't lock file '/var/lock/qemu-server/lock-1.conf' - got timeout"),
        ("POST", r".*/status/start", 500, "got no worker upid - start worker failed"),
    ],
)
def test_what_was_not_executed_is_done_again(lab, name, vm_id, method, path, status, reason):
    lab.aid("POST", "faults", method=method, path=path, status=status, reason=reason, count=1)
    run = lab.ok("spawn", machine_name=name, machine_vm_id=vm_id, machine_source=NULL)
    assert run.fact("machine")["status"] == "running"


def test_the_tasks_own_log_is_in_the_failure(lab, name):
    base = lab.ok("spawn", machine_name=name, machine_source=NULL).fact("machine")["vm_id"]
    lab.ok("terminate", machine_name=name, machine_final={"kind": "template", "name": "final"})
    lab.ok("spawn", machine_name=f"{name}-child", machine_source={"vm_id": base})
    failed = lab.play("terminate", machine_name=name, machine_vm_id=base, machine_final={"kind": "none"}).results[-1]
    assert failed["error_class"] == "TaskFailed"
    assert any("still in use" in line for line in failed["task_log"])


BAD = {
    "nobody listens": (
        {"proxmox_api_port": 1},
        "Unreachable",
        r"cannot be reached.*Connection refused; check api_host",
    ),
    "wrong secret": ({"proxmox_api_token_secret_file": "{bad}"}, "NotAuthenticated", r"401.*check the token's id and"),
    "wrong certificate": ({"proxmox_ca_path": certifi.where()}, "TlsNotVerified", r"certificate.*as ca_path"),
    "no ca file": ({"proxmox_ca_path": "/nonexistent.pem"}, "SettingsError", r"ca_path: there is no file"),
    "no secret file": ({"proxmox_api_token_secret_file": "/nonexistent"}, "SettingsError", r"/nonexistent: No such"),
    "no such template": ({"machine_source": {"name": "nope"}}, "NotFound", r"No template 'nope'.*there are: .*null"),
    "no such source": ({"machine_source": {"vm_id": 99999}}, "NotFound", r"VM 99999, does not exist"),
    "no such node": ({"proxmox_node": "pve9"}, "ApiError", r"pve9"),
    "not a name": ({"machine_name": "under_score"}, "NotPossible", r"'under_score' is not a DNS name"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(lab, name, tmp_path, case):
    extra, kind, text = BAD[case]
    (tmp_path / "bad").write_text("not-the-secret")
    extra = {key: str(tmp_path / "bad") if value == "{bad}" else value for key, value in extra.items()}
    run = lab.play("spawn", **{"machine_name": name, "machine_source": NULL, **extra})
    assert run.rc != 0
    assert run.results[-1]["error_class"] == kind
    assert re.search(text, run.message)
    assert "\n" not in run.message


def test_a_vm_of_somebody_else_is_not_touched(lab, name):
    vmid = lab.ok("spawn", machine_name=name, machine_source=NULL).fact("machine")["vm_id"]
    before = lab.writes()
    others = {"machine_name": f"{name}-x", "machine_vm_id": vmid}
    runs = [
        lab.play("spawn", **others, machine_source=NULL),
        lab.play("checkpoint", **others, machine_checkpoint={"name": "before"}),
        lab.play("terminate", **others, machine_final={"kind": "none"}),
    ]
    assert [run.results[-1].get("error_class") for run in runs] == ["IdentityError"] * 3
    assert lab.writes() == before


def test_a_missing_checkpoint_names_those_that_there_are(lab, name):
    lab.ok("spawn", machine_name=name, machine_source=NULL)
    lab.ok("checkpoint", machine_name=name, machine_checkpoint={"name": "before"})
    run = lab.play("restore", machine_name=name, machine_checkpoint={"name": "after"})
    assert re.search(r"no snapshot 'after'; there are: before", run.message)


def test_nothing_secret_is_shown(lab, name, tmp_path):
    planted = f"planted-{uuid.uuid4().hex}"
    identity = tmp_path / "identity.json"
    identity.write_text(json.dumps({"token": planted}))
    token = (lab.folder / "token-secret").read_text().strip()
    wanted = {"machine_name": name, "machine_source": NULL, "machine_identity_file": str(identity)}
    shown = lab.text("spawn", "-vvv", "--diff", **wanted)
    assert "changed=1" in shown
    shown += lab.text("spawn", "-vvv", "--diff", **wanted)
    shown += lab.text("spawn", "-vvv", "--diff", "--check", **{**wanted, "machine_name": f"{name}-2"})
    shown += lab.text("spawn", "-vvv", "--diff", **{**wanted, "machine_source": {"name": "nope"}, "machine_name": "x"})
    shown += lab.text("spawn", "-vvv", "--diff", **wanted, proxmox_node="pve9")
    assert planted not in shown
    assert token not in shown
