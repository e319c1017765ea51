"""The twelve steps of `checkpoint`, its other states, and `checkpoint_info`."""

from __future__ import annotations

import pytest
from labs import running_lab
from steps import Call, Refusal, Steps, Task, run

WEB = {"vm_id": 510, "name": "web", "source": {"name": "null"}}
ONE = {"machine_name": "web", "name": "before-upgrade"}
STEPS = Steps(
    "checkpoint",
    before=[Task("machine", {**WEB, "state": "started"})],
    create={**ONE, "description": "first"},
    change={**ONE, "description": "second"},
    delete={**ONE, "state": "absent"},
    drift=Call("PUT", "/nodes/pve1/qemu/510/snapshot/before-upgrade/config", {"description": "by hand"}),
    errors=[
        Refusal({**ONE, "name": "1x"}, "NotPossible", "not a snapshot name"),
        Refusal({**ONE, "state": "restored"}, "NotFound", "no snapshot 'before-upgrade'; there are: none at all"),
        Refusal({**ONE, "state": "promoted"}, "NotFound", "no snapshot 'before-upgrade'"),
        Refusal({**ONE, "machine_name": "nope"}, "NotFound", "no machine 'nope'"),
        Refusal({**ONE, "carrier": "template"}, "NotPossible", "running; only a stopped VM"),
        Refusal({"machine_name": "web", "state": "retained", "keep": {}}, "NotPossible", "Say how many"),
        Refusal({"machine_name": "web", "state": "retained"}, None, "missing: keep"),
        Refusal({"machine_name": "web"}, None, "missing: name"),
        Refusal({"name": "x1"}, None, "one of the following is required: vm_id, machine_name, identity"),
    ],
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("state")) as found:
        yield found


def test_checkpoint_passes_the_twelve_steps(lab):
    assert run(lab, STEPS).problems() == []


def both(name, arguments, module="checkpoint"):
    """A task in check mode, and then for real."""
    task = Task(module, arguments)
    return [task.play(f"{name}_check", check_mode=True), task.play(name)]


def test_states_do_as_they_predicted(lab):
    """One run: restore, promote, branch, refuse, keep, remove."""
    chain = [Task("checkpoint", {"vm_id": 511, "name": f"c{n}"}).play(f"take_{n}") for n in range(5)]
    me = {"vm_id": 511}
    done = lab.tasks_run(
        Task("machine", {**me, "name": "db", "source": {"name": "null"}, "state": "started"}).play("make"),
        *chain,
        *both("ram", {**me, "name": "with-ram", "ram": True}),
        *both("restored", {**me, "name": "c1", "state": "restored"}),
        *both("restored_started", {**me, "name": "c1", "state": "restored", "start": True}),
        *both("restored_ram", {**me, "name": "with-ram", "state": "restored"}),
        *both("fork", {**me, "name": "milestone-1"}),
        Task("checkpoint", {**me, "name": "c1", "state": "restored"}).play("back"),
        *both("promoted", {**me, "name": "c2", "state": "promoted"}),
        Task("checkpoint", {**me, "name": "c2", "state": "promoted"}).play("promoted_again"),
        Task("machine", {"name": "branch", "source": {"vm_id": "{{ promoted.checkpoint.vm_id }}"}}).play("branch"),
        Task(
            "checkpoint",
            {"vm_id": "{{ promoted.checkpoint.vm_id }}", "name": "c2", "state": "absent", "carrier": "template"},
        ).play("has_clones", ignore_errors=True),
        *both("absent", {**me, "name": "c3", "state": "absent"}),
        *both("retained", {**me, "state": "retained", "keep": {"last": 1, "milestones": ["milestone-*"]}}),
        Task("checkpoint", {**me, "state": "retained", "keep": {"last": 1, "milestones": ["milestone-*"]}}).play(
            "retained_again"
        ),
        Task("machine", {"name": "branch", "state": "absent"}).play("no_branch"),
        *both(
            "template_absent",
            {"vm_id": "{{ promoted.checkpoint.vm_id }}", "name": "c2", "state": "absent", "carrier": "template"},
        ),
    )
    assert done.rc == 0, done.output
    for step in ("ram", "restored", "restored_started", "restored_ram", "fork", "promoted", "absent", "retained"):
        predicted, real = done.named[f"{step}_check"], done.named[step]
        assert real["changed"], step
        assert predicted["diff"] == real["diff"], step
    assert done.named["template_absent_check"]["diff"] == done.named["template_absent"]["diff"]
    assert [done.named[step]["checkpoint"]["status"] for step in ("restored", "restored_started", "restored_ram")] == [
        "stopped",
        "running",
        "running",
    ]
    assert done.named["ram"]["checkpoint"] | {"created_at": None} == {
        "name": "with-ram",
        "vm_id": 511,
        "node": "pve1",
        "carrier": "snapshot",
        "size_bytes": None,
        "created_at": None,
        "exists": True,
        "ram": True,
        "description": "",
        "parent": "c4",
        "children": [],
        "current": True,
        "frozen": False,
    }
    assert not done.named["promoted_again"]["changed"]
    assert done.named["promoted_again"]["checkpoint"]["vm_id"] == done.named["promoted"]["checkpoint"]["vm_id"]
    assert done.named["has_clones"]["error_class"] == "NotPossible"
    assert "Linked clones stand on template" in done.named["has_clones"]["msg"]
    assert done.named["absent"]["checkpoint"]["children"] == ["c4"]
    assert done.named["absent"]["diff"]["after"] == {"parent_of": {"c4": "c2"}}
    # c1 is what the present state goes on from, and a fork; c2 was promoted; with-ram is the newest that counts.
    assert {one["name"]: one["reason"] for one in done.named["retained"]["retention"]["kept"]} == {
        "c1": "current",
        "c2": "promoted",
        "with-ram": "last",
        "milestone-1": "milestone",
    }
    assert done.named["retained"]["retention"]["removed"] == ["c0", "c4"]
    assert not done.named["retained_again"]["changed"]
