"""What the database calls verified exists; what does not is missing within one look, and is never lost silently."""

from datetime import UTC, datetime, timedelta

import pytest
from autovibe import checkpoints, db, machines, operations, records, verification
from autovibe.models import Checkpoint, MachineEvent, Operation
from autovibe.tests import world
from sqlalchemy import select


@pytest.fixture
def session(settings):
    with db.session_scope(settings) as open_session:
        world.template(session=open_session)
        yield open_session


@pytest.fixture
def machine(session, settings):
    """A working machine with two checkpoints, of a genesis."""
    made = machines.spawn(session, settings, project=world.project(session), prompt="work")
    world.do(session, settings)
    made.status, made.enrolled_at = "working", made.spawned_at
    for _ in range(2):
        machines.checkpoint(session, settings, made)
        world.do(session, settings)
    backdate(session)
    return made


def backdate(session):
    for row in session.scalars(select(Checkpoint)):
        row.verified_at = datetime.now(UTC) - timedelta(hours=1)
    session.flush()


def of(session, machine):
    mine = select(Checkpoint).where(Checkpoint.creating_machine_uuid == machine.uuid).order_by(Checkpoint.verified_at)
    return list(session.scalars(mine.order_by(Checkpoint.created_at)))


def vm(vm_id, *snapshots, template=False):
    return {"vm_id": vm_id, "template": template, "snapshots": [{"name": name} for name in snapshots]}


TEMPLATE = vm(9000, template=True)


def look(session, settings, *vms, checkpoint=None):
    asked = verification.ask(session, checkpoint)
    world.do(session, settings, kind="verify", vms=vms)
    return session.get_one(Operation, asked.uuid)


def test_what_is_there_is_verified_anew(session, settings, machine):
    rows = of(session, machine)
    before = [row.verified_at for row in rows]
    done = look(session, settings, TEMPLATE, vm(machine.vm_id, *(row.proxmox_snapshot_id for row in rows)))
    assert done.result == {"checked": 3, "missing": [], "found_again": []}
    assert {row.verification_status for row in rows} == {"verified"}
    assert all(row.verified_at > old for row, old in zip(rows, before, strict=True))


def test_what_was_deleted_behind_our_back_is_missing_and_said(session, settings, machine):
    lost, left = of(session, machine)
    done = look(session, settings, TEMPLATE, vm(machine.vm_id, left.proxmox_snapshot_id))
    assert done.result["missing"] == [str(lost.uuid)]
    assert (lost.verification_status, left.verification_status) == ("missing", "verified")
    with pytest.raises(checkpoints.CheckpointNotReady, match="missing"):
        checkpoints.clonable(session, lost, lambda: 1)
    said = [event.text for event in session.scalars(select(MachineEvent)) if event.kind == "error"]
    assert said == [f"manual checkpoint {lost.uuid} is missing: Proxmox has it no more"]
    done = look(session, settings, TEMPLATE, vm(machine.vm_id, lost.proxmox_snapshot_id, left.proxmox_snapshot_id))
    assert done.result["found_again"] == [str(lost.uuid)]
    assert lost.verification_status == "verified"


def test_a_vm_that_is_gone_takes_its_checkpoints_with_it(session, settings, machine):
    look(session, settings, TEMPLATE)
    assert {row.verification_status for row in of(session, machine)} == {"missing"}


def test_a_snapshot_that_is_broken_off_is_none(session, settings, machine):
    first, second = of(session, machine)
    broken = vm(machine.vm_id, first.proxmox_snapshot_id, second.proxmox_snapshot_id)
    broken["snapshots"][1]["snapstate"] = "delete"
    look(session, settings, TEMPLATE, broken)
    assert [row.verification_status for row in (first, second)] == ["verified", "missing"]


def test_a_list_without_any_vm_says_nothing(session, settings, machine):
    done = look(session, settings)
    assert done.status == "failed"
    assert "permissions" in done.error
    assert {row.verification_status for row in of(session, machine)} == {"verified"}


def test_a_look_that_fails_changes_nothing(session, settings, machine):
    verification.ask(session)
    world.do(session, settings, kind="verify", error="unreachable")
    assert {row.verification_status for row in of(session, machine)} == {"verified"}


