"""When checkpoints are due, that there are never two at once, and that they fall between two messages."""

import asyncio
import re
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from autovibe import agents, budgets, db, ledger, machines, operations, policies, records, tokens
from autovibe.gateway import holding
from autovibe.gateway.reserving import Caller
from autovibe.heartbeats import Heartbeats
from autovibe.models import Project, Reservation
from autovibe.tests import world
from sqlalchemy.orm import Session


@pytest.fixture
def session(settings):
    with Session(db.engine(settings), expire_on_commit=False) as open_session:
        yield open_session


@pytest.fixture
def working(session, settings):
    """A machine that has enrolled an hour ago, with CAD 5."""
    world.template(session)
    machine = machines.spawn(session, settings, project=world.project(session), prompt="work")
    world.do(session, settings)
    machine.status, machine.enrolled_at = "working", ago(60)
    policies.noted(machine)
    return machine


def ago(seconds):
    return datetime.now(UTC) - timedelta(seconds=seconds)


def last_was(machine, seconds, calls=0):
    machine.metadata_ = {**machine.metadata_, "checkpointed": {"at": ago(seconds).isoformat(), "calls": calls}}


def spend(session, machine, cad):
    line = ledger.UsageLine("money", amount=Decimal(cad), cost_cad=Decimal(cad))
    budgets.charge(session, project_uuid=machine.project_uuid, machine_uuid=machine.uuid, lines=[line])


def hold_money(session, machine, purpose=budgets.AI_CALL):
    budgets.reserve(
        session,
        project_uuid=machine.project_uuid,
        machine_uuid=machine.uuid,
        amount_cad=Decimal("0.1"),
        holder="call",
        purpose=purpose,
        expires_at=datetime.now(UTC) + timedelta(minutes=5),
    )


def due(session, settings, machine):
    """Why the answer to a heartbeat says that a checkpoint is due."""

    async def beat():
        heartbeats = Heartbeats(settings)
        try:
            return await heartbeats.answer(tokens.machine_token(machine, settings), None)
        finally:
            await heartbeats.close()

    session.commit()
    answer = asyncio.run(beat())
    session.refresh(machine)
    return answer["checkpoint"]


def slowly(session, machine):
    """The project's policy with more time than a test takes on the busiest host; what was 60 seconds ago may follow."""
    policies.change(session.get_one(Project, machine.project_uuid), made={"floor_seconds": 55, "hold_seconds": 300})


def ask(session, settings, machine, kind="automatic", **what):
    return agents.request_checkpoint(session, settings, machine, checkpoint_type=kind, **what)


def test_a_checkpoint_is_due_by_time_by_calls_and_by_money(session, settings, working):
    last_was(working, 240)
    assert due(session, settings, working) is None
    last_was(working, 301)
    assert re.fullmatch("after 3[0-9]{2} seconds", due(session, settings, working))
    last_was(working, 30, calls=7)
    working.api_calls = 11
    assert due(session, settings, working) is None
    working.api_calls = 12
    assert due(session, settings, working) == "after 5 model calls"
    working.api_calls = 8
    spend(session, working, "0.49")
    assert due(session, settings, working) is None
    spend(session, working, "0.01")
    assert due(session, settings, working) == "after 10 % of the budget"


def test_money_that_was_spent_before_the_last_checkpoint_does_not_count(session, settings, working):
    working.api_calls = 3
    spend(session, working, "4")
    session.flush()
    working.metadata_ = {"checkpointed": {"at": (datetime.now(UTC) + timedelta(seconds=1)).isoformat(), "calls": 1}}
    policies.change(session.get_one(Project, working.project_uuid), made={"floor_seconds": 0})
    assert due(session, settings, working) is None


def test_between_two_there_is_a_floor(session, settings, working):
    last_was(working, 0)
    working.api_calls = 500
    assert due(session, settings, working) is None


