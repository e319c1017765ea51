"""Nothing is spent that is not there."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import pytest
import sqlalchemy as sa
from autovibe import allocations, budgets, db, ledger, projects
from autovibe.errors import Conflict
from autovibe.ledger import InvalidAmount, UsageLine
from autovibe.models import Budget, Reservation, Usage
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

SOON = timedelta(minutes=5)
LAST_DIGIT = Decimal("0.000000001")


def money(cad, key=None):
    return UsageLine("money", "claude_api", amount=Decimal(cad), cost_cad=Decimal(cad), idempotency_key=key)


def reserve(session, project, cad, purpose=budgets.AI_CALL, expires_in=SOON):
    return budgets.reserve(
        session,
        project_uuid=project.uuid,
        amount_cad=Decimal(cad),
        holder="test",
        purpose=purpose,
        expires_at=datetime.now(UTC) + expires_in,
    )


def state(session, project):
    budget = allocations.get(session, project.uuid)
    return budget.used_amount, budget.reserved_amount, budget.overrun_amount


@pytest.fixture
def session(any_settings):
    with db.session_scope(any_settings) as open_session:
        yield open_session


@pytest.fixture
def project(session):
    return projects.create(session, "shop", budget_cad=Decimal(5))


def test_what_is_reserved_is_not_available_and_what_is_settled_is_used(session, project):
    reservation = reserve(session, project, 2)
    assert budgets.available(session, project.uuid) == 3
    budgets.settle(session, reservation.uuid, lines=[money("0.123456789")])
    assert state(session, project) == (Decimal("0.123456789"), 0, 0)
    assert budgets.available(session, project.uuid) == Decimal("4.876543211")
    assert ledger.total_cad(session, project.uuid) == Decimal("0.123456789")


def test_the_last_digit_can_be_reserved_and_no_more(session, project):
    reserve(session, project, Decimal(5) - LAST_DIGIT)
    reserve(session, project, LAST_DIGIT)
    with pytest.raises(budgets.BudgetExhausted, match="0 CAD left of 5, and 0.000000001 is needed") as refused:
        reserve(session, project, LAST_DIGIT)
    assert refused.value.available == 0
    assert refused.value.http_status == 402


def test_settling_twice_is_settling_once(session, project):
    reservation = reserve(session, project, 1)
    for _ in range(2):
        budgets.settle(session, reservation.uuid, lines=[money("0.5")])
    assert state(session, project) == (Decimal("0.5"), 0, 0)
    assert session.scalar(sa.select(sa.func.count()).select_from(Usage)) == 1


def test_a_report_with_a_known_key_counts_once(session, project):
    for _ in range(2):
        reservation = reserve(session, project, 1)
        budgets.settle(session, reservation.uuid, lines=[money("0.5", "msg_1"), money("0.5", "msg_1")])
    assert state(session, project) == (Decimal("0.5"), 0, 0)
    assert ledger.total_cad(session, project.uuid) == Decimal("0.5")


def test_released_is_available_again_and_only_once(session, project):
    reservation = reserve(session, project, 5)
    assert [budgets.release(session, reservation.uuid) for _ in range(2)] == [True, False]
    assert state(session, project) == (0, 0, 0)


def test_a_bill_above_its_reservation_freezes_the_budget_but_is_no_overrun_while_it_is_paid(session, project):
    reservation = reserve(session, project, 1)
    budgets.settle(session, reservation.uuid, lines=[money("1.5")])
    assert state(session, project) == (Decimal("1.5"), 0, 0)
    assert reservation.metadata_["above_bound_cad"] == "0.500000000"
    with pytest.raises(budgets.BudgetFrozen, match="was billed"):
        reserve(session, project, "0.1")


def test_a_bill_above_the_allocation_is_an_overrun_of_just_that_part(session, project):
    others = reserve(session, project, 3)
    reservation = reserve(session, project, 2)
    budgets.settle(session, reservation.uuid, lines=[money("2.25")])
    assert state(session, project) == (Decimal("2.25"), 3, Decimal("0.25"))
    budgets.settle(session, others.uuid, lines=[money("2.9")])
    assert budgets.available(session, project.uuid) == 0
    allocations.top_up(session, project.uuid, Decimal(1))
    assert state(session, project) == (Decimal("5.15"), 0, 0)
    assert budgets.available(session, project.uuid) == Decimal("0.85")


def test_the_reaper_settles_a_call_at_its_bound_and_gives_the_rest_back(session, project):
    call = reserve(session, project, 2, expires_in=-SOON)
    other = reserve(session, project, 1, purpose="runtime", expires_in=-SOON)
    alive = reserve(session, project, 1)
    assert {r.uuid for r in budgets.reap(session, datetime.now(UTC))} == {call.uuid, other.uuid}
    assert state(session, project) == (2, 1, 0)
    assert (call.status, call.settled_cad, call.metadata_["settled_at_bound"]) == ("reaped", 2, True)
    assert (other.status, other.settled_cad) == ("reaped", 0)
    assert alive.status == "held"
    assert budgets.reap(session, datetime.now(UTC)) == []


def test_a_bill_that_comes_after_the_reaper_corrects_it(session, project):
    call = reserve(session, project, 2, expires_in=-SOON)
    budgets.reap(session, datetime.now(UTC))
    for _ in range(2):
        budgets.settle(session, call.uuid, lines=[money("0.75")])
    assert state(session, project) == (Decimal("0.75"), 0, 0)
    assert ledger.total_cad(session, project.uuid) == Decimal("0.75")
    assert session.scalar(sa.select(sa.func.count()).select_from(Usage)) == 3


def test_a_call_that_was_not_billed_as_its_gateway_says_late_costs_nothing(session, project):
    call = reserve(session, project, 2, expires_in=-SOON)
    budgets.reap(session, datetime.now(UTC))
    assert state(session, project) == (2, 0, 0)
    for _ in range(2):
        budgets.release(session, call.uuid)
    assert (state(session, project), call.status, call.settled_cad) == ((0, 0, 0), "released", None)
    assert ledger.total_cad(session, project.uuid) == 0
    budgets.settle(session, call.uuid, lines=[money("0.75")])
    assert state(session, project) == (Decimal("0.75"), 0, 0)


def test_what_the_reaper_writes_of_a_call_says_of_which_model_and_on_whose_bill(session, project):
    budgets.reserve(
        session, project_uuid=project.uuid, amount_cad=Decimal(2), holder="call", purpose=budgets.AI_CALL,
        expires_at=datetime.now(UTC) - SOON, counts={"api_calls": Decimal(1)},
        metadata={"model": "gpt-x", "subtype": "openai_api"},
    )  # fmt: skip
    budgets.reap(session, datetime.now(UTC))
    lines = {line.resource_type: line for line in session.scalars(sa.select(Usage))}
    assert {line.resource_subtype for line in lines.values()} == {"openai_api"}
    assert lines["money"].metadata_["model"] == "gpt-x"
    (sums,) = ledger.by_model(session)
    assert (sums["model"], sums["cad"]) == ("gpt-x", 2)


def test_a_count_that_others_hold_may_come_back_and_one_that_is_used_does_not(session, project):
    allocations.set_budget(session, project.uuid, Decimal(1), resource="api_calls")

    def call():
        return budgets.reserve(
            session, project_uuid=project.uuid, amount_cad=Decimal(1), counts={"api_calls": Decimal(1)},
            holder="call", purpose=budgets.AI_CALL, expires_at=datetime.now(UTC) + SOON,
        )  # fmt: skip

    first = call()
    with pytest.raises(budgets.CountExhausted) as refused:
        call()
    assert refused.value.held
    budgets.settle(session, first.uuid, lines=[money(1), UsageLine("api_calls", amount=Decimal(1), unit="count")])
    with pytest.raises(budgets.CountExhausted) as refused:
        call()
    assert not refused.value.held


def test_an_extended_reservation_is_not_reaped(session, project):
    call = reserve(session, project, 2, expires_in=-SOON)
    assert budgets.extend(session, call.uuid, datetime.now(UTC) + SOON)
    assert budgets.reap(session) == []
    budgets.release(session, call.uuid)
    assert not budgets.extend(session, call.uuid, datetime.now(UTC) + SOON)


def test_what_nobody_reserved_is_booked_all_the_same(session, project):
    assert budgets.charge(session, project_uuid=project.uuid, lines=[money(4, "meter-1")]) == 4
    assert budgets.charge(session, project_uuid=project.uuid, lines=[money(4, "meter-1")]) == 0
    budgets.charge(session, project_uuid=project.uuid, lines=[money(3, "meter-2")])
    assert state(session, project) == (7, 0, 2)
    assert allocations.get(session, project.uuid).frozen_at is not None


@pytest.mark.parametrize("amount", ["NaN", "Infinity", "-1", "0", "1e15", "0.0000000001", "many", 0.5, True])
def test_what_is_no_amount_is_refused_in_one_line(session, project, amount):
    with pytest.raises(InvalidAmount) as refused:
        budgets.reserve(
            session, project_uuid=project.uuid, amount_cad=amount, holder="t", purpose="t", expires_at=datetime.now(UTC)
        )
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("column", ["used_amount", "reserved_amount", "allocated_amount", "overrun_amount"])
@pytest.mark.parametrize("value", ["NaN", "-1"])
def test_the_database_itself_refuses_a_wrong_budget(session, project, column, value):
    with pytest.raises(IntegrityError), session.begin_nested():
        session.execute(sa.update(Budget).values({column: Decimal(value)}))


def test_the_database_itself_refuses_an_overspent_budget(session, project):
    with pytest.raises(IntegrityError, match="never_overspent"), session.begin_nested():
        session.execute(sa.update(Budget).values(used_amount=6))


def test_a_project_without_a_budget_can_reserve_nothing(session, project):
    session.execute(sa.delete(Budget))
    with pytest.raises(budgets.NoBudget):
        reserve(session, project, 1)
    assert budgets.available(session, project.uuid) == 0


def test_a_second_total_budget_is_refused(session, project):
    with pytest.raises(Conflict):
        allocations.create(session, project.uuid, Decimal(1))


def test_a_reservation_that_does_not_exist(session, project):
    with pytest.raises(budgets.NoSuchReservation):
        budgets.settle(session, uuid4(), lines=[])


@pytest.mark.parametrize("workers", [16])
def test_two_hundred_at_once_get_what_ten_can_have(any_settings, workers):
    with db.session_scope(any_settings) as session:
        project = projects.create(session, "race", budget_cad=Decimal(10))
    barrier, refused = threading.Barrier(workers), []

    def client(number):
        barrier.wait()
        for call in range(200 // workers):
            try:
                with db.session_scope(any_settings) as session:
                    held = reserve(session, project, 1).uuid
            except budgets.BudgetExhausted:
                refused.append((number, call))
                continue
            with db.session_scope(any_settings) as session:
                budgets.settle(session, held, lines=[money("1", f"{number}-{call}")])

    watched = threading.Event()
    with ThreadPoolExecutor(workers + 1) as pool:
        watcher = pool.submit(_watch, any_settings, project, watched)
        list(pool.map(client, range(workers)))
        watched.set()
        assert watcher.result() > 0
    with db.session_scope(any_settings) as session:
        assert state(session, project) == (10, 0, 0)
        assert ledger.total_cad(session, project.uuid) == 10
        assert len(refused) == 200 // workers * workers - 10


def _watch(settings, project, done):
    """Look at every moment that a reader can see: the invariant holds in each."""
    looks = 0
    while not done.is_set() or looks == 0:
        with db.session_scope(settings) as session:
            used, reserved, overrun = state(session, project)
            assert used + reserved <= 10 + overrun
            looks += 1
    return looks


CLIENT = """
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID
from autovibe import allocations, budgets, db
from autovibe.ledger import UsageLine
from autovibe.settings import Settings

