"""A machine that has fallen silent is started again, a few times; then it ends."""

from datetime import UTC, datetime, timedelta

import pytest
from autovibe import agents, budgets, db, identity, machines, metering, operations, revival, throttle
from autovibe.models import Operation, Project, VmMeter
from autovibe.scheduler import Scheduler
from autovibe.tests import world
from sqlalchemy.orm import Session


@pytest.fixture
def session(settings):
    with Session(db.engine(settings), expire_on_commit=False) as session:
        world.template(session)
        yield session


@pytest.fixture
def working(session, settings):
    machine = machines.spawn(session, settings, project=world.project(session), prompt="work")
    world.do(session, settings)
    machine.status, machine.enrolled_at = "working", machine.spawned_at
    return machine


@pytest.fixture
def look(session, settings):
    """The scheduler's look at machines that were last heard so many seconds ago; what is asked for."""

    def after(machine, seconds):
        machine.last_heartbeat_at = datetime.now(UTC) - timedelta(seconds=seconds)
        session.flush()
        scheduler = Scheduler(settings)
        scheduler.began -= timedelta(days=1)
        scheduler.end_silent(session)
        return [one.kind for one in operations.pending(session, machine.uuid)]

    return after


def enrols(session, settings, machine):
    world.do(session, settings)
    machine.status = "working"


def later(session, settings):
    """The time passes until a machine that has been started, or not, is looked at again."""
    seconds = timedelta(seconds=settings.machine_revive_seconds + 5)
    session.query(Operation).update({Operation.finished_at: Operation.finished_at - seconds})


def test_it_gets_its_next_identity(session, settings, working, look):
    assert look(working, settings.machine_revive_seconds - 5) == []
    assert look(working, settings.machine_revive_seconds + 5) == ["resume"]
    assert (working.generation, working.status) == (2, "spawning")
    assert look(working, settings.machine_revive_seconds + 5) == ["resume"]
    (operation,) = operations.pending(session, working.uuid)
    assert operation.params["identity"]
    world.do(session, settings)
    assert working.status == "spawning"
    assert look(working, settings.machine_silence_seconds + 5) == []  # it has its time to boot


def test_one_whose_agent_does_not_come_up_is_started_again_and_ends_in_the_end(session, settings, working, look):
    """It was stopped, say, between its start and its agent's first word."""
    working.status, working.enrolled_at = "spawning", None

    def waited(seconds):
        for operation in session.query(Operation).filter_by(machine_uuid=working.uuid):
            operation.finished_at -= timedelta(seconds=seconds)
        return look(working, 0)

    assert waited(settings.machine_revive_seconds - 5) == []
    for times in range(revival.TIMES):
        assert waited(settings.machine_revive_seconds + 5) == ["resume"]
        assert (working.generation, working.status) == (2 + times, "spawning")
        world.do(session, settings)
    assert waited(settings.machine_revive_seconds + 5) == []
    assert waited(settings.machine_boot_seconds) == ["terminate"]
    assert working.outcome == "failed"


def test_a_vm_that_was_found_stopped_runs_and_is_paid_again(session, settings, working, look):
    metering.stopped(session, settings, working.vm_id)
    assert look(working, settings.machine_revive_seconds + 5) == ["resume"]
    world.do(session, settings)
    assert session.get_one(VmMeter, working.vm_id).state == "running"


def test_after_a_few_times_in_a_row_it_ends(session, settings, working, look):
    for _ in range(revival.TIMES):
        assert look(working, settings.machine_revive_seconds + 5) == ["resume"]
        enrols(session, settings, working)
    assert look(working, settings.machine_revive_seconds + 5) == []
    working.api_calls += 1
    assert look(working, settings.machine_revive_seconds + 5) == ["resume"]
    enrols(session, settings, working)
    for _ in range(revival.TIMES - 1):
        assert look(working, settings.machine_revive_seconds + 5) == ["resume"]
        enrols(session, settings, working)
    assert look(working, settings.machine_silence_seconds + 5) == ["terminate"]
    assert working.outcome == "failed"


def worked(session, settings, machine):
    """How long the hub says that the machine has worked, once it has enrolled again."""
    world.do(session, settings)
    token = identity.enrol_token(settings, machine.uuid, machine.generation)
    agents.enrol(session, settings, agents.Enrolment(machine.uuid, machine.generation, token, "n" * 32))
    machine.status = "working"
    return round((datetime.now(UTC) - machine.enrolled_at).total_seconds(), -2)