def test_a_machines_words_count_more_than_its_projects(session, settings, working):
    project = session.get_one(Project, working.project_uuid)
    policies.change(project, made={"calls": 2, "seconds": 0})
    last_was(working, 1000)
    assert due(session, settings, working) is None
    working.api_calls = 2
    assert due(session, settings, working) == "after 2 model calls"
    working.assignment = {**working.assignment, "checkpoints": {"calls": 3}}
    assert due(session, settings, working) is None


@pytest.mark.parametrize(
    "words",
    [
        {"often": 1},
        {"calls": -1},
        {"calls": 1.5},
        {"calls": "5"},
        {"calls": True},
        {"budget_percent": 101},
        {"calls": None},
        {"risky": "rm"},
        {"risky": ["("]},
        {"risky": [7]},
        {"risky": [""]},
        {"risky": ["x"] * 51},
        {"risky_seconds": 601},
        {"turns": 1},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(session, words):
    project = world.project(session)
    with pytest.raises(policies.InvalidPolicy):
        policies.change(project, made=words)
    assert project.checkpoint_policy == {}


def test_what_is_due_stands_in_the_answer_to_a_heartbeat(session, settings, working):
    last_was(working, 301)
    assert due(session, settings, working)
    ask(session, settings, working)
    assert due(session, settings, working) is None


def test_never_two_at_once(session, settings, working):
    last_was(working, 60)
    first = ask(session, settings, working, description="after 5 calls")
    assert ask(session, settings, working) == first
    made, operation = machines.checkpoint(session, settings, working, description="before lunch")
    assert (made.uuid, operation.uuid) == first
    assert (made.checkpoint_type, made.description) == ("manual", "after 5 calls; before lunch")
    assert "type=manual" in operation.params["vars"]["machine_checkpoint"]["description"]
    assert working.status == "checkpointing"
    (claimed,) = world.claim(session)
    # One that is being made may be of a state before the question: the next one follows it.
    _, second = machines.checkpoint(session, settings, working)
    assert second.uuid != claimed.uuid
    assert world.claim(session) == []


def test_the_policys_own_do_not_follow_each_other_at_once(session, settings, working):
    slowly(session, working)
    last_was(working, 60)
    first = ask(session, settings, working)
    world.do(session, settings)
    assert ask(session, settings, working) == first
    # A machine gets none sooner by calling it another name.
    assert ask(session, settings, working, "manual") == first


def test_one_that_the_cli_waits_for_waits_for_no_call(session, settings, working):
    slowly(session, working)
    last_was(working, 60)
    hold_money(session, working)
    first = ask(session, settings, working)
    assert world.claim(session) == []
    assert ask(session, settings, working, standing=True) == first
    (claimed,) = world.claim(session)
    # What is being made is the answer as long as the next one would be too soon; later it may be of an older state.
    assert ask(session, settings, working, standing=True) == first
    last_was(working, 60)
    second = ask(session, settings, working, standing=True)
    assert second != first
    records.end(session, settings, claimed.uuid, result=None, error="no room", error_class="X")
    world.do(session, settings, error="no room", error_class="X")
    assert ask(session, settings, working, standing=True) not in (first, second)


def is_risky(command, policy=None):
    return any(re.search(pattern, command) for pattern in (policy or policies.Making()).risky_patterns)


@pytest.mark.parametrize(
    "command",
    [
        "cd /w && rm -fr build", "rm -f a -R b", "sudo rm --recursive /x", "find . -name '*.o' -delete",
        "git push --force", "git push -f origin main", "git push origin +main", "git -C /w push --force-with-lease",
        "git reset --hard HEAD~1", "git clean -fdx", "git checkout -- .", "git branch -D old", "git rebase -i main",
        'psql -c "DROP DATABASE app"', "dropdb app", 'psql -c "DELETE FROM users;"', "redis-cli FLUSHALL",
        "sudo apt-get -y purge python3", "dpkg -r foo", "pip uninstall -y x", "npm uninstall left-pad",
        "dd if=/dev/zero of=/dev/vda", "mkfs.ext4 /dev/vdb", "chmod -R 777 /", "cat x > /dev/sda",
    ],
)  # fmt: skip
def test_what_is_hard_to_take_back_is_risky(command):
    assert is_risky(command)


@pytest.mark.parametrize(
    "command",
    [
        "rm -f file.txt", "ls -lr", "git push origin feature-fix", "git pull --rebase", "git checkout main",
        "apt-get install -y rm", "python3 -m unittest -v", "grep -r foo .", "chmod 644 x", "docker ps",
        "find . -name x", "DELETE FROM users WHERE id = 1;",
    ],
)  # fmt: skip
def test_what_is_not_hard_to_take_back_is_not(command):
    assert not is_risky(command)


def test_a_project_names_its_own_risky_commands(session, settings, working):
    project = session.get_one(Project, working.project_uuid)
    policies.change(project, made={"risky": ["default", "deploy"], "risky_seconds": 5})
    asked = agents.assignment(session, settings, working)["checkpoints"]
    assert (asked["risky"], asked["risky_seconds"], asked["turns"]) == ([*policies.RISKY, "deploy"], 5, True)
    policies.change(project, made={"risky": ["deploy"]})
    assert not is_risky("rm -rf x", policies.making(session, working))


def test_a_checkpoint_waits_for_the_call_that_is_under_way(session, settings, working):
    slowly(session, working)
    hold_money(session, working)
    _, operation = machines.checkpoint(session, settings, working)
    assert world.claim(session) == []
    assert 200 < operations.next_due(session) <= 300
    operation.not_before = ago(0)
    session.flush()
    assert world.claim(session) == [operation]


def test_money_that_is_held_for_something_else_holds_no_checkpoint_up(session, settings, working):
    hold_money(session, working, purpose="runtime")
    _, operation = machines.checkpoint(session, settings, working)
    assert world.claim(session) == [operation]


@pytest.fixture
def calling(settings, session, working):
    """A machine of which a checkpoint is under way, committed; with `hold` as the gateway calls it."""
    last_was(working, 60)
    hold_money(session, working)
    _, operation = machines.checkpoint(session, settings, working)
    session.commit()
    caller = Caller(working.uuid, working.project_uuid, checkpointing=True)

    async def run(function, *arguments):
        return await asyncio.to_thread(function, lambda: db.session_scope(settings), *arguments)

    thread = threading.Thread(target=lambda: asyncio.run(holding.hold(run, caller)), daemon=True)
    return working, operation, thread


def end_calls(session, machine):
    for held in session.query(Reservation).filter_by(machine_uuid=machine.uuid, status="held"):
        budgets.release(session, held.uuid)
    session.commit()


def wait_until(condition):
    end = datetime.now(UTC) + timedelta(seconds=60)
    while not condition():
        assert datetime.now(UTC) < end
        threading.Event().wait(0.02)


@pytest.mark.parametrize("error", [None, "no room"])
def test_a_call_waits_until_the_checkpoint_has_ended_however(settings, session, calling, error):
    machine, operation, call = calling
    end_calls(session, machine)
    call.start()
    # The call that comes next lets the checkpoint begin.
    wait_until(lambda: _fresh(settings, operation).not_before is None)
    (claimed,) = world.claim(session)
    session.commit()
    assert call.is_alive()
    result = None if error else world.made(claimed)
    records.end(session, settings, claimed.uuid, result=result, error=error, error_class="X" if error else None)
    assert call.is_alive()
    session.commit()
    call.join(30)
    assert not call.is_alive()


def test_a_call_beside_another_one_does_not_wait(session, calling):
    _, _, call = calling
    call.start()
    call.join(30)
    assert not call.is_alive()


def test_a_call_does_not_wait_for_a_worker_that_is_away(settings, session, calling):
    machine, operation, call = calling
    end_calls(session, machine)
    operation.created_at = ago(41)
    session.commit()
    call.start()
    call.join(30)
    assert not call.is_alive()


def _fresh(settings, operation):
    with db.session_scope(settings) as session:
        return session.get_one(type(operation), operation.uuid)