def test_what_is_made_while_the_look_is_under_way_is_not_missed(session, settings, machine):
    verification.ask(session)
    (operation,) = world.claim(session, kinds=("verify",))
    operation.claimed_at = datetime.now(UTC) - timedelta(seconds=5)
    machines.checkpoint(session, settings, machine)
    world.do(session, settings, kind="checkpoint")
    records.end(session, settings, operation.uuid, result={"machines": [TEMPLATE]})
    assert [row.verification_status for row in of(session, machine)].count("verified") == 1


@pytest.mark.parametrize("lost", ["snapshot", "template"])
def test_a_promoted_checkpoint_goes_on_with_the_carrier_that_is_left(session, settings, machine, lost):
    first, second = of(session, machine)
    checkpoints.promote(session, first, lambda: 12345)
    world.do(session, settings, kind="promote")
    names = [second.proxmox_snapshot_id] + ([first.proxmox_snapshot_id] if lost == "template" else [])
    promoted = [] if lost == "template" else [vm(12345, template=True)]
    look(session, settings, TEMPLATE, vm(machine.vm_id, *names), *promoted)
    assert first.verification_status == "verified"
    assert first.template_vm_id is None
    assert (first.carrier, first.vm_id) == (("template", 12345) if lost == "snapshot" else ("snapshot", machine.vm_id))
    vm_id, promotion = checkpoints.clonable(session, first, lambda: 12346)
    assert (vm_id, promotion is None) == ((12345, True) if lost == "snapshot" else (12346, False))


def test_one_checkpoint_alone_is_looked_for_on_its_vm_alone(session, settings, machine):
    first, second = of(session, machine)
    done = look(session, settings, vm(machine.vm_id, second.proxmox_snapshot_id), checkpoint=first)
    assert done.params["vars"] == {"machine_vm_id": machine.vm_id}
    assert done.result["missing"] == [str(first.uuid)]
    assert session.get_one(Checkpoint, machine.parent_checkpoint_uuid).verification_status == "verified"


def test_a_look_that_waits_serves_whoever_asks(session, machine):
    everything = verification.ask(session)
    assert verification.ask(session, of(session, machine)[0]) is everything
    assert verification.ask(session) is everything
    assert len(operations.pending(session, machine.uuid)) == 0


def test_a_trial_compares_what_a_machine_has_with_the_manifest(session, settings, machine):
    first = of(session, machine)[0]
    files = [{"path": path, "size": 1, "sha256": path[0] * 64, "mode": "0644"} for path in ("a", "b b", "c/d", "e\\n")]
    files.append({"path": "huge", "size": 1 << 40, "sha256": None, "mode": "0644"})
    first.file_manifest = {"files": files, "truncated": False}
    asked = verification.ask_trial(session, settings, first)
    variables = asked.params["vars"]
    assert variables["machine_source"] == {"vm_id": machine.vm_id, "snapshot": first.proxmox_snapshot_id}
    assert variables["machine_full"] is True
    assert variables["machine_vm_id"] not in (machine.vm_id, first.vm_id)
    assert variables["machine_verify_files"] == ["/workspace/a", "/workspace/b b", "/workspace/c/d"]
    world.do(session, settings, kind="verify", vms=[f"{'a' * 64}  /workspace/a", f"{'0' * 64}  /workspace/b b"])
    assert asked.result == {"compared": 3, "different": ["b b", "c/d"]}
    assert first.metadata_["tried"]["different"] == 2
    assert first.verification_status == "verified"


def test_a_trial_reads_a_sample_of_many_files():
    files = [{"path": str(number), "size": 1, "sha256": "0" * 64, "mode": None} for number in range(20_000)]
    chosen = verification.sample({"files": files})
    assert len(chosen) == verification.SAMPLE
    assert chosen[-1]["path"] == "19900"


def test_what_is_missing_cannot_be_tried(session, settings, machine):
    first = of(session, machine)[0]
    first.verification_status = "missing"
    with pytest.raises(verification.NotVerifiable, match="missing"):
        verification.ask_trial(session, settings, first)
