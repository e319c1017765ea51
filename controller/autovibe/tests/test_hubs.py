"""The hub's own VM: adopted with proof, checkpointed each day, and left alone by all that acts on machines."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from autovibe import (
    agents,
    allocations,
    budgets,
    checkpoints,
    db,
    doctor,
    enforcement,
    errors,
    hubs,
    identity,
    machine_vms,
    machines,
    metering,
    operations,
    pools,
    projects,
    pruning,
    readings,
    verification,
)
from autovibe.models import Checkpoint, Machine, MachineEvent, Operation, Project, Usage, VmMeter
from autovibe.scheduler import Scheduler
from autovibe.tests import world
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


@pytest.fixture
def session(settings):
    settings.hub_smbios_uuid = uuid4()
    with db.session_scope(settings) as open_session:
        yield open_session


@pytest.fixture
def hub(session, settings):
    return world.hub(session, settings)


def made(session, settings, **asked):
    """A checkpoint of the hub that is there."""
    row, _ = hubs.checkpoint(session, settings, **asked)
    world.do(session, settings, kind="hub_checkpoint")
    return row


def hub_checkpoints(session):
    return session.scalars(select(Checkpoint).where(Checkpoint.checkpoint_type == "hub_daily")).all()


# Adoption


def test_an_adopted_vm_is_a_machine_of_a_project_of_its_own(session, settings):
    operation = hubs.adopt(session, settings, 120)
    assert hubs.find(session) is None
    variables = operation.params["vars"]
    assert UUID(variables["hub_smbios_uuid"]) == settings.hub_smbios_uuid
    assert variables["machine_tags"] == ["type-hub"]
    world.do(session, settings, kind="adopt")
    hub = hubs.find(session)
    assert (hub.machine_type, hub.status, hub.vm_id, hub.node, hub.name) == ("hub", "active", 120, "pve2", "hub")
    assert session.get_one(Project, hub.project_uuid).name == "hub"
    assert (operation.machine_uuid, operation.status) == (hub.uuid, "succeeded")
    assert hub in machines.listed(session)


def test_adopting_again_changes_nothing_and_another_vm_moves_the_hub(session, settings, hub):
    first = hub.uuid
    assert world.hub(session, settings).uuid == first
    settings.hub_smbios_uuid = uuid4()
    moved = world.hub(session, settings, vm_id=121)
    assert (moved.uuid, moved.vm_id) == (first, 121)
    assert moved.metadata_["smbios_uuid"] == str(settings.hub_smbios_uuid)
    states = dict(session.execute(select(VmMeter.vm_id, VmMeter.state)).all())
    assert states == {120: "ended", 121: "stored"}


def test_a_hub_that_comes_back_to_its_first_vm_is_accounted_there_again(session, settings, hub):
    for vm_id in (121, 120):
        settings.hub_smbios_uuid = uuid4()
        world.hub(session, settings, vm_id=vm_id)
    states = dict(session.execute(select(VmMeter.vm_id, VmMeter.state)).all())
    assert states == {120: "stored", 121: "ended"}
    meter = metering.of_vm(session, 120)
    assert datetime.now(UTC) - meter.metered_to < timedelta(minutes=5), "what lay between is not billed"
    later = readings.Seen(120, hub.uuid, "running", timedelta(days=1), 4, 8192, 32 << 10, 0)
    at = meter.metered_to + timedelta(hours=1)
    assert metering.take(session, settings, 120, readings.Reading(at, {120: later}))
    assert set(session.scalars(select(Usage.resource_type))) == {"storage"}


def test_a_hub_whose_vm_id_is_in_the_range_keeps_it(session, settings):
    """Neither the id that it has nor one that it has left is given to a machine."""
    first = settings.vm_id_first
    for vm_id in (first, first + 1):
        settings.hub_smbios_uuid = uuid4()
        world.hub(session, settings, vm_id=vm_id)
    world.template(session)
    project = world.project(session)
    made = [machines.spawn(session, settings, project=project, prompt="x").vm_id for _ in range(2)]
    assert made == [first + 2, first + 3]


def test_an_adoption_that_fails_leaves_nothing(session, settings):
    hubs.adopt(session, settings, 120)
    (operation,) = world.do(session, settings, error="VM 120 has another SMBIOS uuid", error_class="IdentityError")
    assert (operation.status, operation.machine_uuid) == ("failed", None)
    assert hubs.find(session) is None
    assert projects.all_of(session) == []


def test_one_question_is_one_operation(session, settings):
    assert hubs.adopt(session, settings, 120).uuid == hubs.adopt(session, settings, 120).uuid
    assert hubs.adopt(session, settings, 121).uuid != hubs.adopt(session, settings, 120).uuid


def test_a_machines_vm_is_not_the_hub(session, settings):
    world.template(session)
    machine = machines.spawn(session, settings, project=world.project(session), prompt="x")
    with pytest.raises(errors.Conflict, match=f"is that of machine {machine.name}"):
        hubs.adopt(session, settings, machine.vm_id)


def test_the_project_is_the_one_that_is_named(session, settings):
    mine = world.project(session, name="infrastructure")
    world.template(session)
    machines.spawn(session, settings, project=mine, prompt="x", name="hub")
    hub = world.hub(session, settings, project="infrastructure")
    assert hub.project_uuid == mine.uuid
    assert hub.name == f"hub-{mine.uuid.hex[:8]}"
    with pytest.raises(errors.Conflict, match="belongs to project infrastructure already"):
        hubs.adopt(session, settings, 120, project="other")
    with pytest.raises(errors.Invalid, match="needs a name"):
        hubs.adopt(session, settings, 120, project=" ")


@pytest.mark.parametrize(
    ("reads", "says"),
    [
        (PermissionError(), "its user may not read the SMBIOS uuid.*AUTOVIBE_HUB_SMBIOS_UUID"),
        (FileNotFoundError(), "says no uuid.*Only a hub in a VM"),
        ("Not Settable\n", "says no uuid"),
    ],
)
def test_what_proves_nothing_is_refused(session, settings, tmp_path, monkeypatch, reads, says):
    class File:
        def read_text(self, encoding):
            if isinstance(reads, str):
                return reads
            raise reads

    settings.hub_smbios_uuid = None
    monkeypatch.setattr(hubs, "PRODUCT_UUID", File())
    with pytest.raises(hubs.Unproven) as refused:
        hubs.adopt(session, settings, 120)
    assert refused.match(says.split(".*")[0])
    assert says.split(".*")[-1] in f"{refused.value.message} {refused.value.hint}"
    assert refused.value.http_status == 409
    assert session.scalar(select(func.count()).select_from(Operation)) == 0


def test_root_reads_the_uuid_of_its_computer(settings, tmp_path, monkeypatch):
    settings.hub_smbios_uuid = None
    file = tmp_path / "product_uuid"
    file.write_text("4C4C4544-0042-3510-8052-B4C04F443232\n")
    monkeypatch.setattr(hubs, "PRODUCT_UUID", file)
    assert str(hubs.own_uuid(settings)) == "4c4c4544-0042-3510-8052-b4c04f443232"


# Checkpoints


def test_a_checkpoint_is_a_snapshot_without_ram(session, settings, hub):
    row, operation = hubs.checkpoint(session, settings, label="before the upgrade")
    variables = operation.params["vars"]
    assert variables["machine_checkpoint"] | {"ram": False, "freeze": True} == variables["machine_checkpoint"]
    assert (variables["hub_smbios_uuid"], variables["machine_vm_id"]) == (str(settings.hub_smbios_uuid), 120)
    assert hub.status == "active"
    world.do(session, settings, kind="hub_checkpoint")
    session.refresh(row)
    assert (row.checkpoint_type, row.verification_status, row.description) == (
        "manual",
        "verified",
        "before the upgrade",
    )
    assert hub.last_checkpoint_uuid == row.uuid
    assert hub.status == "active"


def test_a_hub_that_is_not_adopted_or_has_moved_is_not_checkpointed(session, settings):
    with pytest.raises(hubs.NotAdopted):
        hubs.checkpoint(session, settings)
    world.hub(session, settings)
    settings.hub_smbios_uuid = uuid4()
    with pytest.raises(hubs.Unproven, match="does not run in VM 120 any more"):
        hubs.checkpoint(session, settings)


def test_a_checkpoint_that_failed_says_so_and_the_hub_goes_on(session, settings, hub):
    row, _ = hubs.checkpoint(session, settings)
    world.do(session, settings, kind="hub_checkpoint", error="no space left")
    assert session.get_one(Checkpoint, row.uuid, populate_existing=True).verification_status == "failed"
    lines = session.scalars(select(MachineEvent.text).where(MachineEvent.machine_uuid == hub.uuid)).all()
    assert "The checkpoint failed: no space left" in lines
    assert hub.status == "active"


def test_one_that_is_cancelled_before_it_begins_has_failed(session, settings, hub):
    row, _ = hubs.checkpoint(session, settings)
    (cancelled,) = operations.cancel_queued(session, hub.uuid, "A person said so")
    checkpoints.cancel(session, cancelled)
    assert row.verification_status == "failed"


# Each day


def asked_at(session, settings, now):
    found = hubs.daily(session, settings, now)
    if found is not None:
        world.do(session, settings, kind="hub_checkpoint")
        session.get_one(Checkpoint, found.checkpoint_uuid).created_at = now
        session.flush()
    return found is not None


def test_it_is_made_once_a_day_and_once_when_days_were_missed(session, settings, hub):
    hub.spawned_at = NOON - timedelta(days=30)
    session.flush()
    assert asked_at(session, settings, NOON)
    assert not asked_at(session, settings, NOON + timedelta(hours=14, minutes=59))
    assert asked_at(session, settings, NOON + timedelta(hours=15))
    # Nobody has run for three weeks: one is made up, at once.
    late = NOON + timedelta(days=22, hours=-10)
    assert asked_at(session, settings, late)
    assert not asked_at(session, settings, late + timedelta(minutes=30))
    assert asked_at(session, settings, late + timedelta(hours=1))
    assert {row.description for row in hub_checkpoints(session)} == {None}


def test_the_hour_is_that_of_the_projects_time_zone(session, settings, hub):
    hub.spawned_at = NOON - timedelta(days=30)
    session.get_one(Project, hub.project_uuid).time_zone = "America/Toronto"
    session.flush()
    eight = NOON.replace(hour=8)  # three in the morning, in Toronto
    assert asked_at(session, settings, eight - timedelta(minutes=1))
    assert asked_at(session, settings, eight)


def test_the_first_one_is_made_at_the_hour_after_the_adoption(session, settings, hub):
    hub.spawned_at = NOON
    session.flush()
    assert not asked_at(session, settings, NOON + timedelta(minutes=5))
    assert asked_at(session, settings, NOON + timedelta(hours=15, minutes=1))


def test_none_is_made_before_the_adoption_nor_when_it_is_switched_off(session, settings):
    assert hubs.daily(session, settings, NOON) is None
    world.hub(session, settings).spawned_at = NOON - timedelta(days=30)
    session.flush()
    settings.hub_checkpoint_hour = "never"
    assert hubs.daily(session, settings, NOON) is None


def fails_at(session, settings, now):
    """Today's checkpoint is asked for and fails at once; its operation, None if it is not asked for."""
    operation = hubs.daily(session, settings, now)
    if operation is None:
        return None
    world.do(session, settings, kind="hub_checkpoint", error="no space left")
    operation.finished_at = now
    tries = select(func.count()).where(Operation.checkpoint_uuid == operation.checkpoint_uuid)
    if session.scalar(tries) == 1:
        session.get_one(Checkpoint, operation.checkpoint_uuid).created_at = now
    session.flush()
    return operation