settings, project, name = Settings(), UUID(sys.argv[1]), sys.argv[2]
for call in range(1000):
    with db.session_scope(settings) as session:
        held = budgets.reserve(
            session, project_uuid=project, amount_cad=Decimal("0.01"), holder=name, purpose=budgets.AI_CALL,
            expires_at=datetime.now(UTC) + timedelta(minutes=5)).uuid
    print(call, flush=True)
    with db.session_scope(settings) as session:
        line = UsageLine("money", "claude_api", cost_cad=Decimal("0.007"), idempotency_key=f"{name}-{call}")
        budgets.settle(session, held, lines=[line])
"""


def test_processes_that_are_killed_leave_a_right_ledger(any_settings, monkeypatch):
    with db.session_scope(any_settings) as session:
        project = projects.create(session, "kill", budget_cad=Decimal("1.5")).uuid
    monkeypatch.setenv("AUTOVIBE_DATABASE_URL", any_settings.database_url.get_secret_value())
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(project), f"client-{number}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for victim in started[:2]:
        for _ in range(10):
            victim.stdout.readline()
        victim.kill()
    said = [process.communicate() for process in started]
    assert all("BudgetExhausted" in errors for _, errors in said[2:])
    with db.session_scope(any_settings) as session:
        left = allocations.get(session, project).reserved_amount
        reaped = budgets.reap(session, datetime.now(UTC) + timedelta(hours=1))
        budget = allocations.get(session, project)
        assert left == sum(reservation.amount_cad for reservation in reaped)
        assert budget.reserved_amount == budget.overrun_amount == 0
        assert Decimal("1.49") < budget.used_amount <= Decimal("1.5")
        assert budget.used_amount == ledger.total_cad(session, project)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "settle", "over", "release", "expire", "top_up", "charge", "late"]),
        st.decimals(min_value=LAST_DIGIT, max_value=3, places=9),
        st.integers(0, 3),
    ),
    max_size=25,
)


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_after_any_sequence_the_ledger_is_what_was_used(settings, steps):
    with Session(db.engine(settings)) as session:
        project = projects.create(session, uuid4().hex[:12] + "-p", budget_cad=Decimal(5))
        made = []
        for step, amount, which in steps:
            _step(session, project, made, step, amount, which)
            budget = allocations.get(session, project.uuid)
            held = session.scalar(
                sa.select(sa.func.coalesce(sa.func.sum(Reservation.amount_cad), 0)).where(
                    Reservation.project_uuid == project.uuid, Reservation.status == "held"
                )
            )
            assert budget.reserved_amount == held
            assert budget.used_amount == ledger.total_cad(session, project.uuid)
            assert budget.used_amount + held <= budget.allocated_amount + budget.overrun_amount
        session.rollback()


def _step(session, project, made, step, amount, which):
    target = made[which % len(made)] if made else None
    if step == "reserve":
        available = budgets.available(session, project.uuid)
        if amount <= available:
            made.append(reserve(session, project, amount))
        else:
            with pytest.raises(budgets.BudgetExhausted):
                reserve(session, project, amount)
    elif step == "top_up":
        allocations.top_up(session, project.uuid, amount)
    elif step == "charge":
        budgets.charge(session, project_uuid=project.uuid, lines=[money(amount)])
    elif target is None:
        return
    elif step in ("settle", "over", "late"):
        bill = min(amount, target.amount_cad) if step != "over" else target.amount_cad + amount
        budgets.settle(session, target.uuid, lines=[money(bill)])
    elif step == "release":
        budgets.release(session, target.uuid)
    elif step == "expire" and target.status == "held":
        target.expires_at = datetime.now(UTC) - SOON
        session.flush()
        budgets.reap(session)