def test_falling_silent_wins_no_time(session, settings, working, look):
    """It is asked for again and again, each time with a model call in between; the hub's own silence is no work."""
    settings.machine_revive_seconds, settings.machine_silence_seconds = 200, 86_400
    working.enrolled_at = datetime.now(UTC) - timedelta(seconds=1000)
    for so_far in (1000, 1200, 1400):
        assert look(working, 205) == ["resume"]
        assert worked(session, settings, working) == so_far
        working.enrolled_at -= timedelta(seconds=200)
        working.api_calls += 1
    working.enrolled_at -= timedelta(seconds=3000)
    look(working, 3205)
    assert worked(session, settings, working) == 1600


def test_what_a_restored_one_had_worked_before_does_not_count(session, settings, working, look):
    """Its guest stops while it boots from the checkpoint: what it did after that is undone."""
    settings.machine_boot_seconds = 86_400
    working.enrolled_at = datetime.now(UTC) - timedelta(seconds=5000)
    made, _ = machines.checkpoint(session, settings, working)
    world.do(session, settings)
    machines.restore(session, settings, working, made)
    world.do(session, settings)
    for _ in range(2):
        later(session, settings)
        assert look(working, 205) == ["resume"]
        world.do(session, settings)
    assert worked(session, settings, working) == 0


def test_what_one_had_worked_counts_also_when_it_is_started_twice(session, settings, working, look):
    working.enrolled_at = datetime.now(UTC) - timedelta(seconds=5000)
    assert look(working, 205) == ["resume"]
    world.do(session, settings)
    later(session, settings)
    assert look(working, 205 + 205) == ["resume"]
    assert worked(session, settings, working) == 5000


AWAY = {"error": "Proxmox VE cannot be reached.", "error_class": "Unreachable"}


def test_a_node_that_is_away_for_a_while_ends_nothing(session, settings, working, look):
    settings.breaker_failures = 1
    assert look(working, settings.machine_revive_seconds + 5) == ["resume"]
    for _ in range(revival.TIMES - 1):
        world.do(session, settings, kind="resume", **AWAY)
        assert look(working, settings.machine_silence_seconds + 5) == []  # not at once: it has its time
        later(session, settings)
        assert look(working, settings.machine_silence_seconds + 5) == ["resume"]
        assert throttle.failures(session, settings, session.get_one(Project, working.project_uuid)) == []
    enrols(session, settings, working)
    assert look(working, 0) == []
    assert (working.status, working.outcome, working.error_message) == ("working", None, None)


def test_one_that_has_never_enrolled_is_not_destroyed_while_its_node_is_away(session, settings, working, look):
    working.status, working.enrolled_at = "spawning", None
    for _ in range(revival.TIMES):
        later(session, settings)
        assert look(working, 0) == ["resume"]
        world.do(session, settings, kind="resume", **AWAY)
    (end,) = operations.pending(session, working.uuid)
    assert (end.kind, end.params["vars"]["machine_final"]["kind"]) == ("terminate", "none")


def test_what_cannot_be_started_again_ends_with_its_disk(session, settings, working, look):
    look(working, settings.machine_revive_seconds + 5)
    for _ in range(revival.TIMES - 1):
        world.do(session, settings, kind="resume", error="the guest agent does not answer")
        later(session, settings)
        assert look(working, settings.machine_revive_seconds + 5) == ["resume"]
    world.do(session, settings, kind="resume", error="the guest agent does not answer")
    (end,) = operations.pending(session, working.uuid)
    assert (end.kind, end.params["vars"]["machine_final"]["kind"]) == ("terminate", "auto")
    assert "cannot be started again: the guest agent does not answer" in working.error_message


@pytest.mark.parametrize("error_class", ["IdentityError", "NotFound"])
def test_one_whose_vm_is_gone_ends_at_once(session, settings, working, look, error_class):
    look(working, settings.machine_revive_seconds + 5)
    world.do(session, settings, kind="resume", error="it is gone", error_class=error_class)
    assert [one.kind for one in operations.pending(session, working.uuid)] == ["terminate"]


def test_without_money_it_is_not_started(session, settings, working, look):
    metering.stopped(session, settings, working.vm_id)
    budgets.reserve(
        session, project_uuid=working.project_uuid, amount_cad=budgets.available(session, working.project_uuid),
        holder="x", purpose="x", expires_at=datetime.now(UTC) + timedelta(minutes=5),
    )  # fmt: skip
    assert look(working, settings.machine_revive_seconds + 5) == []
    assert working.generation == 1
