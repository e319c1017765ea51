"""What is removed, what is refused, and what becomes of it however the removal ends."""

from datetime import UTC, datetime, timedelta

import pytest
from autovibe import checkpoints, db, machines, operations, policies, pruning, records
from autovibe.models import Checkpoint, Project, VmMeter
from autovibe.tests import world
from sqlalchemy import select


@pytest.fixture
def session(settings):
    with db.session_scope(settings) as open_session:
        world.template(session=open_session)
        yield open_session


@pytest.fixture
def project(session):
    return world.project(session)


@pytest.fixture
def machine(session, settings, project):
    return worked(session, settings, project, 4)


def worked(session, settings, project, count, checkpoint=None):
    """A working machine with so many checkpoints, each an hour older than the next."""
    made = machines.spawn(session, settings, project=project, prompt="work", checkpoint=checkpoint)
    while world.do(session, settings):
        pass
    made.status, made.enrolled_at = "working", made.spawned_at
    for _ in range(count):
        machines.checkpoint(session, settings, made, manifest={"files": [], "truncated": False})
        world.do(session, settings, kind="checkpoint")
    rows = of(session, made)
    for number, row in enumerate(rows):
        row.created_at = datetime.now(UTC) - timedelta(days=400, hours=len(rows) - number)
    session.flush()
    return made


def of(session, machine):
    mine = select(Checkpoint).where(Checkpoint.creating_machine_uuid == machine.uuid)
    # In the order of the tree: each one's parent before it.
    rows = {row.parent_checkpoint_uuid: row for row in session.scalars(mine)}
    found, at = [], machine.parent_checkpoint_uuid
    while at in rows:
        found.append(rows[at])
        at = rows[at].uuid
    return found


def statuses(session, machine):
    return [row.verification_status for row in of(session, machine)]


def end(session, settings, machine, carrier="snapshot"):
    machines.terminate(session, settings, machine)
    world.do(session, settings, kind="terminate", carrier=carrier)
    while world.do(session, settings, kind="promote"):
        pass


def test_what_is_old_and_of_no_use_goes(session, settings, project, machine):
    _, newest, older, *_ = pruning.plan(session, project)
    assert (newest.reason, older.reason) == ("in use: a living machine goes on from it", None)
    (operation,) = pruning.prune(session, project)
    assert statuses(session, machine) == ["pruning"] * 3 + ["verified"]
    names = [item["name"] for item in operation.params["vars"]["machine_prune"]]
    assert names == [row.proxmox_snapshot_id for row in of(session, machine)[:3]]
    assert pruning.prune(session, project) == []
    world.do(session, settings, kind="prune")
    assert statuses(session, machine) == ["pruned"] * 3 + ["verified"]
    assert not any(row.file_manifest for row in of(session, machine)[:3])
    assert operations.pending(session, machine.uuid) == []


def test_a_preview_changes_nothing(session, project, machine):
    pruning.plan(session, project)
    assert statuses(session, machine) == ["verified"] * 4


def test_what_is_recent_stays(session, project, machine):
    for row in of(session, machine):
        row.created_at = datetime.now(UTC)
    assert pruning.prune(session, project) == []


def test_a_milestone_a_branch_and_a_policy_with_parents_stay(session, settings, project, machine):
    first, second, third, _ = of(session, machine)
    first.milestone = True
    worked(session, settings, project, 0, checkpoint=second)
    reasons = {one.checkpoint.uuid: one.reason for one in pruning.plan(session, project)}
    assert [reasons[row.uuid] for row in (first, second, third)] == ["milestone", "branched from", None]
    policies.change(project, kept={"parents": True})
    assert pruning.prune(session, project) == []


def test_nothing_starts_from_what_is_being_removed(session, settings, project, machine):
    first = of(session, machine)[0]
    pruning.prune(session, project)
    with pytest.raises(checkpoints.CheckpointNotReady, match="pruning"):
        machines.spawn(session, settings, project=project, prompt="x", checkpoint=first)