def test_one_that_failed_is_made_again_under_its_name_and_never_two_at_once(session, settings, hub):
    hub.spawned_at = NOON - timedelta(days=30)
    session.flush()
    first = fails_at(session, settings, NOON)
    assert hubs.daily(session, settings, NOON + timedelta(minutes=59)) is None
    again = hubs.daily(session, settings, NOON + timedelta(minutes=61))
    assert hubs.daily(session, settings, NOON + timedelta(days=3)) is None, "it still waits"
    assert again.checkpoint_uuid == first.checkpoint_uuid
    assert again.params == first.params, "the same snapshot: what the first try has left is found"
    world.do(session, settings, kind="hub_checkpoint")
    (row,) = hub_checkpoints(session)
    assert row.verification_status == "verified"
    assert hubs.daily(session, settings, NOON + timedelta(hours=9)) is None


def test_one_that_fails_all_day_is_tried_three_times_with_longer_pauses(session, settings, hub):
    hub.spawned_at = NOON - timedelta(days=30)
    session.flush()
    three = NOON.replace(hour=3)
    moments = [three + timedelta(minutes=minutes) for minutes in range(0, 24 * 60, 10)]
    hours = [(at - three) / timedelta(hours=1) for at in moments if fails_at(session, settings, at)]
    assert hours == [0, 1, 3]
    assert [row.verification_status for row in hub_checkpoints(session)] == ["failed"]
    assert fails_at(session, settings, three + timedelta(days=1)), "the next day's is another"
    assert len(hub_checkpoints(session)) == 2


