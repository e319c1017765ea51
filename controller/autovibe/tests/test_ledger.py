"""The ledger in bulk: lines of many projects at once, sums that always equal their lines, months that are put away."""

import csv
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import pytest
import sqlalchemy as sa
from autovibe import allocations, budgets, db, ledger, months, projects, reports
from autovibe.ledger import Entry, InvalidAmount, InvalidLine, UsageLine
from autovibe.models import Budget, Checkpoint, Machine, Usage, UsageKey
from sqlalchemy.exc import DBAPIError

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
SUMS = """
SELECT project_uuid, day, machine_uuid, resource_type, resource_subtype, model, sum(lines)::bigint AS lines,
       sum(amount) AS amount, sum(cad) AS cad, sum(usd) AS usd, sum(input_tokens)::bigint AS input,
       sum(output_tokens)::bigint AS output
FROM usage_by_day GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 2, 3, 4, 5, 6
"""
LINES = """
SELECT project_uuid, billing_period_start AS day, machine_uuid, resource_type, resource_subtype,
       metadata ->> 'model' AS model, sum(coalesce((metadata ->> 'lines')::bigint, 1))::bigint AS lines,
       sum(amount) AS amount, coalesce(sum(cost_cad), 0) AS cad,
       coalesce(sum(cost) FILTER (WHERE currency = 'USD'), 0) AS usd,
       coalesce(sum((metadata #>> '{tokens,input}')::bigint), 0)::bigint AS input,
       coalesce(sum((metadata #>> '{tokens,output}')::bigint), 0)::bigint AS output
FROM resource_usage GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 2, 3, 4, 5, 6
"""


@pytest.fixture
def session(any_settings):
    with db.session_scope(any_settings) as open_session:
        yield open_session


@pytest.fixture
def shop(session):
    return projects.create(session, "shop", budget_cad=Decimal(100), time_zone="America/Toronto")


def machine_of(session, project, name="m"):
    made = Machine(name=name, machine_type="command", project_uuid=project.uuid)
    session.add(made)
    session.flush()
    return made


def cpu(hours, cad=None, key=None, **more):
    cost = None if cad is None else Decimal(cad)
    return UsageLine("cpu", "vm", Decimal(hours), "core_hours", cost_cad=cost, idempotency_key=key, **more)


def book(session, many, project, lines, machine=None):
    """In bulk, or as one charge."""
    if many:
        ledger.write_many(session, [Entry(project.uuid, line, machine) for line in lines])
    else:
        budgets.charge(session, project_uuid=project.uuid, machine_uuid=machine, lines=lines)


def check_sums(session):
    """The sums by day are those of the lines, and each budget has used what the lines of its days say."""
    assert session.execute(sa.text(SUMS)).all() == session.execute(sa.text(LINES)).all()
    wrong = sa.text("""
        SELECT b.budget_period, b.resource_type, b.used_amount, s.used FROM resource_budgets b, LATERAL (
            SELECT coalesce(sum(CASE b.resource_type WHEN 'money' THEN cost_cad ELSE amount END), 0) AS used
            FROM resource_usage u WHERE u.project_uuid = b.project_uuid
              AND u.billing_period_start >= b.period_start AND u.billing_period_start < b.period_end
              AND (b.resource_type = 'money' OR u.resource_type = b.resource_type)) s
        WHERE b.used_amount <> s.used AND b.removed_at IS NULL""")
    assert session.execute(wrong).all() == []


