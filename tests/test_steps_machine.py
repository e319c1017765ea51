"""The twelve steps of `machine`."""

from __future__ import annotations

import pytest
from labs import running_lab
from steps import Call, Refusal, Steps, Task, run

ME = {"vm_id": 501, "name": "steps"}
CREATE = {
    **ME,
    "source": {"name": "null"},
    "cores": 2,
    "memory": 512,
    "tags": ["a"],
    "net": {"bridge": "vmbr1", "mac": "BC:24:11:00:05:01"},
    "state": "started",
}
STEPS = Steps(
    "machine",
    create=CREATE,
    change={**CREATE, "tags": ["a", "b"], "notes": "changed"},
    delete={**ME, "state": "absent", "force": True},
    info=Task("machine_info", {"vm_id": 501}),
    drift=Call("PUT", "/nodes/pve1/qemu/501/config", {"description": "by hand"}),
    errors=[
        Refusal({"name": "steps", "source": {"name": "nope"}}, "NotFound", "No template 'nope'"),
        Refusal({"name": "steps", "state": "started"}, "NotFound", "give a source"),
        Refusal({"name": "under_score", "source": {"name": "null"}}, "NotPossible", "not a DNS name"),
        Refusal({}, None, "one of the following is required: vm_id, name, identity"),
    ],
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("state")) as found:
        yield found


def test_machine_passes_the_twelve_steps(lab):
    assert run(lab, STEPS).problems() == []