def test_a_hub_that_has_moved_says_so_as_its_job(session, settings, hub):
    hub.spawned_at = NOON - timedelta(days=30)
    session.flush()
    settings.hub_smbios_uuid = uuid4()
    with pytest.raises(hubs.Unproven):
        hubs.daily(session, settings, NOON)


def test_the_days_end_with_summer_time(session, settings, hub):
    """The clock shows the hour twice, or not at all: it is one checkpoint a day all the same."""
    zone = session.get_one(Project, hub.project_uuid)
    zone.time_zone, settings.hub_checkpoint_hour = "Europe/Berlin", 2
    hub.spawned_at = datetime(2026, 1, 1, tzinfo=UTC)
    session.flush()
    for month, day in ((3, 28), (10, 24)):
        at, count = datetime(2026, month, day, 12, tzinfo=UTC), 0
        for _ in range(3 * 24):
            count += asked_at(session, settings, at)
            at += timedelta(hours=1)
        assert count == 1 + 3, "the one that was missed, and three nights"


# Retention


def test_daily_checkpoints_are_thinned_out_as_others_are(session, settings, hub):
    rows = [made(session, settings, checkpoint_type="hub_daily") for _ in range(50)]
    now = datetime.now(UTC)
    for age, row in enumerate(reversed(rows)):
        row.created_at = now - timedelta(days=age, seconds=1)
    session.flush()
    project = session.get_one(Project, hub.project_uuid)
    reasons = {one.checkpoint.uuid: one.reason for one in pruning.plan(session, project)}
    assert reasons[rows[-1].uuid].startswith("in use")
    assert {reasons[row.uuid] for row in rows[-7:-1]} == {"recent"}
    assert {reasons[row.uuid] for row in rows[-30:-7]} == {"daily"}
    assert {reasons[row.uuid] for row in rows[:-30]} == {"weekly", None}
    (operation,) = pruning.prune(session, project)
    assert operation.params["vars"]["proxmox_node"] == ""
    world.do(session, settings, kind="prune")
    assert operations.pending(session, hub.uuid) == [], "its VM is not removed"


