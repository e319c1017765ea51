"""A machine's own limit of money: what it has cost and what it holds stay below it, whatever its project has."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from threading import Barrier, Thread

import pytest
import sqlalchemy as sa
from autovibe import agents, alerts, budgets, db, enforcement, machines
from autovibe.errors import Invalid
from autovibe.ledger import UsageLine
from autovibe.models import Machine, Project, Reservation, Usage
from autovibe.tests import world
from sqlalchemy.orm import Session

LIMIT = Decimal("1.5")


@pytest.fixture
def session(settings):
    with Session(db.engine(settings), expire_on_commit=False) as session:
        world.template(session)
        yield session


@pytest.fixture
def limited(session, settings):
    """A machine that works and may cost 1.50, of a project that has 5."""
    machine = machines.spawn(session, settings, project=world.project(session), prompt="work", max_cad=LIMIT)
    world.do(session, settings)
    machine.status, machine.enrolled_at = "working", machine.spawned_at
    session.commit()
    return machine


def hold(session, machine, cad, at=None):
    return budgets.reserve(
        session,
        project_uuid=machine.project_uuid,
        machine_uuid=machine.uuid,
        amount_cad=Decimal(cad),
        holder="call",
        purpose=budgets.AI_CALL,
        expires_at=datetime.now(UTC) + timedelta(minutes=5),
        at=at,
    )


def settle(session, reservation, cad):
    budgets.settle(session, reservation.uuid, lines=[UsageLine("money", amount=Decimal(cad), cost_cad=Decimal(cad))])


def test_what_it_has_used_and_holds_stays_below(session, settings, limited):
    runtime = LIMIT - budgets.machine_left(session, limited)
    assert runtime > 0  # its first minutes are held
    settle(session, hold(session, limited, "1"), "0.25")
    hold(session, limited, "1")
    left = LIMIT - Decimal("1.25") - runtime
    assert budgets.machine_left(session, limited) == left
    with pytest.raises(budgets.MachineLimit) as refused:
        hold(session, limited, left + Decimal("0.000000001"))
    assert refused.value.available == left
    assert f"Machine {limited.name} has {left.normalize():f} left of its limit of 1.5 CAD" in refused.value.message
    hold(session, limited, left)
    # Another machine of the project has its own.
    other = machines.spawn(session, settings, project=session.get_one(Project, limited.project_uuid), prompt="x")
    hold(session, other, "2")


def test_a_budget_that_has_less_is_what_is_said(session, settings, limited):
    budgets.reserve(
        session, project_uuid=limited.project_uuid, amount_cad=Decimal("4.5"), holder="x", purpose="x",
        expires_at=datetime.now(UTC) + timedelta(minutes=5),
    )  # fmt: skip
    with pytest.raises(budgets.BudgetExhausted) as refused:
        hold(session, limited, "1")
    assert not isinstance(refused.value, budgets.MachineLimit)


def test_it_is_kept_by_many_at_once(session, settings, limited):
    """Also by reservations of different days."""
    start, results = Barrier(12), []

    def reserve(number):
        at = datetime.now(UTC) + timedelta(days=number % 3)
        start.wait()
        for _ in range(5):
            try:
                with db.session_scope(settings) as mine:
                    hold(mine, limited, "0.1", at=at)
                results.append(True)
            except budgets.BudgetExhausted:
                results.append(False)

    threads = [Thread(target=reserve, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    session.expire_all()
    assert len(results) == 60
    assert results.count(True) == 14  # the fifteenth lacks what is held for its first minutes
    assert 0 <= budgets.machine_left(session, limited) < Decimal("0.1")


@pytest.fixture
def used_up(session, limited):
    left = budgets.machine_left(session, limited)
    settle(session, hold(session, limited, left), left)
    session.commit()
    return limited


def out_of_budget(session, settings, machine):
    result = {"outcome": "out_of_budget", "summary": "402", "exit_code": 1, "manifest": None, "details": {}}
    agents.record_result(session, settings, machine, result)


def test_it_is_paused_and_stays_so_until_its_limit_is_raised(session, settings, used_up):
    out_of_budget(session, settings, used_up)
    world.do(session, settings)
    assert (used_up.status, used_up.pause_reason) == ("paused", "budget")
    assert alerts.views(session) == []  # its project has money
    session.commit()
    assert not enforcement.resume(settings, used_up.uuid, paid=True)
    with pytest.raises(budgets.MachineLimit):
        machines.resume(session, settings, used_up)
    with pytest.raises(budgets.MachineLimit):
        machines.resume(session, settings, used_up, max_cad=Decimal("1.50"))
    session.rollback()
    machines.resume(session, settings, used_up, max_cad=Decimal("2"))
    world.do(session, settings)
    assert used_up.status != "paused"
    hold(session, used_up, "0.1")


def test_it_ends_where_its_project_wants_that(session, settings, used_up):
    session.get_one(Project, used_up.project_uuid).when_exhausted = "end"
    out_of_budget(session, settings, used_up)
    world.do(session, settings)
    assert (used_up.status, used_up.outcome) == ("terminated", "out_of_budget")


def test_one_that_costs_only_by_running_is_stopped_too(session, settings, used_up):
    """The next minutes of its runtime cannot be reserved."""
    later = settings.model_copy(update={"runtime_ahead_seconds": 7200})
    enforcement.run(later)
    session.expire_all()
    found = session.get_one(Machine, used_up.uuid)
    world.do(session, settings)
    assert (found.status, found.pause_reason) == ("paused", "budget")


@pytest.mark.parametrize("cad", ["0", "0.001", "-1", "NaN", "Infinity", "1.0000000001", "1e30"])
def test_a_limit_that_makes_no_sense_is_refused(session, settings, cad):
    project = world.project(session)
    with pytest.raises(Invalid):
        machines.spawn(session, settings, project=project, prompt="work", max_cad=Decimal(cad))


def test_what_it_has_cost_is_known_without_reading_its_lines(session, limited):
    """Each of its calls asks; the lines of a week are some 50,000."""
    settle(session, hold(session, limited, Decimal("0.25")), Decimal("0.2"))
    lines = sa.select(sa.func.sum(Usage.cost_cad)).where(Usage.machine_uuid == limited.uuid)
    held = sa.select(sa.func.sum(Reservation.amount_cad)).where(
        Reservation.machine_uuid == limited.uuid, Reservation.status == "held"
    )
    cost = session.scalar(lines) + session.scalar(held)
    read = sa.text("""
        SELECT sum(seq_scan + coalesce(idx_scan, 0)) FROM pg_stat_xact_user_tables WHERE relname LIKE 'resource_usage%'
    """)
    before = session.scalar(read)
    assert budgets.machine_left(session, limited) == LIMIT - cost
    assert session.scalar(read) == before
