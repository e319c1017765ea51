"""`autovibe budget` and the sums of `autovibe usage`, as a person uses them."""

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from autovibe import allocations, budgets, db, periods, projects, reports
from autovibe.cli import budget as cli_budget
from autovibe.cli import usage as cli_usage
from autovibe.ledger import UsageLine
from autovibe.models import Checkpoint, Machine
from autovibe.tests.test_cli import command  # noqa: F401 - a fixture


@pytest.fixture
def shop(settings):
    with db.session_scope(settings) as session:
        return projects.create(session, "shop", budget_cad=Decimal(100)).uuid


def spend(settings, project, cad, model="claude-x", **more):
    with db.session_scope(settings) as session:
        line = UsageLine("money", amount=Decimal(cad), cost_cad=Decimal(cad), metadata={"model": model})
        budgets.charge(session, project_uuid=project, lines=[line], **more)


def test_budgets_are_set_shown_topped_up_and_removed(command, shop):  # noqa: F811
    code, said, _ = command("budget", "set", "shop", "3", "--period", "daily")
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).date()
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
        (("set", "nope", "5"), 1, "no project 'nope'"),
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
    assert set(cli_usage.GROUPS) == set(reports.GROUPS)


def test_alerts_are_listed(command, settings, shop):  # noqa: F811
    assert command("budget", "alerts")[1] == "No alerts.\n"
    spend(settings, shop, 76)
    assert "75" in command("budget", "alerts", "shop")[1]


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
    since = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
    assert len(json.loads(command("usage", "--by", "day", "--since", since, "--json")[1])) == 1
    assert "█" in command("usage", "--by", "project")[1]
    code, _, error = command("usage", "--csv")
    assert (code, "--csv need --by" in error) == (2, True)


def test_the_day_on_which_money_runs_out(settings, shop):
    with db.session_scope(settings) as session:
        budget = allocations.present(session, shop)[0]
        assert reports.runs_out(session, budget) is None
    for days in range(4):
        spend(settings, shop, 20, at=datetime.now(UTC) - timedelta(days=days))
    with db.session_scope(settings) as session:
        budget = allocations.present(session, shop)[0]
        assert reports.runs_out(session, budget) == (datetime.now(UTC) + timedelta(days=1)).date()


def test_a_checkpoint_cost_what_its_ancestors_did(settings, shop):
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
