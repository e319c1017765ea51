"""`autovibe budget` and the sums of `autovibe usage`, as a person uses them."""

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from autovibe import allocations, budgets, db, ledger, periods, projects, reports
from autovibe.cli import budget as cli_budget
from autovibe.cli import usage as cli_usage
from autovibe.ledger import Entry, UsageLine
from autovibe.models import Checkpoint, Machine
from autovibe.tests.test_cli import command  # noqa: F401 - a fixture
from autovibe.tests.world import morning


@pytest.fixture
def shop(settings):
    with db.session_scope(settings) as session:
        return projects.create(session, "shop", budget_cad=Decimal(100), time_zone=morning()).uuid


def day_of(settings, project):
    with db.session_scope(settings) as session:
        return periods.day_of(session, project)


def spend(settings, project, cad, model="claude-x", **more):
    with db.session_scope(settings) as session:
        line = UsageLine("money", amount=Decimal(cad), cost_cad=Decimal(cad), metadata={"model": model})
        budgets.charge(session, project_uuid=project, lines=[line], **more)


def test_budgets_are_set_shown_topped_up_and_removed(command, settings, shop):  # noqa: F811
    code, said, _ = command("budget", "set", "shop", "3", "--period", "daily")
    tomorrow = day_of(settings, shop) + timedelta(days=1)
    assert (code, said) == (0, f"Daily budget of money: 3 CAD until {tomorrow}, 3 left.\n")
    assert command("budget", "set", "shop", "500", "--period", "weekly", "--resource", "api_calls")[0] == 0
    code, said, _ = command("budget", "top-up", "shop", "2", "--period", "daily")
    assert said == f"Daily budget of money: 5 CAD until {tomorrow}, 5 left. The next period begins with 3.\n"
    rows = json.loads(command("budget", "show", "shop", "--json")[1])
    assert [(row["resource"], row["period"], row["allocated"]) for row in rows] == [
        ("money", "total", "100.000000000"),
        ("money", "daily", "5.000000000"),
        ("api_calls", "weekly", "500.000000000"),
    ]
    assert "daily" in command("budget", "history", "shop")[1]
    assert command("budget", "remove", "shop", "--period", "daily")[0] == 0
    spend(settings, shop, 60)
    said = command("budget", "set", "shop", "10")[1]
    assert said == "Total budget of money: 60 CAD, 0 left. That is used or held already, beyond 10.\n"
    said = command("budget", "top-up", "shop", "5")[1]
    assert said == "Total budget of money: 65 CAD, 5 left.\n"
    assert "daily" not in command("budget", "show", "shop")[1]


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("set", "shop", "-1"), 2, "No such option"),
        (("set", "shop", "0"), 2, "above 0"),
        (("set", "shop", "NaN"), 2, "not a number"),
        (("set", "shop", "1e30"), 2, "too large"),
        (("set", "shop", "5", "--period", "hourly"), 2, "hourly"),
        (("set", "shop", "5", "--resource", "joy"), 2, "joy"),
        (("set", "nope", "5"), 1, "no project nope"),
        (("top-up", "shop", "5", "--period", "daily"), 1, "no daily budget of money"),
        (("remove", "shop", "--resource", "cpu"), 1, "no total budget of cpu"),
    ],
)
def test_nonsense_is_one_line(command, shop, arguments, code, error):  # noqa: F811
    got, said, wrong = command("budget", *arguments)
    assert (got, said) == (code, "")
    assert error in wrong
    assert len(wrong.strip().splitlines()) <= 2
    assert "Traceback" not in wrong


def test_the_choices_are_those_that_there_are():
    assert (tuple(periods.UNITS), periods.PERIODS) == (cli_budget.RESOURCES, cli_budget.PERIODS)
    assert set(cli_usage.GROUPS) == {*reports.GROUPS, "checkpoint"}


