"""A machine's life in the database: what is asked for, and what follows when an operation ends."""

import ipaddress
from decimal import Decimal
from uuid import uuid4

import pytest
import sqlalchemy as sa
from autovibe import (
    checkpoints,
    db,
    errors,
    jsonform,
    lookup,
    machine_vms,
    machines,
    operations,
    slots,
    templates,
    views,
)
from autovibe.models import Machine, MachineSlot, Project
from autovibe.tests import world


@pytest.fixture
def session(settings):
    with db.session_scope(settings) as session:
        world.template(session)
        yield session


@pytest.fixture
def project(session):
    return world.project(session)


@pytest.fixture
def spawn(session, settings, project):
    def ask(prompt="work", **asked):
        return machines.spawn(session, settings, project=asked.pop("project", project), prompt=prompt, **asked)

    return ask


@pytest.fixture
def working(session, settings, spawn):
    """A machine whose agent works."""
    machine = spawn()
    world.do(session, settings)
    machine.status, machine.enrolled_at = "working", machine.spawned_at
    return machine


def test_a_spawn_has_a_vm_id_a_slot_and_an_operation(session, settings, spawn, project):
    machine = spawn(files=[{"path": "a", "content_base64": "", "mode": "0644"}])
    (operation,) = operations.pending(session, machine.uuid)
    variables = operation.params["vars"]
    assert machine.status == "spawning"
    assert variables["machine_source"] == {"vm_id": 9000}
    assert variables["machine_vm_id"] == machine.vm_id >= settings.vm_id_first
    assert ipaddress.ip_interface(variables["machine_ip"]).ip in settings.machine_network
    assert variables["machine_mac"].startswith("02:")
    assert project.initial_checkpoint_uuid == machine.parent_checkpoint_uuid
    assert checkpoints.find(session, machine.parent_checkpoint_uuid).checkpoint_type == "genesis"


def test_a_chain_of_clones_is_flattened_at_its_limit(session, settings, spawn):
    settings.clone_depth_most = 2
    full, checkpoint = [], None
    for _ in range(5):
        machine = spawn(checkpoint=checkpoint)
        (operation,) = operations.pending(session, machine.uuid)
        full.append(operation.params["vars"]["machine_full"])
        world.do(session, settings)
        machine.enrolled_at = machine.spawned_at
        machines.terminate(session, settings, machine)
        world.do(session, settings, carrier="template")
        checkpoint = checkpoints.find(session, machine.last_checkpoint_uuid)
    assert full == [False, False, True, False, False]


def test_what_a_snapshot_was_promoted_to_stands_on_nothing(session, settings, spawn, working):
    settings.clone_depth_most = 1
    made, _ = machines.checkpoint(session, settings, working)
    world.do(session, settings)
    branch = spawn(checkpoint=made)
    assert branch.metadata_["clone_depth"] == 1
    assert not operations.pending(session, branch.uuid)[0].params["vars"]["machine_full"]


def test_the_genesis_checkpoint_is_made_once(spawn):
    assert spawn().parent_checkpoint_uuid == spawn().parent_checkpoint_uuid


def test_no_two_machines_share_a_vm_id_or_a_slot(session, spawn):
    made = [spawn() for _ in range(5)]
    assert len({machine.vm_id for machine in made}) == 5
    assert len({machine.network_slot for machine in made}) == 5


def test_a_vm_id_below_the_settings_first_is_skipped(session, settings):
    settings.vm_id_first = 50_000
    assert [machine_vms.next_vm_id(session, settings) for _ in range(3)] == [50_000, 50_001, 50_002]


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"prompt": " \n"}, errors.Invalid),
        ({"machine_type": "hal"}, errors.Invalid),
        ({"machine_type": "command", "prompt": ""}, errors.Invalid),
        ({"command": ["true"]}, errors.Invalid),
        ({"template": "nope"}, templates.NoTemplate),
        ({"name": "Not A Name"}, errors.Invalid),
    ],
)
def test_a_bad_ask_is_refused(spawn, asked, error):
    with pytest.raises(error):
        spawn(**asked)


def test_a_budget_that_is_too_small_is_refused(session, spawn):
    with pytest.raises(machines.BudgetTooSmall, match=r"has CAD 0\.005 left"):
        spawn(project=world.project(session, "poor", "0.005"))
    with pytest.raises(machines.BudgetTooSmall, match="has CAD 0 left"):
        spawn(project=world.project(session, "none", "0"))


