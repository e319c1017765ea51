"""An agent's own figures are kept beside the gateway's, and said when they are larger."""

from decimal import Decimal

import pytest
from autovibe import budgets, crosscheck, db, ledger, machines
from autovibe.ledger import UsageLine
from autovibe.tests import world


@pytest.fixture
def session(settings):
    with db.session_scope(settings) as session:
        world.template(session)
        yield session


@pytest.fixture
def machine(session, settings):
    """Its calls were billed 100 tokens of input, 20 of output, 7 written to the cache."""
    project = world.project(session)
    made = machines.spawn(session, settings, project=project, prompt="work")
    for tokens in ({"input": 60, "output": 20}, {"input": 40, "cache_write_5m": 3, "cache_write_1h": 4}):
        cost = Decimal("0.01")
        line = UsageLine("money", "claude_api", amount=cost, cost_cad=cost, metadata={"model": "m", "tokens": tokens})
        budgets.charge(session, project_uuid=project.uuid, machine_uuid=made.uuid, lines=[line])
    return made


def says(session, machine, **usage):
    machine.result = {"details": {"usage": usage}}
    return crosscheck.compare(session, machine)


def test_the_same_and_less_are_kept_and_no_wonder(session, machine):
    assert says(session, machine, input_tokens=100, output_tokens=5, cache_creation_input_tokens=7) is None
    assert machine.resource_usage == {
        "reported_tokens": {"input_tokens": 100, "output_tokens": 5, "cache_creation_input_tokens": 7},
        "billed_tokens": {"input_tokens": 100, "output_tokens": 20, "cache_creation_input_tokens": 7},
    }


def test_more_than_was_billed_is_said_and_not_booked(session, machine):
    before = ledger.total_cad(session, machine.project_uuid)
    said = says(session, machine, input_tokens=101, output_tokens=20)
    assert said == "Its agent reports more than the gateway has billed: input_tokens 101, billed 100"
    assert ledger.total_cad(session, machine.project_uuid) == before


@pytest.mark.parametrize(
    "result", [{}, {"details": None}, {"details": {"usage": [1]}}, {"details": {"usage": {"a": 1}}}]
)
def test_an_agent_that_says_nothing_is_believed(session, machine, result):
    machine.result = result
    assert crosscheck.compare(session, machine) is None


def test_nonsense_is_no_figure(session, machine):
    assert says(session, machine, input_tokens=-5, output_tokens="many") is None