# Left alone


@pytest.mark.parametrize("what", ["terminate", "pause", "resume", "checkpoint"])
def test_a_person_cannot_stop_it(session, settings, hub, what):
    with pytest.raises(machine_vms.HubMachine) as refused:
        getattr(machines, what)(session, settings, hub)
    assert refused.value.http_status == 409
    assert "autovibe hub checkpoint" in refused.value.hint
    assert operations.pending(session, hub.uuid) == []


def test_nothing_starts_from_its_checkpoints(session, settings, hub):
    row, project = made(session, settings), session.get_one(Project, hub.project_uuid)
    world.project(session, name="other")
    asks = [
        lambda: machines.restore(session, settings, hub, row),
        lambda: verification.ask_trial(session, settings, row),
        lambda: checkpoints.promote(session, row, lambda: 10001),
        lambda: checkpoints.clonable(session, row, lambda: 10001),
    ]
    for ask in asks:
        with pytest.raises(errors.Conflict, match=r"hub"):
            ask()
    projects.change(session, project, description="with money")
    allocations.create(session, project.uuid, 5)
    with pytest.raises(checkpoints.HubCheckpoint):
        machines.spawn(session, settings, project=project, prompt="x", checkpoint=row)
    assert operations.pending(session, hub.uuid) == []


def test_it_does_not_fall_silent(session, settings, hub):
    """No heartbeat for a month: neither started again nor ended."""
    hub.spawned_at = datetime.now(UTC) - timedelta(days=30)
    session.flush()
    scheduler = Scheduler(settings)
    scheduler.began = datetime.now(UTC) - timedelta(days=30)
    scheduler.end_silent(session)
    scheduler.end_again(session)
    assert operations.pending(session, hub.uuid) == []
    assert (hub.status, hub.generation, hub.stop_requested_at) == ("active", 1, None)