def test_lines_of_many_projects_are_written_at_once(session, shop):
    other = projects.create(session, "other", budget_cad=Decimal(50))
    bare = projects.create(session, "bare", budget_cad=Decimal(1))
    allocations.remove(session, bare.uuid, resource="money", period="total")
    allocations.set_budget(session, shop.uuid, Decimal(10), period="daily", at=NOON)
    allocations.set_budget(session, shop.uuid, Decimal(1), resource="cpu", period="daily", at=NOON)
    machine = machine_of(session, shop)
    entries = [
        Entry(shop.uuid, cpu("0.5", "0.25", "a"), machine.uuid, NOON),
        Entry(shop.uuid, cpu("0.75", "0.5", "b"), machine.uuid, NOON),
        Entry(shop.uuid, cpu("2", "1", "c"), machine.uuid, NOON + timedelta(days=1)),
        Entry(shop.uuid, cpu("2", "1", "a"), machine.uuid, NOON),
        Entry(other.uuid, UsageLine("network", amount=Decimal(3), unit="GB"), at=NOON),
        Entry(bare.uuid, cpu(1, "0.125"), at=NOON),
    ]
    booked = {one.project_uuid: one for one in ledger.write_many(session, entries)}
    assert (booked[shop.uuid].lines, booked[shop.uuid].cad) == (3, Decimal("1.75"))
    assert (booked[other.uuid].lines, booked[other.uuid].cad) == (1, 0)
    assert [booked[p.uuid].has_budget for p in (shop, other, bare)] == [True, True, False]
    by_day = {(b.resource_type, b.budget_period, b.period_start): b for b in allocations.history(session, shop.uuid)}
    assert by_day["money", "daily", NOON.date()].used_amount == Decimal("0.75")
    assert by_day["money", "daily", date(2026, 3, 5)].used_amount == 1
    assert by_day["cpu", "daily", NOON.date()].overrun_amount == Decimal("0.25")
    assert allocations.get(session, shop.uuid).used_amount == Decimal("1.75")
    assert ledger.write_many(session, entries[:4]) == []
    assert ledger.write_many(session, []) == []
    check_sums(session)


def test_lines_hold_whatever_their_texts_are(session, shop):
    hard = ['a"b', "a\\b", "{a,b}", "NULL", "", " a ", "\n\t", "é…😀", "'; --", '\\"']
    machine = machine_of(session, shop)
    lines = [
        UsageLine("cpu", t, Decimal("1e-9"), "core_hours", Decimal("1E+1"), idempotency_key=t, metadata={t: [t]})
        for t in hard
    ]
    bare = UsageLine("time", amount=Decimal(2), unit="hours")
    ledger.write_many(session, [Entry(shop.uuid, line, machine.uuid) for line in lines] + [Entry(shop.uuid, bare)])
    found = {line.resource_subtype: line for line in session.scalars(sa.select(Usage))}
    assert set(found) == {*hard, None}
    for text in hard:
        line = found[text]
        assert (line.metadata_, line.amount, line.cost_cad) == ({text: [text]}, Decimal("1e-9"), 10)
        assert line.machine_uuid == machine.uuid
    assert (found[None].metadata_, found[None].machine_uuid, found[None].cost_cad) == ({}, None, None)
    assert set(session.scalars(sa.select(UsageKey.idempotency_key))) == set(hard)
    check_sums(session)


def test_a_report_that_was_counted_in_part_adds_the_rest(session, shop):
    machine = machine_of(session, shop)
    entries = [Entry(shop.uuid, cpu(1, 1, str(n)), machine.uuid) for n in range(50)]
    ledger.write_many(session, entries[10:20])
    # One in it twice, and one without a key.
    again = [*entries, entries[30], Entry(shop.uuid, cpu(1, 1), machine.uuid)]
    assert ledger.write_many(session, again)[0].lines == 41
    assert allocations.get(session, shop.uuid).used_amount == 51
    assert session.scalar(sa.select(sa.func.count()).select_from(UsageKey)) == 50
    check_sums(session)


def test_a_day_is_the_projects_own(session, shop):
    ledger.write_many(session, [Entry(shop.uuid, cpu(1, 1), at=datetime(2026, 3, 5, 4, 59, tzinfo=UTC))])
    assert session.scalar(sa.select(Usage.billing_period_start)) == date(2026, 3, 4)


def test_beyond_a_hard_budget_it_is_an_overrun_that_freezes_and_is_said(session, shop):
    booked = ledger.write_many(session, [Entry(shop.uuid, cpu(1, 150))])
    assert booked[0].froze == ("total budget of money",)
    total = allocations.get(session, shop.uuid)
    assert (total.used_amount, total.overrun_amount) == (150, 50)
    assert total.freeze_reason == "150 CAD were billed that nobody had reserved"
    assert ledger.write_many(session, [Entry(shop.uuid, cpu(1, 1))])[0].froze == ()
    assert allocations.get(session, shop.uuid).overrun_amount == 51