def test_alerts_are_listed(command, settings, shop):  # noqa: F811
    assert command("budget", "alerts")[1] == "No alerts.\n"
    spend(settings, shop, 76)
    assert "75 %" in command("budget", "alerts", "shop")[1]
    with db.session_scope(settings) as session:
        budgets.charge(
            session, project_uuid=shop, lines=[UsageLine("money", amount=Decimal(999), cost_cad=Decimal(999))]
        )
    assert "frozen: 999 CAD were billed that nobody had reserved" in command("budget", "alerts")[1]


def test_usage_is_summed_and_exported(command, settings, shop):  # noqa: F811
    spend(settings, shop, 2, "big")
    spend(settings, shop, 1, "small")
    spend(settings, shop, "0.5", "small", at=datetime.now(UTC) - timedelta(days=3))
    rows = json.loads(command("usage", "shop", "--by", "model", "--json")[1])
    assert [(row["model"], row["lines"], Decimal(row["cad"])) for row in rows] == [
        ("big", 1, 2),
        ("small", 2, Decimal("1.5")),
    ]
    table = list(csv.reader(io.StringIO(command("usage", "--by", "day", "--csv")[1])))
    assert [row[3] for row in table] == ["cad", "0.5", "3"]
    since = (day_of(settings, shop) - timedelta(days=1)).isoformat()
    assert len(json.loads(command("usage", "--by", "day", "--since", since, "--json")[1])) == 1
    assert "█" in command("usage", "--by", "project")[1]
    code, _, error = command("usage", "--since", since)
    assert (code, "--since needs --by" in error) == (2, True)


def test_the_lines_are_exported_and_a_models_name_is_no_formula(command, settings, shop):  # noqa: F811
    assert command("usage", "--csv")[1].startswith("recorded_at,project,machine,")
    spend(settings, shop, 1, '=HYPERLINK("http://x")')
    spend(settings, shop, "0.25", "plain")
    rows = list(csv.DictReader(io.StringIO(command("usage", "shop", "--csv")[1])))
    assert [(row["model"], row["cost_cad"], row["unit"]) for row in rows] == [
        ('\'=HYPERLINK("http://x")', "1", "CAD"),
        ("plain", "0.25", "CAD"),
    ]
    assert datetime.fromisoformat(rows[0]["recorded_at"]).tzinfo
    assert json.loads(rows[1]["metadata"]) == {"model": "plain"}
    assert len(command("usage", "--csv", "--last", "1")[1].splitlines()) == 2
    assert "'=HYPERLINK" in command("usage", "--by", "model", "--csv")[1]


def test_all_lines_are_exported_in_their_order_unless_it_is_said_how_many(command, settings, shop):  # noqa: F811
    """More than a page has, many of them of one moment."""
    with db.session_scope(settings) as session:
        entries = [
            Entry(shop, UsageLine("money", amount=Decimal(cents) / 10000, cost_cad=Decimal(cents) / 10000))
            for cents in range(1, 1206)
        ]
        ledger.write_many(session, entries)
    spend(settings, shop, 1)

    def amounts(*args):
        return [row["amount"] for row in csv.DictReader(io.StringIO(command("usage", "--csv", *args)[1]))]

    exported = amounts()
    assert (len(set(exported)), len(exported), exported[-1]) == (1206, 1206, "1")
    assert amounts("shop") == exported
    assert amounts("--last", "700") == exported[-700:]
    assert len(json.loads(command("usage", "--json")[1])["lines"]) == 50


def test_the_day_on_which_money_runs_out(settings, shop):
    with db.session_scope(settings) as session:
        budget = allocations.present(session, shop)[0]
        assert reports.runs_out(session, budget) is None
    for days in range(4):
        spend(settings, shop, 20, at=datetime.now(UTC) - timedelta(days=days))
    with db.session_scope(settings) as session:
        budget = allocations.present(session, shop)[0]
        assert reports.runs_out(session, budget) == day_of(settings, shop) + timedelta(days=1)


