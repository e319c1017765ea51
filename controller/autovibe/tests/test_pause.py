"""A machine whose money is gone is stopped while it still pays for it, and goes on from there."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import sqlalchemy as sa
from autovibe import (
    agents,
    alerts,
    allocations,
    budgets,
    checkpoints,
    db,
    enforcement,
    machine_vms,
    machines,
    metering,
    operations,
    pools,
    throttle,
)
from autovibe.ledger import UsageLine
from autovibe.models import Checkpoint, Machine, Operation, Project, VmMeter
from autovibe.scheduler import Scheduler
from autovibe.tests import world
from sqlalchemy.orm import Session

HOUR = timedelta(hours=1)
#: What a stopped machine has reserved: its disk, until it is read next.
DISK_HOUR = Decimal("0.000559905")


@pytest.fixture
def session(settings):
    """A session that a test commits itself, where others are to see what it did."""
    with Session(db.engine(settings), expire_on_commit=False) as session:
        world.template(session)
        yield session


@pytest.fixture
def project(session):
    return world.project(session, time_zone=world.morning())


@pytest.fixture
def working(session, settings, project):
    """A machine whose agent works, seen by every other transaction, too."""
    machine = machines.spawn(session, settings, project=project, prompt="work")
    world.do(session, settings)
    machine.status, machine.enrolled_at = "working", machine.spawned_at
    machine.last_heartbeat_at = machine.enrolled_generation = None
    session.commit()
    return machine


def spend(session, project, cad):
    budgets.charge(session, project_uuid=project.uuid, lines=[UsageLine("money", amount=cad, cost_cad=cad)])


def spend_all(session, project):
    spend(session, project, budgets.available(session, project.uuid))


def kinds(session, machine):
    return [one.kind for one in operations.pending(session, machine.uuid)]


def run(session, settings):
    """One turn of the enforcement, as the scheduler does it."""
    session.commit()
    enforcement.run(settings)
    session.expire_all()


def test_a_paused_machine_is_stopped_and_snapshotted_and_its_runtime_is_given_back(session, settings, working, project):
    operation = machines.pause(session, settings, working)
    assert machines.pause(session, settings, working) is operation
    assert operation.kind == "pause"
    world.do(session, settings)
    made = session.get_one(Checkpoint, operation.checkpoint_uuid)
    assert (working.status, working.pause_reason, made.verification_status) == ("paused", "person", "verified")
    assert (made.checkpoint_type, made.description) == ("automatic", "paused: person")
    assert session.get_one(VmMeter, working.vm_id).state == "stopped"
    assert allocations.get(session, project.uuid).reserved_amount == DISK_HOUR


def test_a_resumed_machine_has_a_new_identity_and_its_next_minutes_reserved(session, settings, working, project):
    machines.pause(session, settings, working)
    world.do(session, settings)
    before = working.generation
    operation = machines.resume(session, settings, working)
    assert machines.resume(session, settings, working) is operation
    assert operation.params == {"identity": True, "vars": machine_vms.variables(working)}
    assert (working.status, working.generation, working.pause_reason) == ("spawning", before + 1, None)
    assert allocations.get(session, project.uuid).reserved_amount > 0
    world.do(session, settings)
    assert session.get_one(VmMeter, working.vm_id).state == "running"


def test_what_was_asked_for_is_in_the_database_when_it_is_answered(session, settings, working):
    """Who shows the machine then reads it again: nothing of the change may be lost by that."""
    machines.pause(session, settings, working)
    session.refresh(working)
    assert (working.pause_reason, "available_when_paused_cad" in working.metadata_) == ("person", True)
    world.do(session, settings)
    before = working.generation
    machines.resume(session, settings, working)
    session.refresh(working)
    assert (working.status, working.generation, working.pause_reason) == ("spawning", before + 1, None)


def test_what_a_paused_machine_cannot_do(session, settings, working):
    with pytest.raises(machines.NotPaused, match="it is working"):
        machines.resume(session, settings, working)
    machines.pause(session, settings, working)
    world.do(session, settings)
    with pytest.raises(machines.MachinePaused):
        machines.pause(session, settings, working)
    with pytest.raises(machines.MachinePaused):
        machines.checkpoint(session, settings, working)
    snapshot = checkpoints.find(session, working.last_checkpoint_uuid)
    with pytest.raises(machines.MachinePaused):
        machines.restore(session, settings, working, snapshot)


def test_a_paused_machine_can_be_ended(session, settings, working):
    machines.pause(session, settings, working)
    world.do(session, settings)
    machines.terminate(session, settings, working)
    world.do(session, settings)
    assert (working.status, working.outcome) == ("terminated", "stopped")
    with pytest.raises(machines.NotPaused):
        machines.resume(session, settings, working)


def test_an_end_that_was_asked_for_wins_over_a_pause_that_has_not_begun(session, settings, working):
    asked = machines.pause(session, settings, working)
    machines.terminate(session, settings, working)
    assert asked.status == "failed"
    assert session.get_one(Checkpoint, asked.checkpoint_uuid).verification_status == "failed"
    with pytest.raises(machines.MachineEnded):
        machines.pause(session, settings, working)


def test_a_resume_that_fails_leaves_the_machine_paused_for_a_person(session, settings, working, project):
    machines.pause(session, settings, working, reason="budget")
    world.do(session, settings)
    machines.resume(session, settings, working)
    world.do(session, settings, error="no memory left on the node")
    assert (working.status, working.pause_reason) == ("paused", "circuit_breaker")
    assert allocations.get(session, project.uuid).reserved_amount == DISK_HOUR


def test_a_resume_without_money_is_refused(session, settings, working, project):
    machines.pause(session, settings, working)
    world.do(session, settings)
    spend_all(session, project)
    with pytest.raises(budgets.BudgetExhausted):
        machines.resume(session, settings, working)


def test_a_used_up_budget_pauses_and_a_top_up_resumes(session, settings, working, project):
    run(session, settings)
    assert kinds(session, working) == []
    session.get_one(VmMeter, working.vm_id).held_to = datetime.now(UTC) + timedelta(seconds=20)
    spend_all(session, project)
    run(session, settings)
    assert kinds(session, working) == ["pause"]
    assert working.pause_reason == "budget"
    run(session, settings)
    assert kinds(session, working) == ["pause"]
    world.do(session, settings)
    run(session, settings)
    assert (working.status, kinds(session, working)) == ("paused", [])
    allocations.top_up(session, project.uuid, Decimal(1))
    session.commit()
    assert enforcement.resume_project(settings, project.uuid) == [working.uuid]
    session.expire_all()
    assert kinds(session, working) == ["resume"]
    assert allocations.get(session, project.uuid).overrun_amount == 0


@pytest.fixture
def pressed(session, settings, working, project):
    """A pool that `working` has used most of, and the machine of a project that wants its runtime from it."""
    modest = world.project(session, "modest", time_zone=world.morning())
    machine = machines.spawn(session, settings, project=modest, prompt="work")
    world.do(session, settings)
    machine.status = "working"
    pools.set_pool(session, Decimal(1), period="daily")
    spend(session, project, Decimal("0.9"))
    pools.share_all(session)
    spend(session, modest, budgets.available(session, modest.uuid) - Decimal("0.0002"))
    meter = session.get_one(VmMeter, machine.vm_id)
    meter.metered_to -= timedelta(seconds=100)
    meter.held_to = datetime.now(UTC) + timedelta(seconds=100)
    session.commit()
    return machine


def test_in_a_pool_that_is_too_small_who_took_most_is_paused_for_the_others(session, settings, working, pressed):
    for _ in range(2):
        run(session, settings)
        assert (kinds(session, working), kinds(session, pressed)) == (["pause"], [])
    world.do(session, settings)
    assert (working.status, working.pause_reason) == ("paused", "budget")
    run(session, settings)
    assert (kinds(session, working), kinds(session, pressed)) == ([], [])
    assert session.get_one(VmMeter, pressed.vm_id).held_to > datetime.now(UTC) + timedelta(minutes=4)


def test_who_is_hardly_paid_any_more_is_stopped_whoever_comes_before(session, settings, working, pressed):
    session.get_one(VmMeter, pressed.vm_id).held_to = datetime.now(UTC) + timedelta(seconds=60)
    run(session, settings)
    assert (kinds(session, working), kinds(session, pressed)) == ([], ["pause"])


def test_a_budget_of_its_own_that_is_too_small_pauses_nobody_else(session, settings, working, pressed):
    own = next(b for b in allocations.present(session, pressed.project_uuid) if not b.pooled)
    allocations.set_budget(session, pressed.project_uuid, own.used_amount)
    run(session, settings)
    assert (kinds(session, working), kinds(session, pressed)) == ([], ["pause"])


def test_the_next_day_resumes_by_itself(session, settings, working, project):
    allocations.set_budget(session, project.uuid, Decimal(1), period="daily")
    spend(session, project, budgets.available(session, project.uuid))
    session.get_one(VmMeter, working.vm_id).held_to = None
    run(session, settings)
    world.do(session, settings)
    assert working.status == "paused"
    for row in allocations.present(session, project.uuid):
        if row.budget_period == "daily":  # as if that had been yesterday
            row.since -= timedelta(days=1)
            row.period_start -= timedelta(days=1)
            row.period_end -= timedelta(days=1)
    session.execute(sa.text(YESTERDAY))
    run(session, settings)
    assert kinds(session, working) == ["resume"]


YESTERDAY = """
    ALTER TABLE resource_usage DISABLE TRIGGER refuse_usage_change;
    UPDATE resource_usage SET billing_period_start = billing_period_start - 1,
                              billing_period_end = billing_period_end - 1;
    ALTER TABLE resource_usage ENABLE TRIGGER refuse_usage_change;
    UPDATE usage_sums SET day = day - 1;
    UPDATE usage_sums_new SET day = day - 1;