@pytest.mark.parametrize(
    ("line", "error", "said"),
    [
        (cpu("NaN"), InvalidAmount, "not a number"),
        (cpu(-1), InvalidAmount, "at least 0"),
        (cpu(1, "-0.5"), InvalidAmount, "at least 0"),
        (cpu("1e20"), InvalidAmount, "too large"),
        (cpu("1e-10"), InvalidAmount, "more than nine decimals"),
        (cpu(1, "Infinity"), InvalidAmount, "not a number"),
        (UsageLine("cpu", amount=1.5, unit="core_hours"), InvalidAmount, "not float"),
        (UsageLine("joy", amount=Decimal(1)), InvalidLine, "not 'joy'"),
        (UsageLine("cpu", amount=Decimal(1), unit="GB"), InvalidAmount, "counted in core_hours, not GB"),
        (UsageLine("money", cost=Decimal(1), currency="doubloons"), InvalidLine, "'doubloons' is not a currency"),
        (UsageLine("money", cost=Decimal(1), currency="ZZZ"), InvalidLine, "A cost in ZZZ needs its exchange rate"),
        (cpu(1, price_uuid=uuid4()), InvalidLine, "a price that does not exist"),
    ],
)
@pytest.mark.parametrize("many", [True, False])
def test_a_wrong_line_is_refused_in_one_line(settings, line, error, said, many):
    with db.session_scope(settings) as session:
        project = projects.create(session, "shop", budget_cad=Decimal(100))
        with pytest.raises(error, match=said) as refused:
            book(session, many, project, [cpu(1), line])
        assert "\n" not in str(refused.value)
        session.rollback()


@pytest.mark.parametrize("many", [True, False])
def test_a_report_for_anothers_machine_is_refused(session, shop, many):
    machine = machine_of(session, projects.create(session, "other", budget_cad=Decimal(50)))
    with pytest.raises(InvalidLine, match="not one of its project's"), session.begin_nested():
        book(session, many, shop, [cpu(1)], machine.uuid)
    with pytest.raises(InvalidLine, match="There is no project"):
        ledger.write_many(session, [Entry(uuid4(), cpu(1))])
    assert session.scalar(sa.select(sa.func.count()).select_from(Usage)) == 0


@pytest.mark.parametrize("amount", ["4.9E-8", "-4.9E-8", "1E+2", "-1E+2", "0.5", "-0.5"])
def test_a_correction_of_any_size_goes_either_way(amount):
    ledger.check(UsageLine("money", "correction", Decimal(amount), cost_cad=Decimal(amount)))


def test_a_correction_takes_back_and_no_more_than_there_was(session, shop):
    ledger.write_many(session, [Entry(shop.uuid, cpu(2, 3))])
    back = UsageLine("cpu", "correction", Decimal(-1), "core_hours", cost_cad=Decimal(-2))
    ledger.write_many(session, [Entry(shop.uuid, back)])
    assert allocations.get(session, shop.uuid).used_amount == 1
    with pytest.raises(InvalidLine, match="takes back more than was used"), session.begin_nested():
        ledger.write_many(session, [Entry(shop.uuid, back)])
    check_sums(session)
    negative = sa.insert(Usage).values(project_uuid=shop.uuid, resource_type="cpu", amount=-1, unit="core_hours")
    with pytest.raises(DBAPIError, match="negative_is_correction"), session.begin_nested():
        session.execute(negative)


def test_many_writers_of_the_same_reports_count_each_once(any_settings):
    with db.session_scope(any_settings) as session:
        owners = [projects.create(session, f"p{n}", budget_cad=Decimal(10**6)).uuid for n in range(4)]
        for owner in owners:
            allocations.set_budget(session, owner, Decimal(10**6), period="daily")
    barrier = threading.Barrier(8)

    def writer(number):
        barrier.wait()
        for turn in range(10):
            at = NOON + timedelta(days=turn % 3)
            entries = [Entry(owners[n % 4], cpu(1, "0.5", f"{turn}/{n}"), at=at) for n in range(40)]
            with db.session_scope(any_settings) as session:
                ledger.write_many(session, entries if number % 2 else entries[::-1])
            with db.session_scope(any_settings) as session:
                if number == 0:
                    session.execute(sa.text("SELECT compact_usage_sums()"))
                budgets.charge(session, project_uuid=owners[turn % 4], lines=[cpu(1, "0.5", f"{turn}/{turn}")], at=at)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(writer, range(8)))
    with db.session_scope(any_settings) as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Usage)) == 400
        check_sums(session)


def test_a_line_that_is_put_into_a_partition_directly_is_summed_too(session, shop):
    ledger.write_many(session, [Entry(shop.uuid, cpu(1, 1))])
    partition = session.scalar(sa.text("SELECT tableoid::regclass::text FROM resource_usage"))
    session.execute(
        sa.text(f"""INSERT INTO {partition} (project_uuid, resource_type, amount, unit, billing_period_start)
                    VALUES (:project, 'time', 1, 'hours', current_date)"""),  # noqa: S608
        {"project": shop.uuid},
    )
    assert session.execute(sa.text(SUMS)).all() == session.execute(sa.text(LINES)).all()