def test_no_budget_stops_it(settings):
    """Its project has a budget that is used up, and a share of a pool that it never wants."""
    settings.hub_smbios_uuid = uuid4()
    with db.session_scope(settings) as session:
        project = world.project(session, name="infrastructure", cad="1")
        hub = world.hub(session, settings, project="infrastructure")
        world.project(session, name="other", cad="5")
        pools.set_pool(session, period="daily", amount=Decimal(1))
        pools.share_all(session)
        everything = budgets.available(session, project.uuid)
        ends = datetime.now(UTC) + timedelta(hours=1)
        held = {"amount_cad": everything, "holder": "x", "purpose": "call", "expires_at": ends}
        budgets.reserve(session, project_uuid=project.uuid, **held)
    for _ in range(2):
        enforcement.run(settings)
    enforcement.stop(settings, hub.uuid, "there is no money")
    with db.session_scope(settings) as session:
        assert budgets.available(session, project.uuid) == 0
        assert operations.pending(session, hub.uuid) == []
        assert pools.preemption_order(session) == []


def test_only_its_storage_is_accounted(session, settings, hub):
    """Whatever Proxmox says of the running VM: its cores and memory are nobody's."""
    meter = metering.of_vm(session, 120)
    assert (meter.state, meter.disk_mib, meter.cores) == ("stored", 32 << 10, 0)
    meter.metered_to -= timedelta(hours=2)
    session.flush()
    seen = readings.Seen(120, hub.uuid, "running", timedelta(days=1), 4, 8192, 32 << 10, 10**9)
    metering.take(session, settings, 120, readings.Reading(datetime.now(UTC), {120: seen}))
    assert metering.of_vm(session, 120).state == "stored"
    assert set(session.scalars(select(Usage.resource_type))) == {"storage"}
    metering.take(session, settings, 120, readings.Reading(datetime.now(UTC), {}))
    assert (hub.status, metering.of_vm(session, 120).state) == ("active", "stored"), "a VM that is not listed is no end"


def test_no_agent_can_be_it(session, settings, hub):
    token = identity.enrol_token(settings, hub.uuid, hub.generation)
    asked = agents.Enrolment(machine=hub.uuid, generation=hub.generation, token=token, nonce="n")
    with pytest.raises(agents.Superseded):
        agents.enrol(session, settings, asked)


@pytest.mark.parametrize(
    "kind", [kind for kind in operations.KINDS if kind not in ("hub_checkpoint", "prune", "verify")]
)
def test_the_database_itself_takes_no_other_operation(session, settings, hub, kind):
    with pytest.raises(IntegrityError, match="a hub gets no"), session.begin_nested():
        operations.enqueue(session, kind, machine_uuid=hub.uuid, project_uuid=hub.project_uuid)


@pytest.mark.parametrize("values", [{"status": "terminated"}, {"status": "paused"}, {"stop_requested_at": NOON}])
def test_the_database_itself_keeps_it_active(session, hub, values):
    with pytest.raises(IntegrityError, match="hub_is_active"), session.begin_nested():
        session.execute(update(Machine).where(Machine.uuid == hub.uuid).values(**values))


def test_its_project_is_not_archived(session, hub):
    with pytest.raises(projects.ProjectBusy):
        projects.change(session, session.get_one(Project, hub.project_uuid), status="archived")


# How it is


def test_a_hub_whose_last_checkpoint_is_old_is_not_well(session, settings, hub):
    assert hubs.view(session)["late"] is False
    hub.spawned_at -= timedelta(hours=49)
    session.flush()
    assert hubs.view(session) | {"checkpoint": None, "late": True} == hubs.view(session)
    row = made(session, settings)
    assert hubs.view(session) | {"checkpoint": row.uuid, "late": False} == hubs.view(session)
    row.created_at -= timedelta(hours=49)
    session.flush()
    assert hubs.view(session)["late"] is True


def test_doctor_says_so(settings):
    assert doctor._own_vm(settings).message.startswith("not adopted")
    with db.session_scope(settings) as session:
        world.hub(session, settings)
        made(session, settings)
    assert doctor._own_vm(settings).state == "ok"
    with db.session_scope(settings) as session:
        session.execute(update(Checkpoint).values(created_at=datetime.now(UTC) - timedelta(hours=49)))
    found = doctor._own_vm(settings)
    assert (found.state, "one a day is to be made" in found.message) == ("warning", True)


def test_whether_the_filesystems_were_frozen_is_kept(session, settings, hub):
    row, operation = hubs.checkpoint(session, settings)
    result = world.made(operation)
    result["checkpoint"]["frozen"] = False
    checkpoints.verified(session, row, result["checkpoint"])
    assert hubs.view(session)["frozen"] is False
