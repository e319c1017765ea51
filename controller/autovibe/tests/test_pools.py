"""Pools: shared by greediness, lent on and taken back, never more than there is, and never what somebody holds."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
import sqlalchemy as sa
from autovibe import allocations, budgets, db, periods, pools, projects
from autovibe.cli import pool as cli_pool
from autovibe.errors import Invalid
from autovibe.fairshare import Member, shares
from autovibe.ledger import QUANTUM, InvalidAmount, UsageLine
from autovibe.models import Budget, Machine
from autovibe.tests.test_cli import command  # noqa: F401 - a fixture
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
AMOUNTS = st.decimals(min_value=0, max_value=1000, places=9)
MEMBERS = st.builds(
    Member,
    committed=AMOUNTS,
    greediness=st.decimals(min_value=0, max_value=1, places=2),
    active=st.booleans(),
    debt=st.sampled_from([Decimal(0), Decimal(0), Decimal("12.5")]),
    floor=st.sampled_from([Decimal(0), Decimal(50)]),
    cap=st.none() | st.decimals(min_value=50, max_value=500, places=9),
)


@hypothesis_settings(max_examples=400, deadline=None)
@given(AMOUNTS, st.lists(MEMBERS, max_size=8))
def test_a_pool_is_shared_within_its_bounds(amount, members):
    found = shares(amount, members)
    committed = sum(member.committed for member in members)
    assert sum(found) <= max(amount, committed)
    for share, member in zip(found, members, strict=True):
        assert share >= member.committed
        assert share == share.quantize(QUANTUM)
        if member.cap is not None:
            assert share <= max(member.cap, member.committed + member.debt, member.floor)
        if not member.active:
            assert share <= max(member.committed + member.debt, member.floor)
    # Nothing is left over while somebody active could have it.
    room = [
        s for s, m in zip(found, members, strict=True) if m.active and m.greediness and (m.cap is None or s < m.cap)
    ]
    if room:
        assert sum(found) >= amount - Decimal("1e-8")
    # Floors are kept when there is enough for all of them.
    if committed + sum(m.debt + max(0, m.floor - m.committed - m.debt) for m in members) <= amount:
        assert all(share >= m.floor for share, m in zip(found, members, strict=True))


@hypothesis_settings(max_examples=200, deadline=None)
@given(AMOUNTS, st.lists(st.decimals(min_value=Decimal("0.01"), max_value=1, places=2), min_size=1, max_size=8))
def test_those_who_have_spent_nothing_share_by_their_greediness(amount, greedy):
    found = shares(amount, [Member(Decimal(0), one, True) for one in greedy])
    for share, one in zip(found, greedy, strict=True):
        assert 0 <= Fraction(amount) * Fraction(one) / Fraction(sum(greedy)) - Fraction(share) < Fraction(QUANTUM)


@pytest.fixture
def session(any_settings):
    with db.session_scope(any_settings) as open_session:
        yield open_session


def project(session, name, greediness="0.5", running=True):
    made = projects.create(session, name, budget_cad=Decimal(10**6), greediness=Decimal(greediness))
    if running:
        session.add(Machine(name="m", machine_type="command", project_uuid=made.uuid, status="working"))
        session.flush()
    return made


def share_of(session, owner, at=NOON, period="daily"):
    rows = allocations.present(session, owner.uuid, at)
    return next(row for row in rows if row.pooled and row.budget_period == period)


def reserve(session, owner, cad, at=NOON):
    return budgets.reserve(
        session,
        project_uuid=owner.uuid,
        amount_cad=Decimal(cad),
        holder="test",
        purpose=budgets.AI_CALL,
        expires_at=at + timedelta(minutes=5),
        at=at,
    )


def spend(session, owner, cad, at=NOON):
    line = UsageLine("money", amount=Decimal(cad), cost_cad=Decimal(cad))
    budgets.settle(session, reserve(session, owner, cad, at).uuid, lines=[line])


def check(session, amount=100):
    """Of each pool and period the shares are no more than the pool, and nobody has more than its share."""
    sums = sa.select(sa.func.sum(Budget.allocated_amount)).where(Budget.pooled, Budget.removed_at.is_(None))
    for total in session.scalars(sums.group_by(Budget.budget_period, Budget.period_start)):
        assert total <= amount


def end(session, owner):
    session.execute(sa.update(Machine).where(Machine.project_uuid == owner.uuid).values(status="terminated"))


def test_a_pool_is_shared_lent_on_and_taken_back(session):
    big, small = project(session, "big", "0.75"), project(session, "small", "0.25", running=False)
    pools.set_pool(session, Decimal(100), period="daily", at=NOON)
    assert (share_of(session, big).allocated_amount, share_of(session, small).allocated_amount) == (100, 0)
    spend(session, big, 60)
    # The idle one comes: it takes back its quarter.
    assert budgets.available(session, small.uuid, NOON) == 25
    spend(session, small, 25)
    assert share_of(session, big).allocated_amount == 75
    with pytest.raises(budgets.BudgetExhausted, match="share of the daily pool has 0 CAD left of 25"):
        reserve(session, small, 1)
    # The big one ends: what it leaves is lent on, what it has spent is not.
    end(session, big)
    pools.share_all(session, NOON)
    spend(session, small, 15)
    with pytest.raises(budgets.BudgetExhausted):
        reserve(session, small, "0.01")
    check(session)
    # The next day begins anew, without any job.
    tomorrow = NOON + timedelta(days=1)
    spend(session, small, 70, tomorrow)
    assert budgets.available(session, big.uuid, tomorrow) == 30
    check(session)


def test_what_is_held_is_taken_from_nobody(session):
    first, late = project(session, "first", running=False), project(session, "late", running=False)
    pools.set_pool(session, Decimal(100), period="daily", at=NOON)
    held = reserve(session, first, 90)
    assert budgets.available(session, late.uuid, NOON) == 10
    budgets.release(session, held.uuid)
    assert budgets.available(session, late.uuid, NOON) == 100
    check(session)


def test_floors_and_caps(session):
    safe, capped = project(session, "safe", "0.1", running=False), project(session, "capped", "0.9")
    pools.set_pool(session, Decimal(100), period="daily", at=NOON)
    pools.limit(session, safe.uuid, period="daily", floor=Decimal(30), at=NOON)
    assert budgets.available(session, capped.uuid, NOON) == 70
    pools.limit(session, capped.uuid, period="daily", cap=Decimal(40), at=NOON)
    assert budgets.available(session, capped.uuid, NOON) == 40
    with pytest.raises(Invalid, match="The floors would be 110, more than the pool's 100"):
        pools.limit(session, capped.uuid, period="daily", floor=Decimal(80), at=NOON)
    with pytest.raises(Invalid, match="cap 1 is below the floor 2"):
        pools.limit(session, capped.uuid, period="daily", floor=Decimal(2), cap=Decimal(1), at=NOON)


def test_a_projects_own_budget_holds_beside_its_share(session):
    owner = project(session, "both")
    allocations.set_budget(session, owner.uuid, Decimal(5), period="daily", at=NOON)
    pools.set_pool(session, Decimal(100), period="daily", at=NOON)
    assert budgets.available(session, owner.uuid, NOON) == 5
    allocations.set_budget(session, owner.uuid, Decimal(500), period="daily", at=NOON)
    assert budgets.available(session, owner.uuid, NOON) == 100
    allocations.top_up(session, owner.uuid, Decimal(1), period="daily", at=NOON)
    assert share_of(session, owner).allocated_amount == 100


def test_a_pool_that_comes_later_counts_what_was_used_and_one_that_goes_limits_nothing(session):
    spent, fresh = project(session, "spent"), project(session, "fresh")
    spend(session, spent, 80)
    reserve(session, spent, 10)
    pools.set_pool(session, Decimal(100), period="daily", at=NOON)
    row = share_of(session, spent)
    assert (row.used_amount, row.reserved_amount, row.allocated_amount) == (80, 10, 90)
    assert budgets.available(session, fresh.uuid, NOON) == 10
    pools.set_pool(session, Decimal(50), period="daily", at=NOON)
    assert budgets.available(session, fresh.uuid, NOON) == 0
    pools.remove(session, period="daily")
    spend(session, fresh, 500)
    pools.set_pool(session, Decimal(1000), period="daily", at=NOON)
    assert share_of(session, fresh).used_amount == 500
    assert share_of(session, spent).used_amount == 80
    with pytest.raises(pools.NoSuchPool):
        pools.remove(session, period="weekly")


def test_a_project_that_is_made_later_has_a_share_too(session):
    project(session, "old")
    pools.set_pool(session, Decimal(100), period="weekly", at=NOON)
    new = project(session, "new")
    spend(session, new, 50)
    with pytest.raises(budgets.BudgetExhausted, match="weekly pool"):
        reserve(session, new, 1)
    assert share_of(session, new, period="weekly").period_start == date(2026, 3, 2)
    check(session)


def test_an_overrun_is_paid_by_the_pool_as_far_as_it_reaches(session):
    owner = project(session, "over")
    other = project(session, "other")
    pools.set_pool(session, Decimal(100), period="daily", at=NOON)
    line = UsageLine("money", amount=Decimal(70), cost_cad=Decimal(70))
    budgets.charge(session, project_uuid=owner.uuid, lines=[line], at=NOON)
    assert share_of(session, owner).frozen_at is not None
    pools.share_all(session, NOON)
    row = share_of(session, owner)
    assert (row.allocated_amount, row.overrun_amount, row.frozen_at) == (70, 0, None)
    assert budgets.available(session, other.uuid, NOON) == 30
    budgets.charge(session, project_uuid=owner.uuid, lines=[line], at=NOON)
    pools.share_all(session, NOON)
    row = share_of(session, owner)
    assert (row.allocated_amount, row.overrun_amount) == (100, 40)
    assert row.frozen_at is not None
    check(session)


def test_who_has_taken_most_is_paused_first_then_the_least_greedy_then_the_youngest(session):
    owners = [project(session, name, greediness) for name, greediness in (("a", "0.8"), ("b", "0.2"), ("c", "0.5"))]
    early = datetime(2026, 3, 1, tzinfo=UTC)
    young = Machine(name="young", machine_type="command", project_uuid=owners[0].uuid, status="working")
    session.add(young)
    session.flush()
    session.execute(sa.update(Machine).values(spawned_at=early))
    session.execute(sa.update(Machine).where(Machine.uuid == young.uuid).values(spawned_at=early + timedelta(hours=1)))
    session.expire_all()
    order = [one.project_uuid for one in pools.preemption_order(session, NOON)]
    assert order == [owners[1].uuid, owners[2].uuid, owners[0].uuid, owners[0].uuid]
    assert pools.preemption_order(session, NOON)[2].machine_uuid == young.uuid
    pools.set_pool(session, Decimal(150), period="daily", at=NOON)
    spend(session, owners[2], 45)
    order = pools.preemption_order(session, NOON)
    assert (order[0].project_uuid, order[0].above) == (owners[2].uuid, Decimal("0.9"))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"amount": "NaN"}, InvalidAmount),
        ({"amount": "0"}, InvalidAmount),
        ({"amount": "-1"}, InvalidAmount),
        ({"amount": "1e30"}, InvalidAmount),
        ({"period": "total"}, periods.InvalidPeriod),
        ({"resource": "storage"}, Invalid),
    ],
)
def test_a_wrong_pool_is_refused_in_one_line(session, change, error):
    values = {"amount": "1", "period": "daily", **change}
    with pytest.raises(error) as refused:
        pools.set_pool(session, Decimal(values.pop("amount")), **values)
    assert "\n" not in str(refused.value)


def test_many_who_spend_at_once_never_wait_for_ever_and_never_spend_more_than_the_pool(any_settings):
    with db.session_scope(any_settings) as session:
        owners = [project(session, f"p{n}", f"0.{n + 1}", running=n % 2 == 0) for n in range(6)]
        pools.set_pool(session, Decimal(60), period="daily", at=NOON)
        pools.set_pool(session, Decimal(100), period="monthly", at=NOON)
    barrier, done = threading.Barrier(9), threading.Event()

    def sharer():
        barrier.wait()
        while not done.is_set():
            with db.session_scope(any_settings) as session:
                pools.share_all(session, NOON)

    def client(number):
        barrier.wait()
        for turn in range(15):
            owner, at = owners[(number + turn) % 6], NOON + timedelta(days=turn // 8)
            try:
                with db.session_scope(any_settings) as session:
                    held = reserve(session, owner, Decimal(1 + (number * turn) % 3), at).uuid
            except budgets.BudgetExhausted:
                continue
            with db.session_scope(any_settings) as session:
                if turn % 4 == 3:
                    budgets.release(session, held)
                else:
                    line = UsageLine("money", amount=Decimal("0.9"), cost_cad=Decimal("0.9"))
                    budgets.settle(session, held, lines=[line])

    with ThreadPoolExecutor(9) as pool:
        sharing = pool.submit(sharer)
        clients = [pool.submit(client, number) for number in range(8)]
        try:
            for each in clients:
                each.result()
        finally:
            done.set()
        sharing.result()
    with db.session_scope(any_settings) as session:
        pools.share_all(session, NOON)
        daily = Budget.budget_period == "daily"
        sums = sa.select(sa.func.sum(Budget.allocated_amount), sa.func.sum(Budget.used_amount))
        for allocated, used in session.execute(sums.where(Budget.pooled, daily).group_by(Budget.period_start)):
            assert used <= allocated <= 60
        check(session)
        assert session.scalar(sa.select(sa.func.sum(Budget.used_amount)).where(Budget.pooled, daily)) > 50


def test_pools_by_command(command, settings):  # noqa: F811
    with db.session_scope(settings) as session:
        project(session, "shop")
    code, said, _ = command("pool", "set", "100", "--period", "daily")
    assert (code, said.splitlines()[0]) == (0, "Daily pool of money: 100 CAD.")
    assert command("pool", "limit", "shop", "--period", "daily", "--floor", "5", "--cap", "50")[0] == 0
    shown = json.loads(command("pool", "show", "--json")[1])
    assert [(row["project"], Decimal(row["share"])) for row in shown[0]["shares"]] == [("shop", 50)]
    assert "daily pool" in command("budget", "show", "shop")[1]
    for arguments, said in (
        (("set", "100"), "period"),
        (("set", "nan", "--period", "daily"), "not a number"),
        (("limit", "shop", "--period", "weekly"), "There is no weekly pool of money"),
        (("limit", "nope", "--period", "daily"), "no project nope"),
    ):
        code, _, error = command("pool", *arguments)
        assert code in (1, 2)
        assert said in error
        assert "Traceback" not in error
    assert command("pool", "remove", "--period", "daily")[0] == 0
    assert "No pools" in command("pool", "show")[1]
    assert cli_pool.PERIODS == pools.PERIODS