def test_a_paused_project_gets_no_machine(session, spawn, project):
    project.status = "paused"
    with pytest.raises(machines.ProjectNotActive):
        spawn()


def test_a_failed_spawn_ends_the_machine_and_cleans_up(session, settings, spawn):
    machine = spawn()
    world.do(session, settings, error="no disk space")
    assert (machine.status, machine.outcome) == ("terminated", "failed")
    assert "no disk space" in machine.error_message
    (cleaning,) = operations.pending(session, machine.uuid)
    assert cleaning.params["vars"]["machine_final"] == {"kind": "none"}
    world.do(session, settings)
    assert session.query(MachineSlot).filter_by(machine_uuid=machine.uuid).count() == 0
    assert machine.outcome == "failed"


def test_a_vm_id_of_somebody_elses_vm_is_left_for_the_next_one(session, settings, spawn):
    machine = spawn()
    taken = machine.vm_id
    world.do(session, settings, error="VM is not ours", error_class="IdentityError")
    assert machine.status == "spawning"
    assert machine.vm_id > taken
    (again,) = operations.pending(session, machine.uuid)
    assert again.params["vars"]["machine_vm_id"] == machine.vm_id
    world.do(session, settings)
    assert operations.pending(session, machine.uuid) == []


def test_a_checkpoint_is_verified_when_its_snapshot_stands(session, settings, working):
    made, operation = machines.checkpoint(session, settings, working, description="before")
    assert operation.params["vars"]["machine_checkpoint"]["name"] == f"av-{made.uuid.hex}"
    world.do(session, settings)
    assert (made.verification_status, made.carrier, made.vm_id) == ("verified", "snapshot", working.vm_id)
    assert (working.last_checkpoint_uuid, working.checkpoint_count) == (made.uuid, 1)
    assert made.parent_checkpoint_uuid == working.parent_checkpoint_uuid


def test_a_failed_checkpoint_leaves_the_machine_working(session, settings, working):
    made, _ = machines.checkpoint(session, settings, working)
    world.do(session, settings, error="freeze timed out")
    assert made.verification_status == "failed"
    assert (working.status, working.checkpoint_count) == ("working", 0)


def test_the_end_keeps_the_vm_as_the_final_checkpoint(session, settings, working, project):
    machines.terminate(session, settings, working, outcome="succeeded", manifest={"files": [], "truncated": False})
    world.do(session, settings, carrier="template")
    assert (working.status, working.outcome) == ("terminated", "succeeded")
    final = checkpoints.find(session, project.current_checkpoint_uuid)
    assert (final.checkpoint_type, final.carrier, final.verification_status) == ("final", "template", "verified")
    assert operations.pending(session, working.uuid) == []


def test_a_machine_that_never_enrolled_is_destroyed_unless_a_checkpoint_stands_on_it(session, settings, spawn):
    bare, kept = spawn(), spawn()
    world.do(session, settings)
    machines.checkpoint(session, settings, kept)
    world.do(session, settings)
    kinds = [machines.terminate(session, settings, one).params["vars"]["machine_final"]["kind"] for one in (bare, kept)]
    assert kinds == ["none", "auto"]


def test_asking_for_the_end_twice_is_asking_once(session, settings, working):
    first = machines.terminate(session, settings, working, outcome="succeeded")
    assert machines.terminate(session, settings, working) is first
    world.do(session, settings)
    with pytest.raises(machines.MachineEnded):
        machines.terminate(session, settings, working)
    with pytest.raises(machines.MachineEnded):
        machines.checkpoint(session, settings, working)


def test_the_end_cancels_what_has_not_begun(session, settings, working):
    made, operation = machines.checkpoint(session, settings, working)
    machines.terminate(session, settings, working)
    assert operation.status == "failed"
    assert made.verification_status == "failed"
    assert [one.kind for one in operations.pending(session, working.uuid)] == ["terminate"]


def test_an_ended_machines_slot_is_free_again(session, settings, working, spawn):
    machines.terminate(session, settings, working)
    world.do(session, settings)
    assert spawn().network_slot == working.network_slot


def test_the_network_can_be_full(session, settings, spawn):
    settings.machine_network = ipaddress.IPv4Network("10.0.0.0/28")
    settings.first_slot = 13
    spawn()
    spawn()
    with pytest.raises(slots.NetworkFull):
        spawn()