# Months


def in_month(session, lines, month="2026-01"):
    """Put lines into the ledger as they stood in a month that is over: (project, machine, day, time, line)."""
    for project, machine, moment, line in lines:
        budgets.charge(session, project_uuid=project, machine_uuid=machine, lines=[line], at=moment)
    session.execute(sa.text("ALTER TABLE resource_usage DISABLE TRIGGER refuse_usage_change"))
    for _, _, moment, line in lines:
        session.execute(
            sa.text("UPDATE resource_usage SET recorded_at = :at WHERE uuid = "
                    "(SELECT usage_uuid FROM usage_keys WHERE idempotency_key = :key)"),
            {"at": moment, "key": line.idempotency_key},
        )  # fmt: skip
    session.execute(sa.text("ALTER TABLE resource_usage ENABLE TRIGGER refuse_usage_change"))
    session.execute(sa.text("SELECT ensure_usage_partitions(1)"))


def call(cad, key, model="claude-x", **tokens):
    usd = Decimal(cad)
    return UsageLine(
        "money", "claude_api", usd, "USD", usd, "USD", usd, Decimal(1), date(2026, 1, 1), None, key,
        {"model": model, "tokens": tokens},
    )  # fmt: skip


@pytest.fixture
def january(session, shop):
    """Lines of January 2026, of two machines with checkpoints between them."""
    allocations.set_budget(session, shop.uuid, Decimal(50), period="monthly", at=datetime(2026, 1, 1, 12, tzinfo=UTC))
    machines = [machine_of(session, shop, name) for name in ("one", "two")]
    parent, lines = None, []
    for place, machine in enumerate(machines):
        for hour in range(4):
            moment = datetime(2026, 1, 10 + place, 10 + hour, tzinfo=UTC)
            lines.append((shop.uuid, machine.uuid, moment, call("1.5", f"{place}/{hour}/a", input=100, output=7)))
            lines.append((shop.uuid, machine.uuid, moment, call("0.25", f"{place}/{hour}/b", "claude-y", output=1)))
            lines.append((shop.uuid, machine.uuid, moment, cpu("0.125", "0.0625", f"{place}/{hour}/c")))
        for hour in (11, 12):
            made = Checkpoint(
                project_uuid=shop.uuid, checkpoint_type="automatic", parent_checkpoint_uuid=parent,
                creating_machine_uuid=machine.uuid, created_at=datetime(2026, 1, 10 + place, hour, 30, tzinfo=UTC),
            )  # fmt: skip
            session.add(made)
            session.flush()
            parent = made.uuid
    in_month(session, lines)
    return date(2026, 1, 1)


def everything(session, project):
    """All that a report or a budget says."""
    checkpoints = session.scalars(sa.select(Checkpoint.uuid).order_by(Checkpoint.created_at)).all()
    whole = (date(2025, 1, 1), date(2027, 1, 1))
    return {
        "sums": {by: reports.sums(session, by) for by in reports.GROUPS},
        "models": ledger.by_model(session, project),
        "checkpoints": [reports.checkpoint_cost(session, one) for one in checkpoints],
        "total": ledger.total_cad(session, project),
        "used": [session.scalar(sa.select(sa.func.used_on(project, kind, *whole))) for kind in ("money", "cpu")],
        "budgets": session.execute(sa.select(Budget.uuid, Budget.used_amount).order_by(Budget.uuid)).all(),
        "by day": session.execute(sa.text(SUMS)).all(),
    }


def test_a_month_is_put_away_and_every_sum_holds(session, shop, january):
    before = everything(session, shop.uuid)
    assert [cost > 0 for cost in before["checkpoints"]] == [True] * 4
    assert len(set(before["checkpoints"])) == 4
    done = months.detach(session, january)
    assert (done["lines"], done["table"]) == (24, "resource_usage_2026_01_lines")
    assert done["balance_lines"] == 2 * 3 * 3  # machines, kinds, and the stretches that checkpoints make
    assert everything(session, shop.uuid) == before
    check_sums(session)
    for table in (done["table"], "resource_usage_2026_01"):
        for statement in ("UPDATE {} SET amount = 0", "DELETE FROM {}", "TRUNCATE {}"):
            with pytest.raises(DBAPIError, match="append-only"), session.begin_nested():
                session.execute(sa.text(statement.format(table)))
    with pytest.raises(months.AlreadyDetached):
        months.detach(session, january)
    assert session.scalar(sa.text("SELECT ensure_usage_partitions(1)")) == 0