def test_neither_a_clock_that_was_ahead_nor_a_correction_makes_money_run_out(settings, shop):
    spend(settings, shop, 5, at=datetime.now(UTC) + timedelta(days=2))
    with db.session_scope(settings) as session:
        assert reports.runs_out(session, allocations.present(session, shop)[0]) is None
        budgets.charge(session, project_uuid=shop, lines=[UsageLine("cpu", "c", Decimal(1), "core_hours", Decimal(1))])
        back = UsageLine("cpu", "correction", Decimal(-1), "core_hours", Decimal(-3))
        budgets.charge(session, project_uuid=shop, lines=[back])
        assert reports.runs_out(session, allocations.present(session, shop)[0]) is None


def test_a_share_of_a_pool_is_not_used_up_before_the_pool_is(command, shop):  # noqa: F811
    assert command("pool", "set", "20", "--period", "daily")[0] == 0
    share = next(line for line in command("budget", "show", "shop")[1].splitlines() if "daily pool" in line)
    assert "takes more of the pool when asked" in share
    rows = json.loads(command("budget", "show", "shop", "--json")[1])
    assert [row["runs_out"] for row in rows if row["pooled"]] == [None]


def test_a_top_up_beyond_all_numbers_is_one_line(command, shop):  # noqa: F811
    most = "999999999999999"
    code, _, error = command("budget", "top-up", "shop", most)
    assert (code, f"The budget of 100 and {most} are too much together" in error) == (2, True)
    assert json.loads(command("budget", "show", "shop", "--json")[1])[0]["allocated"] == "100.000000000"


def test_a_checkpoint_cost_what_its_ancestors_did(command, settings, shop):  # noqa: F811
    with db.session_scope(settings) as session:
        machines = [Machine(name=name, machine_type="command", project_uuid=shop) for name in "abc"]
        session.add_all(machines)
        session.flush()
        parent = None
        for machine in machines[:2]:
            made = Checkpoint(
                project_uuid=shop,
                checkpoint_type="final",
                creating_machine_uuid=machine.uuid,
                parent_checkpoint_uuid=parent,
            )
            session.add(made)
            session.flush()
            parent = made.uuid
        for machine, cad in zip(machines, (1, 2, 4), strict=True):
            line = UsageLine("money", amount=Decimal(cad), cost_cad=Decimal(cad))
            budgets.charge(session, project_uuid=shop, machine_uuid=machine.uuid, lines=[line])
        assert reports.checkpoint_cost(session, parent) == 3
        assert reports.checkpoint_cost(session, made.parent_checkpoint_uuid) == 1
    rows = json.loads(command("usage", "shop", "--by", "checkpoint", "--json")[1])
    assert sorted((row["machine"], Decimal(row["since_the_last"]), Decimal(row["cad"])) for row in rows) == [
        ("a", 1, 1),
        ("b", 2, 3),
    ]
    assert "since_the_last" in command("usage", "--by", "checkpoint", "--csv")[1]
    assert command("usage", "--by", "checkpoint", "--since", "2199-01-01")[1] == "Nothing was used yet.\n"


def test_a_month_is_detached_by_command(command, settings, shop):  # noqa: F811
    for month, said in (("2026-13", "not a month"), ("1999-01", "no lines of 1999-01"), ("2199-01", "is not over")):
        code, _, error = command("db", "detach-month", month)
        assert (code != 0, said in error, "Traceback" in error) == (True, True, False)


def test_a_rate_and_the_prices_by_command(command, settings):  # noqa: F811
    assert command("rate", "set", "1.45")[1] == "1 USD is 1.45 CAD (manual).\n"
    assert json.loads(command("rate", "show", "--last", "1", "--json")[1])[0]["source"] == "manual"
    code, _, error = command("rate", "set", "1.45", "--from", "dollars")
    assert (code, "not a currency" in error) == (2, True)
    rows = json.loads(command("price", "list", "opus-5-5", "--json")[1])
    assert [(row["model"], row["input"]) for row in rows] == [("claude-opus-5-5", "4.000000000")]
    assert "No prices." in command("price", "list", "no-such-model")[1]