"""


def test_a_machine_that_a_person_paused_stays_so(session, settings, working):
    machines.pause(session, settings, working)
    world.do(session, settings)
    run(session, settings)
    assert kinds(session, working) == []


def test_a_frozen_budget_pauses(session, settings, working, project):
    spend(session, project, Decimal(6))
    run(session, settings)
    assert (kinds(session, working), working.pause_reason) == (["pause"], "budget")


def test_with_the_old_way_the_machine_ends(session, settings, working, project):
    project.when_exhausted = "end"
    spend(session, project, Decimal(6))
    run(session, settings)
    assert kinds(session, working) == ["terminate"]
    assert working.outcome == "out_of_budget"


def test_the_runtime_stays_reserved_while_nothing_can_be_read(session, settings, working, project):
    meter = session.get_one(VmMeter, working.vm_id)
    meter.metered_to = meter.metered_to - HOUR
    meter.held_to = datetime.now(UTC) + timedelta(seconds=10)
    before = allocations.get(session, project.uuid).reserved_amount
    run(session, settings)
    assert allocations.get(session, project.uuid).reserved_amount > 10 * before
    assert session.get_one(VmMeter, working.vm_id).held_to > datetime.now(UTC) + timedelta(minutes=4)


def test_a_failed_pause_is_asked_for_again_later(session, settings, working, project):
    spend(session, project, Decimal(6))
    run(session, settings)
    world.do(session, settings, error="Proxmox is away")
    run(session, settings)
    assert kinds(session, working) == []
    (failed,) = session.query(Operation).filter_by(kind="pause")
    failed.finished_at -= timedelta(minutes=2)
    run(session, settings)
    assert kinds(session, working) == ["pause"]


def result(outcome):
    return {
        "outcome": outcome,
        "summary": "x",
        "exit_code": 1,
        "details": {},
        "manifest": {"files": [], "truncated": False},
    }


def test_a_result_out_of_budget_pauses_instead_of_ending(session, settings, working):
    assert not agents.record_result(session, settings, working, result("out_of_budget"))
    assert kinds(session, working) == ["pause"]
    assert not agents.record_result(session, settings, working, result("stopped"))
    assert working.result == {}
    assert agents.record_result(session, settings, working, result("succeeded"))
    assert kinds(session, working) == ["terminate"]


def used_up(session, project):
    return [
        (one["resource"], one["period"], one["reason"])
        for one in alerts.views(session, project.uuid)
        if one["kind"] == "exhausted"
    ]


def test_a_machine_that_is_stopped_for_its_budget_is_told_of_once_and_again_after_a_top_up(
    session, settings, working, project
):
    """What is left is too little for a call, and not nothing: no level says so."""
    said = [("money", "total", f"machine {working.name} is stopped: what is left does not pay for its next call")]
    agents.record_result(session, settings, working, result("out_of_budget"))
    agents.record_result(session, settings, working, result("out_of_budget"))
    assert used_up(session, project) == said
    allocations.top_up(session, project.uuid, Decimal(1))
    agents.record_result(session, settings, working, result("out_of_budget"))
    assert used_up(session, project) == said * 2


def test_a_budget_that_is_used_up_to_the_end_is_told_of_as_its_machines_are_stopped(
    session, settings, working, project
):
    allocations.set_budget(session, project.uuid, Decimal(3), period="daily")
    session.get_one(VmMeter, working.vm_id).held_to = datetime.now(UTC) + timedelta(seconds=20)
    spend_all(session, project)
    run(session, settings)
    assert kinds(session, working) == ["pause"]
    assert [one[:2] for one in used_up(session, project)] == [("money", "daily")]


def test_a_result_out_of_budget_ends_a_machine_of_the_old_way(session, settings, working, project):
    project.when_exhausted = "end"
    assert agents.record_result(session, settings, working, result("out_of_budget"))
    assert (kinds(session, working), working.outcome) == (["terminate"], "out_of_budget")


@pytest.mark.parametrize(
    ("hours", "spawns", "stops"), [(Decimal("1.05"), True, False), (Decimal("1.2"), False, False), (2, False, True)]
)
def test_counted_resources_warn_then_throttle_then_stop(session, settings, working, project, hours, spawns, stops):
    allocations.set_budget(session, project.uuid, Decimal(1), resource="time")
    meter = session.get_one(VmMeter, working.vm_id)
    metering.advance(session, meter, meter.metered_to + HOUR * float(hours))
    if spawns:
        machines.spawn(session, settings, project=project, prompt="another")
    else:
        with pytest.raises(throttle.Throttled, match="budget of time is overrun by"):
            machines.spawn(session, settings, project=project, prompt="another")
    run(session, settings)
    assert (kinds(session, working) == ["pause"]) is stops


def test_more_of_a_counted_resource_is_enough_to_go_on(session, settings, working, project):
    """However much money there was: that was not what it was paused for."""
    allocations.set_budget(session, project.uuid, Decimal(1), resource="time")
    meter = session.get_one(VmMeter, working.vm_id)
    metering.advance(session, meter, meter.metered_to + 2 * HOUR)
    run(session, settings)
    world.do(session, settings)
    run(session, settings)
    assert (working.status, kinds(session, working)) == ("paused", [])
    allocations.top_up(session, project.uuid, Decimal(1), resource="time")
    run(session, settings)
    assert kinds(session, working) == ["resume"]


def test_a_resumed_machine_has_its_time_to_boot(session, settings, working):
    machines.pause(session, settings, working)
    world.do(session, settings)
    machines.resume(session, settings, working)
    world.do(session, settings)
    for operation in session.query(Operation).filter_by(kind="spawn"):
        operation.finished_at -= timedelta(seconds=settings.machine_boot_seconds + 60)
    scheduler = Scheduler(settings)
    scheduler.began -= timedelta(days=1)
    scheduler.end_silent(session)
    assert kinds(session, working) == []


def fail(session, settings, project, error="no disk space"):
    machine = machines.spawn(session, settings, project=project, prompt="work")
    world.do(session, settings, error=error)
    world.do(session, settings)
    return machine


def test_the_breaker_opens_after_repeated_failures_until_it_is_reset(session, settings, project):
    settings.breaker_failures = 3
    for _ in range(3):
        fail(session, settings, project)
    with pytest.raises(throttle.CircuitOpen, match="last 3 machines of project demo failed at once") as refused:
        machines.spawn(session, settings, project=project, prompt="again")
    assert "no disk space" in str(refused.value)
    assert "autovibe project reset demo" in str(refused.value)
    other = world.project(session, "other")
    machines.spawn(session, settings, project=other, prompt="that is another project's")
    throttle.reset(session, project)
    machines.spawn(session, settings, project=project, prompt="again")


def test_a_success_between_keeps_the_breaker_closed(session, settings, project):
    settings.breaker_failures = 2
    fail(session, settings, project)
    good = machines.spawn(session, settings, project=project, prompt="work")
    world.do(session, settings)
    good.enrolled_at = datetime.now(UTC)
    machines.terminate(session, settings, good, outcome="succeeded")
    world.do(session, settings)
    fail(session, settings, project)
    assert throttle.failures(session, settings, project) == []


def test_failing_after_long_work_is_no_failure_at_once(session, settings, project):
    settings.breaker_failures = 1
    machine = machines.spawn(session, settings, project=project, prompt="work")
    world.do(session, settings)
    machine.enrolled_at = datetime.now(UTC) - timedelta(hours=1)
    machines.terminate(session, settings, machine, outcome="failed")
    world.do(session, settings)
    assert throttle.failures(session, settings, project) == []
    assert session.query(Machine).count() == session.query(Project).count() == 1