def test_a_replayed_report_of_a_month_that_was_put_away_still_counts_once(session, shop, january):
    months.detach(session, january)
    again = Entry(shop.uuid, cpu("0.125", "0.0625", "0/0/c"), at=datetime(2026, 1, 10, 10, tzinfo=UTC))
    assert ledger.write_many(session, [again]) == []


def test_a_months_lines_go_to_a_file_and_are_gone(session, shop, january, tmp_path):
    before, file = everything(session, shop.uuid), tmp_path / "january.csv"
    done = months.detach(session, january, file)
    rows = list(csv.DictReader(file.open()))
    assert len(rows) == done["lines"] == 24
    assert sum(Decimal(row["cost_cad"]) for row in rows) == before["total"]
    assert file.stat().st_mode & 0o777 == 0o600
    assert session.scalar(sa.text("SELECT to_regclass('resource_usage_2026_01_lines')")) is None
    assert everything(session, shop.uuid) == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_exists_is_not_touched_and_the_month_stays(session, shop, january, tmp_path):
    file = tmp_path / "january.csv"
    file.write_text("mine")
    with pytest.raises(months.NotWritten, match="exists already"), session.begin_nested():
        months.detach(session, january, file)
    with pytest.raises(months.NotWritten, match="cannot be written"), session.begin_nested():
        months.detach(session, january, tmp_path / "nowhere" / "january.csv")
    assert file.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [file]
    assert months.detach(session, january)["lines"] == 24


# A process that is killed at the first call of this function, before or after it is done.
DETACH = """
import os, signal, sys
from datetime import date
from pathlib import Path
from autovibe import db, months
from autovibe.settings import load_settings

def deadly(owner, name, late):
    true = getattr(owner, name)
    def call(*args, **values):
        if late:
            true(*args, **values)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, name, call)

where, file = sys.argv[1:]
settings = load_settings()
with db.session_scope(settings) as session:
    if where == "copied":
        deadly(os, "fsync", False)
    elif where == "named":
        deadly(os, "link", True)
    elif where == "committing":
        deadly(session, "commit", False)
        deadly(session.get_transaction(), "commit", False)
    months.detach(session, date(2026, 1, 1), Path(file))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("where", ["copied", "named", "committing", "committed"])
def test_who_is_killed_while_a_month_is_put_away_loses_nothing_and_can_ask_again(settings, tmp_path, where):
    file = tmp_path / "january.csv"
    with db.session_scope(settings) as session:
        shop = projects.create(session, "shop", budget_cad=Decimal(100))
        lines = [(shop.uuid, None, datetime(2026, 1, day, tzinfo=UTC), cpu(1, "0.5", f"k{day}")) for day in range(1, 9)]
        in_month(session, lines)
    environment = os.environ | {"AUTOVIBE_DATABASE_URL": settings.database_url.get_secret_value()}
    killed = subprocess.run([sys.executable, "-c", DETACH, where, str(file)], env=environment, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    with db.session_scope(settings) as session:
        left = session.scalar(sa.select(sa.func.count()).select_from(Usage))
        assert left == (1 if where == "committed" else 8) or left == 8
        if where == "committed":
            with pytest.raises(months.AlreadyDetached):
                months.detach(session, date(2026, 1, 1), file)
        else:
            assert left == 8
            assert months.detach(session, date(2026, 1, 1), file)["lines"] == 8
        assert ledger.total_cad(session, shop.uuid) == 4
        check_sums(session)
    assert sum(Decimal(row["cost_cad"]) for row in csv.DictReader(file.open())) == 4
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("text", ["2026", "2026-13", "January", "", "2026-01-01", "２０２６-01x"])
def test_what_is_not_a_month(text):
    with pytest.raises(months.InvalidMonth, match="is not a month"):
        months.parse(text)


def test_a_month_that_is_not_over_or_not_there_is_refused(session, shop):
    this = datetime.now(UTC).date().replace(day=1)
    for month in (this, (this + timedelta(days=40)).replace(day=1)):
        with pytest.raises(months.InvalidMonth, match="is not over"):
            months.detach(session, month)
    with pytest.raises(months.InvalidMonth, match="no lines of 2001-01"):
        months.detach(session, date(2001, 1, 1))
