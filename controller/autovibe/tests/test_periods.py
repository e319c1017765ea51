"""Budgets of a day, a week, a month: the right period, whatever the clock does, and all of them at once."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from autovibe import allocations, budgets, db, ledger, periods, pools, projects
from autovibe.errors import Invalid
from autovibe.ledger import InvalidAmount, UsageLine
from autovibe.models import Budget, BudgetAlert, Reservation, Usage
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session

TORONTO = ZoneInfo("America/Toronto")
NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)  # a Wednesday


@pytest.fixture
def session(any_settings):
    with db.session_scope(any_settings) as open_session:
        yield open_session


@pytest.fixture
def project(session):
    return projects.create(session, "shop", budget_cad=Decimal(100), time_zone="America/Toronto")


def money(cad, key=None):
    return UsageLine("money", "claude_api", amount=Decimal(cad), cost_cad=Decimal(cad), idempotency_key=key)


def reserve(session, project, cad, at=NOON, **more):
    return budgets.reserve(
        session,
        project_uuid=project.uuid,
        amount_cad=Decimal(cad),
        holder="test",
        purpose=budgets.AI_CALL,
        expires_at=at + timedelta(minutes=5),
        at=at,
        **more,
    )


def spend(session, project, cad, at=NOON):
    budgets.settle(session, reserve(session, project, cad, at).uuid, lines=[money(cad)])


def row(session, project, period, at=NOON, resource="money"):
    found = [b for b in allocations.present(session, project.uuid, at) if b.budget_period == period]
    return next(b for b in found if b.resource_type == resource)


def limit(session, project, amount, period, at=NOON, **more):
    return allocations.set_budget(session, project.uuid, Decimal(amount), period=period, at=at, **more)


def test_the_tightest_of_all_the_budgets_decides(session, project):
    limit(session, project, 10, "monthly")
    limit(session, project, 3, "daily")
    spend(session, project, 2)
    assert budgets.available(session, project.uuid, NOON) == 1
    with pytest.raises(
        budgets.BudgetExhausted, match="The daily budget has 1 CAD left of 3 until 2026-03-05, and 2 is"
    ):
        reserve(session, project, 2)
    spend(session, project, 3, NOON + timedelta(days=1))
    spend(session, project, 3, NOON + timedelta(days=2))
    with pytest.raises(budgets.BudgetExhausted, match="The monthly budget has 2 CAD left of 10 until 2026-04-01"):
        reserve(session, project, 3, NOON + timedelta(days=3))
    assert allocations.get(session, project.uuid).used_amount == 8
    assert row(session, project, "monthly").used_amount == 8
    assert [row(session, project, "daily", NOON + timedelta(days=n)).used_amount for n in range(4)] == [2, 3, 3, 0]


def test_what_is_refused_by_one_budget_is_held_by_none(session, project):
    limit(session, project, 1, "daily")
    with pytest.raises(budgets.BudgetExhausted):
        reserve(session, project, 2)
    assert {b.reserved_amount for b in allocations.present(session, project.uuid, NOON)} == {0}
    assert session.scalar(sa.select(sa.func.count()).select_from(Reservation)) == 0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # Midnight in Toronto, in winter and in summer, and on the days on which clocks are changed.
        (datetime(2026, 1, 5, 4, 59, 59, tzinfo=UTC), datetime(2026, 1, 5, 5, tzinfo=UTC)),
        (datetime(2026, 7, 5, 3, 59, 59, tzinfo=UTC), datetime(2026, 7, 5, 4, tzinfo=UTC)),
        (datetime(2026, 3, 8, 4, 59, 59, tzinfo=UTC), datetime(2026, 3, 8, 5, tzinfo=UTC)),
        (datetime(2026, 3, 9, 3, 59, 59, tzinfo=UTC), datetime(2026, 3, 9, 4, tzinfo=UTC)),
        (datetime(2026, 11, 1, 3, 59, 59, tzinfo=UTC), datetime(2026, 11, 1, 4, tzinfo=UTC)),
        (datetime(2026, 11, 2, 4, 59, 59, tzinfo=UTC), datetime(2026, 11, 2, 5, tzinfo=UTC)),
        (datetime(2028, 2, 29, 4, 59, 59, tzinfo=UTC), datetime(2028, 2, 29, 5, tzinfo=UTC)),
        (datetime(2028, 3, 1, 4, 59, 59, tzinfo=UTC), datetime(2028, 3, 1, 5, tzinfo=UTC)),
        (datetime(2027, 1, 1, 4, 59, 59, tzinfo=UTC), datetime(2027, 1, 1, 5, tzinfo=UTC)),
    ],
)
def test_a_day_ends_at_the_projects_own_midnight(session, project, before, after):
    limit(session, project, 1, "daily", before - timedelta(days=1))
    spend(session, project, 1, before)
    with pytest.raises(budgets.BudgetExhausted):
        reserve(session, project, "0.1", before)
    spend(session, project, 1, after)
    today = row(session, project, "daily", after)
    assert (today.period_start, today.period_end) == (
        after.astimezone(TORONTO).date(),
        today.period_start + timedelta(1),
    )


@pytest.mark.parametrize(
    ("day", "month", "until"),
    [
        (date(2028, 2, 29), date(2028, 2, 1), date(2028, 3, 1)),
        (date(2027, 2, 28), date(2027, 2, 1), date(2027, 3, 1)),
        (date(2026, 12, 31), date(2026, 12, 1), date(2027, 1, 1)),
        (date(2026, 4, 30), date(2026, 4, 1), date(2026, 5, 1)),
    ],
)
def test_a_month_is_the_calendars(session, project, day, month, until):
    noon = datetime(day.year, day.month, day.day, 17, tzinfo=UTC)
    limit(session, project, 1, "monthly", noon - timedelta(days=62))
    spend(session, project, 1, noon)
    this = row(session, project, "monthly", noon)
    assert (this.period_start, this.period_end, this.used_amount) == (month, until, 1)


@pytest.mark.parametrize(
    ("week_start", "monday"), [(1, date(2026, 3, 2)), (7, date(2026, 3, 1)), (3, date(2026, 3, 4))]
)
def test_a_week_begins_on_its_day_also_weeks_later(session, project, week_start, monday):
    limit(session, project, 1, "weekly", week_start=week_start)
    assert row(session, project, "weekly").period_start == monday
    later = row(session, project, "weekly", NOON + timedelta(weeks=3))
    assert later.period_start == monday + timedelta(weeks=3)
    assert later.period_end == monday + timedelta(weeks=4)


def test_after_three_weeks_of_nobody_running_there_is_one_new_period_and_none_between(session, project):
    limit(session, project, 2, "daily")
    spend(session, project, 2)
    spend(session, project, 2, NOON + timedelta(weeks=3))
    days = [b.period_start for b in allocations.history(session, project.uuid) if b.budget_period == "daily"]
    assert days == [date(2026, 3, 25), date(2026, 3, 4)]


def test_a_clock_that_jumps_finds_the_period_it_is_in(session, project):
    limit(session, project, 2, "daily")
    spend(session, project, 1)
    spend(session, project, 1, NOON + timedelta(days=400))
    spend(session, project, 1)
    with pytest.raises(budgets.BudgetExhausted):
        reserve(session, project, 1)
    # Before its first day there was no such budget; the total one counts that day as well.
    spend(session, project, 3, NOON - timedelta(days=1))
    assert [b.budget_period for b in allocations.present(session, project.uuid, NOON - timedelta(days=1))] == ["total"]
    assert allocations.get(session, project.uuid).used_amount == 6
    assert row(session, project, "daily", NOON + timedelta(days=400)).used_amount == 1


def test_what_was_held_before_midnight_is_settled_in_its_own_day(session, project):
    limit(session, project, 2, "daily")
    held = reserve(session, project, 2)
    tomorrow = NOON + timedelta(days=1)
    spend(session, project, 1, tomorrow)
    budgets.settle(session, held.uuid, lines=[money("1.5")])
    assert [row(session, project, "daily", at).used_amount for at in (NOON, tomorrow)] == [Decimal("1.5"), 1]
    assert row(session, project, "daily").reserved_amount == 0


def test_a_budget_that_comes_later_counts_what_was_used_and_is_held(session, project):
    spend(session, project, 2)
    held = reserve(session, project, 1, counts={"api_calls": Decimal(1)})
    daily = limit(session, project, 10, "daily")
    assert (daily.used_amount, daily.reserved_amount) == (2, 1)
    calls = limit(session, project, 5, "daily", resource="api_calls")
    assert (calls.used_amount, calls.reserved_amount) == (0, 1)
    budgets.settle(session, held.uuid, lines=[money(1), UsageLine("api_calls", amount=Decimal(1), unit="count")])
    assert row(session, project, "daily").used_amount == 3
    assert row(session, project, "daily", resource="api_calls").used_amount == 1


def test_a_limit_below_what_was_used_is_exhausted_today_and_whole_tomorrow(session, project):
    spend(session, project, 5)
    limit(session, project, 3, "daily")
    assert budgets.available(session, project.uuid, NOON) == 0
    assert budgets.available(session, project.uuid, NOON + timedelta(days=1)) == 3


def test_a_top_up_holds_for_its_period_only(session, project):
    limit(session, project, 1, "daily")
    spend(session, project, 1)
    allocations.top_up(session, project.uuid, Decimal(2), period="daily", at=NOON)
    spend(session, project, 2)
    assert budgets.available(session, project.uuid, NOON + timedelta(days=1)) == 1


def test_calls_are_a_budget_too(session, project):
    limit(session, project, 2, "daily", resource="api_calls")
    for _ in range(2):
        reserve(session, project, 1, counts={"api_calls": Decimal(1)})
    with pytest.raises(budgets.CountExhausted, match="The daily budget has 0 count left of 2"):
        reserve(session, project, 1, counts={"api_calls": Decimal(1)})
    assert allocations.get(session, project.uuid).reserved_amount == 2


def test_what_cannot_be_held_is_counted_beyond_its_budget_and_freezes_nothing(session, project):
    limit(session, project, 10, "daily", resource="storage")
    lines = [UsageLine("storage", amount=Decimal(12), unit="GB_hours", cost_cad=Decimal("0.5"))]
    budgets.charge(session, project_uuid=project.uuid, lines=lines, at=NOON)
    storage = row(session, project, "daily", resource="storage")
    assert (storage.used_amount, storage.overrun_amount, storage.frozen_at) == (12, 2, None)
    assert allocations.get(session, project.uuid).used_amount == Decimal("0.5")
    reserve(session, project, 1)


def test_a_budget_without_a_next_period_ends_and_says_so(session, project):
    limit(session, project, 3, "weekly", auto_reset=False)
    with pytest.raises(budgets.NoBudget, match="The weekly budget of money has ended; set a new one"):
        reserve(session, project, 1, NOON + timedelta(weeks=1))
    limit(session, project, 3, "weekly", NOON + timedelta(weeks=1))
    reserve(session, project, 3, NOON + timedelta(weeks=1))


def stale(session, project):
    """Whether a list of projects would have rows made first."""
    asked = projects._views(frozenset({"project"}))
    return session.execute(asked, {"project": project.uuid, "limit": 1}).one().stale


@pytest.mark.parametrize("period", ["daily", "weekly", "monthly"])
def test_nothing_is_made_of_a_budget_that_has_ended_but_of_all_others(session, project, period, monkeypatch):
    locks, lock = [], periods.lock
    monkeypatch.setattr(periods, "lock", lambda *given, **how: locks.append(given) or lock(*given, **how))
    ago = datetime.now(UTC) - timedelta(days=70)
    today = periods.day_of(session, project.uuid)
    limit(session, project, 3, period, ago, auto_reset=False)
    assert periods.missing(session, project.uuid, ["money"], datetime.now(UTC))
    locks.clear()
    assert not stale(session, project)
    assert not periods.roll(session, project.uuid, today)
    periods.roll_all(session, [(project.uuid, today)])
    assert not locks
    pools.set_pool(session, Decimal(50), period=period)
    session.execute(sa.delete(Budget).where(Budget.pooled))
    assert stale(session, project)
    assert periods.roll(session, project.uuid, today)
    assert not stale(session, project)
    limit(session, project, 3, period, ago, resource="time")
    assert stale(session, project)
    periods.roll_all(session, [(project.uuid, today)])
    assert not stale(session, project)


def test_a_removed_budget_limits_nothing_and_can_be_set_again(session, project):
    limit(session, project, 1, "daily")
    spend(session, project, 1)
    allocations.remove(session, project.uuid, resource="money", period="daily")
    spend(session, project, 4)
    assert limit(session, project, 9, "daily").used_amount == 5
    assert budgets.available(session, project.uuid, NOON) == 4
    with pytest.raises(allocations.NoSuchBudget):
        allocations.remove(session, project.uuid, resource="cpu", period="daily")


def test_a_budget_that_was_removed_and_set_again_holds_in_periods_that_were_held_ahead(session, project):
    tomorrow = NOON + timedelta(days=1)
    limit(session, project, 1, "daily")
    held = reserve(session, project, "0.4", tomorrow)
    allocations.remove(session, project.uuid, resource="money", period="daily")
    budgets.settle(session, held.uuid, lines=[money("0.3")])
    limit(session, project, 3, "daily")
    assert budgets.available(session, project.uuid, tomorrow) == Decimal("2.7")
    # Another amount holds for what was begun ahead of time, too.
    reserve(session, project, 1, tomorrow)
    limit(session, project, 2, "daily")
    assert budgets.available(session, project.uuid, tomorrow) == Decimal("0.7")
    _check(session, project)


def test_a_new_week_begins_on_the_day_that_was_given_last(session, project):
    limit(session, project, 1, "weekly", NOON + timedelta(weeks=2), week_start=1)
    # A clock went back: the new one holds from here on, and no two rows lie on one day.
    limit(session, project, 2, "weekly", week_start=7)
    for days in range(0, 28, 3):
        at = NOON + timedelta(days=days)
        (week,) = [b for b in allocations.present(session, project.uuid, at) if b.budget_period == "weekly"]
        assert (week.period_start.isoweekday(), week.allocated_amount) == (7, 2)


def test_levels_are_reported_once_in_a_period(session, project):
    limit(session, project, 100, "daily", soft_percent=85)
    for _ in range(9):
        spend(session, project, 10)
    daily = row(session, project, "daily")
    said = sa.select(BudgetAlert.percent).where(BudgetAlert.budget_uuid == daily.uuid).order_by(BudgetAlert.percent)
    assert list(session.scalars(said)) == [75, 85, 90]
    spend(session, project, 10)
    assert list(session.scalars(said)) == [75, 85, 90, 100]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"amount": "NaN"}, InvalidAmount),
        ({"amount": "-1"}, InvalidAmount),
        ({"amount": "0"}, InvalidAmount),
        ({"amount": "1e30"}, InvalidAmount),
        ({"period": "hourly"}, periods.InvalidPeriod),
        ({"resource": "joy"}, Invalid),
        ({"soft_percent": 0}, Invalid),
        ({"week_start": 8}, Invalid),
    ],
)
def test_a_wrong_budget_is_refused_in_one_line(session, project, change, error):
    with pytest.raises(error) as refused:
        limit(session, project, **{"amount": "1", "period": "daily", **change})
    assert "\n" not in str(refused.value)


def test_a_time_zone_that_is_not(session):
    with pytest.raises(periods.InvalidPeriod, match="no time zone 'Mars/Olympus'"):
        projects.create(session, "far", budget_cad=Decimal(1), time_zone="Mars/Olympus")


def test_many_at_midnight_make_one_row_and_spend_no_more_than_there_is(any_settings):
    with db.session_scope(any_settings) as session:
        project = projects.create(session, "race", budget_cad=Decimal(1000))
        for period, amount in (("daily", 5), ("weekly", 20), ("monthly", 100)):
            limit(session, project, amount, period)
        limit(session, project, 7, "daily", resource="api_calls")
    barrier, made = threading.Barrier(12), []

    def client(_):
        barrier.wait()
        for number in range(12):
            at = NOON + timedelta(days=number % 4)
            try:
                with db.session_scope(any_settings) as session:
                    held = reserve(session, project, 1, at, counts={"api_calls": Decimal(1)}).uuid
                    made.append(at)
                with db.session_scope(any_settings) as session:
                    budgets.settle(
                        session, held, lines=[money("0.9"), UsageLine("api_calls", amount=Decimal(1), unit="count")]
                    )
            except budgets.BudgetExhausted:
                continue

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(client, range(12)))
    with db.session_scope(any_settings) as session:
        _check(session, project)
        rows = [
            b
            for b in allocations.history(session, project.uuid)
            if (b.resource_type, b.budget_period) == ("money", "daily")
        ]
        assert len(rows) == 4
        assert all(Decimal("4") < b.used_amount <= 5 for b in rows)


def test_a_budget_that_is_set_while_others_spend_counts_all_of_it(any_settings):
    with db.session_scope(any_settings) as session:
        project = projects.create(session, "race", budget_cad=Decimal(1000))
    done = threading.Event()

    def client(_):
        while not done.is_set():
            with db.session_scope(any_settings) as session:
                held = reserve(session, project, 1).uuid
            with db.session_scope(any_settings) as session:
                budgets.settle(session, held, lines=[money("0.9")])

    with ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(client, number) for number in range(6)]
        try:
            for _ in range(15):
                for period in ("daily", "weekly"):
                    with db.session_scope(any_settings) as session:
                        limit(session, project, 1000, period)
                        _check(session, project)
                with db.session_scope(any_settings) as session:
                    allocations.remove(session, project.uuid, resource="money", period="daily")
        finally:
            done.set()
        assert [one.exception() for one in clients] == [None] * 6
    with db.session_scope(any_settings) as session:
        _check(session, project)
        assert row(session, project, "weekly").used_amount == allocations.get(session, project.uuid).used_amount > 0


def _check(session, project):
    """What must always hold: each budget is the ledger's and the reservations' sum over its own days."""
    for budget in session.scalars(
        sa.select(Budget).where(Budget.project_uuid == project.uuid, Budget.removed_at.is_(None))
    ):
        assert (budget.used_amount, budget.reserved_amount) == (_used(session, budget), _held(session, budget))
        assert budget.used_amount + budget.reserved_amount <= budget.allocated_amount + budget.overrun_amount
        assert budget.overrun_amount == 0 or not budget.hard or budget.frozen_at is not None


def _used(session, budget):
    amount = Usage.cost_cad if budget.resource_type == "money" else Usage.amount
    mine = (
        Usage.project_uuid == budget.project_uuid,
        Usage.billing_period_start >= budget.period_start,
        Usage.billing_period_start < budget.period_end,
        sa.or_(budget.resource_type == "money", Usage.resource_type == budget.resource_type),
    )
    return session.scalar(sa.select(sa.func.coalesce(sa.func.sum(amount), 0)).where(*mine))


def _held(session, budget):
    held = sa.select(Reservation).where(Reservation.project_uuid == budget.project_uuid, Reservation.status == "held")
    rows = [r for r in session.scalars(held) if budget.period_start <= r.day < budget.period_end]
    if budget.resource_type == "money":
        return sum(r.amount_cad for r in rows)
    return sum(Decimal(r.amounts.get(budget.resource_type, 0)) for r in rows)


def test_a_period_that_a_clock_went_back_over_begins_with_what_was_used_in_it(session, project):
    tomorrow = NOON + timedelta(days=1)
    spend(session, project, 2, tomorrow)
    held = reserve(session, project, 1, tomorrow)
    limit(session, project, 4, "daily")
    assert budgets.available(session, project.uuid, tomorrow) == 1
    budgets.release(session, held.uuid)
    assert budgets.available(session, project.uuid, tomorrow) == 2
    _check(session, project)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["reserve", "reserve", "settle", "over", "release", "expire", "top_up", "charge", "set", "remove"]
        ),
        st.decimals(min_value=Decimal("1e-9"), max_value=3, places=9),
        st.integers(0, 3),
        st.sampled_from(["daily", "weekly", "monthly", "total"]),
        st.integers(-3, 40),
    ),
    max_size=25,
)


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_after_any_sequence_over_days_every_budget_is_the_sum_of_its_days(settings, steps):
    with Session(db.engine(settings)) as session:
        project = projects.create(session, uuid4().hex[:12] + "-p", budget_cad=Decimal(5))
        made = []
        for step, amount, which, period, day in steps:
            _step(session, project, made, step, amount, which, period, NOON + timedelta(days=day))
            _check(session, project)
        total = allocations.get(session, project.uuid)
        if total is not None:
            assert total.used_amount == ledger.total_cad(session, project.uuid)
        session.rollback()


def _step(session, project, made, step, amount, which, period, at):
    target = made[which % len(made)] if made else None
    if step == "reserve":
        if amount <= budgets.available(session, project.uuid, at):
            made.append(reserve(session, project, amount, at))
        else:
            with pytest.raises(budgets.BudgetExhausted):
                reserve(session, project, amount, at)
    elif step == "set":
        limit(session, project, amount, period, at)
    elif step == "remove" and period != "total":
        if any(b.budget_period == period for b in allocations.present(session, project.uuid, at)):
            allocations.remove(session, project.uuid, resource="money", period=period)
    elif step == "top_up":
        if any(b.budget_period == period for b in allocations.present(session, project.uuid, at)):
            allocations.top_up(session, project.uuid, amount, period=period, at=at)
    elif step == "charge":
        budgets.charge(session, project_uuid=project.uuid, lines=[money(amount)], at=at)
    elif target is None:
        return
    elif step in ("settle", "over"):
        bill = min(amount, target.amount_cad) if step == "settle" else target.amount_cad + amount
        budgets.settle(session, target.uuid, lines=[money(bill)])
    elif step == "release":
        budgets.release(session, target.uuid)
    elif step == "expire" and target.status == "held":
        target.expires_at = at
        session.flush()
        budgets.reap(session, at)