def test_a_branch_from_a_snapshot_waits_for_its_promotion(session, settings, working, spawn):
    made, _ = machines.checkpoint(session, settings, working)
    world.do(session, settings)
    first, second = spawn(checkpoint=made), spawn(checkpoint=made)
    promotions = [one for one in operations.pending(session, working.uuid) if one.kind == "promote"]
    assert len(promotions) == 1
    spawns = [operations.pending(session, machine.uuid)[0] for machine in (first, second)]
    assert {one.depends_on_uuid for one in spawns} == {promotions[0].uuid}
    world.do(session, settings, kind="promote")
    assert made.template_vm_id == promotions[0].params["vars"]["machine_promote_vm_id"]
    assert {one.params["vars"]["machine_source"]["vm_id"] for one in spawns} == {made.template_vm_id}
    third = spawn(checkpoint=made)
    (direct,) = operations.pending(session, third.uuid)
    assert direct.depends_on_uuid is None
    assert direct.params["vars"]["machine_source"] == {"vm_id": made.template_vm_id}


def test_a_final_snapshot_is_promoted_by_itself(session, settings, working):
    machines.terminate(session, settings, working)
    world.do(session, settings, carrier="snapshot")
    assert [one.kind for one in operations.pending(session, working.uuid)] == ["promote"]


def test_a_checkpoint_that_is_not_verified_has_no_children(session, settings, working, spawn):
    made, _ = machines.checkpoint(session, settings, working)
    with pytest.raises(checkpoints.CheckpointNotReady):
        spawn(checkpoint=made)


def test_a_restore_revokes_what_the_machine_had(session, settings, working):
    made, _ = machines.checkpoint(session, settings, working)
    world.do(session, settings)
    before = working.generation
    operation = machines.restore(session, settings, working, made)
    assert working.generation == before + 1
    assert operation.params["vars"]["machine_checkpoint"] == {"name": made.proxmox_snapshot_id}
    world.do(session, settings)
    assert working.status == "spawning"


def test_only_its_own_snapshots_can_be_restored(session, settings, working):
    genesis = checkpoints.find(session, working.parent_checkpoint_uuid)
    with pytest.raises(errors.Invalid, match="not a snapshot"):
        machines.restore(session, settings, working, genesis)


def test_things_are_found_by_name_uuid_and_prefix(session, spawn, project):
    machine = spawn(name="builder")
    for text in ("builder", str(machine.uuid), str(machine.uuid)[:8], machine.uuid):
        assert machines.find(session, text) is machine
    assert lookup.find(session, Project, "demo", "project") is project
    with pytest.raises(errors.NotFound, match="no machine nobody"):
        machines.find(session, "nobody")


def test_a_name_in_two_projects_is_ambiguous(session, spawn, project):
    other = world.project(session, "other")
    spawn(name="builder")
    mine = spawn(name="builder", project=other)
    with pytest.raises(lookup.Ambiguous, match="names 2 machines"):
        machines.find(session, "builder")
    assert machines.find(session, "builder", other) is mine


def test_a_new_version_of_a_template_retires_the_old_one(session, spawn):
    world.template(session, vm_id=9001, inputs="two")
    assert {row.vm_id: row.status for row in templates.listed(session)} == {9000: "retired", 9001: "ready"}
    assert templates.ready(session, "autovibe-guest").vm_id == 9001
    first = spawn()
    assert checkpoints.find(session, first.parent_checkpoint_uuid).vm_id == 9001
    assert session.query(Machine).count() == 1


@pytest.mark.parametrize(
    ("name", "tag"), [("Demo", "project-demo"), ("My shop: v2!", "project-my-shop-v2"), ("a.b", "project-a.b")]
)
def test_a_vm_is_tagged_with_its_project_and_type(name, tag):
    assert machine_vms.tags(Project(name=name, uuid=uuid4()), "claude_code") == [tag, "type-claude_code"]


def test_a_project_whose_name_has_no_letter_for_a_tag_is_tagged_by_its_id():
    uuid = uuid4()
    assert machine_vms.tags(Project(name="项目", uuid=uuid), "command")[0] == f"project-{uuid.hex}"


def test_money_in_a_list_that_postgres_writes_is_text_as_in_any_other(session):
    column = sa.cast(sa.literal(Decimal("1.5")), sa.Numeric(24, 9))
    (written,) = session.execute(sa.select(views.as_json({"cad": column, "count": sa.literal(3)}))).one()
    (read,) = session.execute(sa.select(column)).one()
    assert written == jsonform.plain({"cad": read, "count": 3})
    assert written["cad"] == "1.500000000"
