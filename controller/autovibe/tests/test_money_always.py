"""Whatever happens in whatever order, to whatever process: the money is right, to the last digit.

Random sequences of everything that moves money, by threads and by processes that are killed in the middle; after them
what must always hold is asked of the database itself.
"""

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
import sqlalchemy as sa
from autovibe import allocations, budgets, db, ledger, months, periods, pools, projects
from autovibe.errors import AutovibeError
from autovibe.ledger import Entry, UsageLine
from autovibe.models import Budget, Reservation
from autovibe.tests.test_ledger import in_month
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
OLD_MONTHS = [date(2025, month, 1) for month in (9, 10, 11, 12)]
NANO = Decimal("1e-9")
#: (what is wrong, the rows that show it); the rows that break invariants 1 to 3.
WRONG = {
    "more is used and held than there is": """
        SELECT * FROM resource_budgets WHERE used_amount + reserved_amount > allocated_amount + overrun_amount
           OR (hard AND overrun_amount > 0 AND frozen_at IS NULL)""",
    "a budget has not used what its days' lines say": """
        SELECT b.budget_period, b.resource_type, b.pooled, b.period_start, b.used_amount, s.used
        FROM resource_budgets b, LATERAL (
            SELECT coalesce(sum(CASE b.resource_type WHEN 'money' THEN cost_cad ELSE amount END), 0) AS used
            FROM resource_usage u WHERE u.project_uuid = b.project_uuid
              AND u.billing_period_start >= b.period_start AND u.billing_period_start < b.period_end
              AND (b.resource_type = 'money' OR u.resource_type = b.resource_type)) s
        WHERE b.removed_at IS NULL AND b.used_amount <> s.used""",
    "a budget does not hold what its days' reservations do": """
        SELECT b.budget_period, b.resource_type, b.pooled, b.period_start, b.reserved_amount, s.held
        FROM resource_budgets b, LATERAL (
            SELECT held_on(b.project_uuid, b.resource_type, b.period_start, b.period_end) AS held) s
        WHERE b.removed_at IS NULL AND b.reserved_amount <> s.held""",
    "the sums by day are not those of the lines": """
        (SELECT project_uuid, billing_period_start AS day, resource_type, sum(amount), coalesce(sum(cost_cad), 0)
         FROM resource_usage GROUP BY 1, 2, 3)
        EXCEPT
        (SELECT project_uuid, day, resource_type, sum(amount), sum(cad) FROM usage_by_day GROUP BY 1, 2, 3)""",
    "a pool has lent more than it has": """
        SELECT b.budget_period, b.period_start, sum(b.allocated_amount) FROM resource_budgets b
        JOIN budget_pools p USING (resource_type, budget_period)
        WHERE b.pooled AND b.removed_at IS NULL AND p.removed_at IS NULL
        GROUP BY 1, 2, p.amount
        HAVING sum(b.allocated_amount)
               > greatest(p.amount, sum(b.used_amount + b.reserved_amount - b.overrun_amount))""",
    "a key has no line, or a line counted twice": """
        SELECT k.idempotency_key FROM usage_keys k LEFT JOIN resource_usage u ON u.uuid = k.usage_uuid
        WHERE k.idempotency_key NOT LIKE 'old/%'
        GROUP BY 1 HAVING count(u.uuid) <> 1""",
}


def check(session):
    # A pool that came when more than it has was held lends that until it is shared again.
    for pool in pools.all_of(session):
        mine = (Budget.pooled, Budget.resource_type == pool.resource_type, Budget.budget_period == pool.budget_period)
        for start in session.scalars(sa.select(Budget.period_start).where(*mine).distinct()).all():
            pools.share(session, pool, start)
    for what, rows in WRONG.items():
        found = session.execute(sa.text(rows)).all()
        assert not found, (what, found)


def line(cad, key=None, kind="money"):
    unit = periods.UNITS[kind]
    return UsageLine(kind, "test", amount=cad, unit=unit, cost_cad=cad, idempotency_key=key)