def test_what_a_branch_stood_on_goes_after_the_branch(session, settings, project, machine):
    first = of(session, machine)[0]
    branch = worked(session, settings, project, 0, checkpoint=first)
    with pytest.raises(pruning.NotDeletable, match="branched from"):
        pruning.delete(session, first)
    # It ends without ever having enrolled: nothing is left of it.
    branch.enrolled_at = None
    machines.terminate(session, settings, branch)
    while world.do(session, settings):
        pass
    operation = pruning.delete(session, first)
    assert [item["carrier"] for item in operation.params["vars"]["machine_prune"]] == ["template", "snapshot"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda row: setattr(row, "milestone", True), "milestone"),
        (lambda row: setattr(row, "verification_status", "pending"), "is pending"),
        (lambda row: setattr(row, "verification_status", "pruned"), "is pruned"),
    ],
)
def test_a_checkpoint_that_is_kept_is_not_deleted(session, machine, change, why):
    row = of(session, machine)[1]
    change(row)
    session.flush()
    with pytest.raises(pruning.NotDeletable, match=why):
        pruning.delete(session, row)


def test_what_is_in_use_is_not_deleted(session, project, machine):
    with pytest.raises(pruning.NotDeletable, match="living machine"):
        pruning.delete(session, of(session, machine)[-1])
    with pytest.raises(pruning.NotDeletable, match="genesis|current|branched"):
        pruning.delete(session, session.get_one(Checkpoint, machine.parent_checkpoint_uuid))
    checkpoints.promote(session, of(session, machine)[0], lambda: 12345)
    with pytest.raises(pruning.NotDeletable, match="something is being done"):
        pruning.delete(session, of(session, machine)[0])


def test_what_could_not_be_removed_is_verified_again_and_looked_for(session, settings, project, machine):
    pruning.prune(session, project)
    (operation,) = world.claim(session, kinds=("prune",))
    done = [{**item, "exists": False} for item in operation.params["vars"]["machine_prune"][:1]]
    records.end(
        session, settings, operation.uuid, result={"checkpoints": done}, error="VM is locked", error_class="TaskFailed"
    )
    assert statuses(session, machine) == ["pruned", "verified", "verified", "verified"]
    (look,) = world.claim(session, kinds=("verify",))
    assert look.params["vars"] == {}


def test_a_promoted_one_of_which_only_the_template_could_be_removed_is_looked_for(session, settings, project, machine):
    first = of(session, machine)[0]
    checkpoints.promote(session, first, lambda: 12345)
    world.do(session, settings, kind="promote")
    operation = pruning.delete(session, first)
    world.claim(session, kinds=("prune",))
    done = [{**operation.params["vars"]["machine_prune"][0], "exists": False}]
    records.end(session, settings, operation.uuid, result={"checkpoints": done}, error="no", error_class="X")
    assert first.verification_status == "verified"
    world.do(session, settings, kind="verify", vms=[
        {"vm_id": 9000, "template": True, "snapshots": []},
        {"vm_id": machine.vm_id, "template": False,
         "snapshots": [{"name": row.proxmox_snapshot_id} for row in of(session, machine)]},
    ])  # fmt: skip
    assert (first.verification_status, first.template_vm_id) == ("verified", None)
    assert session.get_one(VmMeter, 12345).state == "ended", "what is gone costs nothing"


def test_a_vm_on_which_nothing_stands_goes_too(session, settings, project, machine):
    end(session, settings, machine)
    other = worked(session, settings, project, 0)
    end(session, settings, other, carrier="template")
    for row in of(session, machine):
        row.created_at = datetime.now(UTC) - timedelta(days=400)
    pruning.prune(session, project)
    world.do(session, settings, kind="prune")
    assert set(statuses(session, machine)) == {"pruned"}
    (removal,) = operations.pending(session, machine.uuid)
    assert (removal.kind, removal.params["vars"]["machine_prune_vm"]) == ("prune", True)
    assert session.get_one(VmMeter, machine.vm_id).state == "stored"
    world.do(session, settings, kind="prune")
    assert operations.pending(session, machine.uuid) == []
    assert session.get_one(VmMeter, machine.vm_id).state == "ended"


def test_many_are_removed_some_at_a_time(session, settings, project):
    machine = worked(session, settings, project, pruning.BATCH + 2)
    first, second = pruning.prune(session, project)
    assert [len(one.params["checkpoints"]) for one in (first, second)] == [pruning.BATCH, 1]
    assert not any(one.params["vars"]["machine_prune_vm"] for one in (first, second))
    assert world.claim(session) == [first]
    assert machine.status == "working"


def test_the_newest_final_of_a_project_is_what_the_next_machine_starts_from(session, settings, project, machine):
    end(session, settings, machine)
    final = session.get_one(Project, project.uuid).current_checkpoint_uuid
    reasons = {one.checkpoint.uuid: one.reason for one in pruning.plan(session, project)}
    assert reasons[final] == "current"