def step(session, owners, draw):
    """One of all the things that move money; what is refused changes nothing."""
    owner, at = draw.choice(owners), NOON + timedelta(days=draw.randint(-2, 40), hours=draw.randint(0, 23))
    amount = Decimal(draw.randint(1, 4 * 10**9)) * NANO
    what = draw.choice(STEPS)
    if what == "reserve":
        budgets.reserve(
            session, project_uuid=owner, amount_cad=amount, holder="test", purpose=budgets.AI_CALL,
            counts={"api_calls": Decimal(1)}, expires_at=at + timedelta(minutes=5), at=at,
        )  # fmt: skip
    elif what in ("settle", "over", "release"):
        held = sa.select(Reservation).where(Reservation.project_uuid == owner).order_by(sa.func.random()).limit(1)
        target = session.scalars(held).first()
        if target is None:
            return
        if what == "release":
            budgets.release(session, target.uuid)
        else:
            bill = target.amount_cad + amount if what == "over" else min(amount, target.amount_cad)
            budgets.settle(session, target.uuid, lines=[line(bill, f"{target.uuid}:{what}")])
    elif what == "reap":
        budgets.reap(session, at, limit=5)
    elif what == "bulk":
        kinds = ("money", "cpu", "storage")
        lines = [line(amount, f"bulk/{draw.randint(0, 60)}", draw.choice(kinds)) for _ in range(6)]
        ledger.write_many(session, [Entry(draw.choice(owners), one, at=at) for one in lines])
    elif what == "charge":
        budgets.charge(session, project_uuid=owner, lines=[line(amount), line(amount, None, "cpu")], at=at)
    elif what == "top up":
        allocations.top_up(session, owner, amount, period=draw.choice(("total", "daily", "monthly")), at=at)
    elif what == "set":
        allocations.set_budget(session, owner, amount * 10, period=draw.choice(("daily", "weekly", "monthly")), at=at)
    elif what == "remove":
        allocations.remove(session, owner, resource="money", period=draw.choice(("daily", "weekly", "monthly")))
    elif what == "pool":
        # Always as much: what another amount changes is the present period's.
        pools.set_pool(session, Decimal(40), period=draw.choice(pools.PERIODS), at=at)
    elif what == "unpool":
        pools.remove(session, period=draw.choice(pools.PERIODS))
    elif what == "share":
        pools.share_all(session, at)
    elif what == "claim":
        budgets.available(session, owner, at)
    elif what == "add up":
        session.execute(sa.text("SELECT compact_usage_sums()"))
    elif what == "detach":
        months.detach(session, draw.choice(OLD_MONTHS))


STEPS = ["reserve"] * 6 + ["settle"] * 4 + ["over", "release", "reap", "bulk", "bulk", "charge", "top up", "set"]
STEPS += ["remove", "pool", "unpool", "share", "share", "claim", "add up", "detach"]


def world(session, count=3):
    return [
        projects.create(session, f"p{number}", budget_cad=Decimal(40), greediness=Decimal(number + 1) / 10).uuid
        for number in range(count)
    ]


def limited_world(settings):
    """Projects with old lines, and budgets of all periods, and pools, from before the first day."""
    first = NOON - timedelta(days=40)
    with db.session_scope(settings) as session:
        owners = world(session)
        moments = [datetime(month.year, month.month, 3 + n, tzinfo=UTC) for month in OLD_MONTHS for n in range(3)]
        old = [(owner, at, line(NANO * 10**8, f"old/{owner}/{at}")) for at in moments for owner in owners]
        in_month(session, [(owner, None, at, one) for owner, at, one in old])
        for owner in owners:
            for period, amount in (("daily", 9), ("weekly", 20), ("monthly", 30)):
                allocations.set_budget(session, owner, Decimal(amount), period=period, at=first)
        for period, amount in (("daily", 15), ("monthly", 60)):
            pools.set_pool(session, Decimal(amount), period=period, at=first)
    return owners


@hypothesis_settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.integers(1, 40))
def test_after_any_sequence_the_money_is_right(settings, seed, count):
    draw = random.Random(seed)
    with Session(db.engine(settings)) as session:
        owners = world(session)
        for _ in range(count):
            try:
                with session.begin_nested():
                    step(session, owners, draw)
            except AutovibeError:
                session.expire_all()
        check(session)
        session.rollback()


def _many(settings, owners, seed, turns):
    draw = random.Random(seed)
    for _ in range(turns):
        try:
            db.transact(settings, lambda session: step(session, owners, draw))
        except AutovibeError:
            continue


def test_after_what_many_threads_did_the_money_is_right(any_settings):
    owners = limited_world(any_settings)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda seed: _many(any_settings, owners, seed, 25), range(6)))
    with db.session_scope(any_settings) as session:
        check(session)


WORK = """
import sys, uuid
from autovibe.settings import load_settings
from autovibe.tests.test_money_always import _many
_many(load_settings(), [uuid.UUID(owner) for owner in sys.argv[2:]], int(sys.argv[1]), 10**6)
"""


def test_after_processes_were_killed_the_money_is_right_and_every_reservation_ends(settings):
    owners = limited_world(settings)
    environment = os.environ | {"AUTOVIBE_DATABASE_URL": settings.database_url.get_secret_value()}
    for round_ in range(2):
        workers = [
            subprocess.Popen([sys.executable, "-c", WORK, str(round_ * 10 + n), *map(str, owners)], env=environment)
            for n in range(3)
        ]
        try:
            _until_busy(settings, 40 * (round_ + 1))
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    with db.session_scope(settings) as session:
        check(session)
        budgets.reap(session, NOON + timedelta(days=400))
        check(session)
        assert session.scalar(sa.select(sa.func.count()).where(Reservation.status == "held")) == 0


def _until_busy(settings, lines):
    """Wait until so many lines were written."""
    from autovibe.tests.gateway_fixtures import wait_for

    def busy():
        with db.session_scope(settings) as session:
            return session.scalar(sa.text("SELECT count(*) FROM resource_usage")) >= lines

    wait_for(busy, f"{lines} lines", 120)


def test_a_check_that_finds_nothing_wrong_would_find_it(settings):
    with db.session_scope(settings) as session:
        owners = world(session)
        budgets.charge(session, project_uuid=owners[0], lines=[line(Decimal(1), "k")], at=NOON)
        check(session)
        session.execute(sa.text("UPDATE resource_budgets SET used_amount = used_amount + 0.000000001"))
        with pytest.raises(AssertionError, match="days' lines say"):
            check(session)
        session.rollback()
