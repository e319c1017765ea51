"""Web searches at the provider: what is held for a call that may make them, and what it costs in the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from types import SimpleNamespace

import httpx
import pytest
import sqlalchemy as sa
from autovibe import alerts, db
from autovibe.models import Reservation, Usage
from autovibe.tests.gateway_fixtures import Account, account, demo_model, hub, migrated, patient, request_body

MILLION = Decimal(1_000_000)
MAX_TOKENS, ALLOWED = 1000, 3
#: Sonnet 5.5's published prices: USD per million, and for one search.
DEAREST_INPUT, INPUT, OUTPUT, SEARCH = Decimal(4), Decimal(2), Decimal(10), Decimal("0.01")
#: What the dearest region multiplies the tokens' price by.
DEAREST_REGION = Decimal("1.1")
#: The provider runs the model so often at most, each time on a whole context window.
RUNS = 11


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    with (
        migrated(tmp_path_factory.mktemp("state")) as settings,
        demo_model(settings.lab_dir) as model,
        hub(settings, AUTOVIBE_WEB_SEARCHES_PER_CALL=str(ALLOWED)) as url,
    ):
        yield SimpleNamespace(settings=settings, model=model, url=url)


@pytest.fixture
def rich(site: SimpleNamespace) -> Account:
    return account(site.settings, "100")


@pytest.fixture(autouse=True)
def _no_faults(site: SimpleNamespace) -> Iterator[None]:
    yield
    site.model.ask("DELETE", "/lab/faults")


def ask(site: SimpleNamespace, who: Account, times: int, **fields: object) -> httpx.Response:
    """A call that searches so many times."""
    tool = {"type": "web_search_20250305", "name": "web_search", "max_uses": fields.pop("max_uses", ALLOWED)}
    body = request_body(f"Search the web {times} times for news", tools=[tool], **fields)
    response = patient.post(f"{site.url}/v1/messages", json=body, headers=who.headers)
    who.settled()
    return response


def bound(rate: Decimal) -> Decimal:
    usd = RUNS * (DEAREST_INPUT + OUTPUT * MAX_TOKENS / MILLION) * DEAREST_REGION + ALLOWED * SEARCH
    return (usd * rate).quantize(Decimal("1e-9"), rounding="ROUND_CEILING")


def cost(usage: dict, searches: int, rate: Decimal) -> Decimal:
    usd = (INPUT * usage["input_tokens"] + OUTPUT * usage["output_tokens"]) / MILLION + searches * SEARCH
    return (usd * rate).quantize(Decimal("1e-9"), rounding="ROUND_CEILING")


def held_for(who: Account) -> Decimal:
    """What was reserved for its last call."""
    mine = sa.select(Reservation.amount_cad).where(Reservation.project_uuid == who.project)
    with db.session_scope(who.settings) as session:
        return session.scalars(mine.order_by(Reservation.created_at.desc())).first()


def line_of(who: Account) -> Usage:
    (line,) = who.lines()
    return line


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_held_at_its_bound_and_settled_by_the_providers_count(site, rich, stream):
    response = ask(site, rich, 2, stream=stream)
    assert response.status_code == 200
    assert response.text.count("web_search_tool_result") == 2
    billed, line = site.model.bill()[-1]["usage"], line_of(rich)
    assert billed["server_tool_use"] == {"web_search_requests": 2}
    assert held_for(rich) == bound(line.exchange_rate)
    assert line.cost_cad == cost(billed, 2, line.exchange_rate) == rich.budget().used_amount
    assert (line.metadata_["basis"], line.metadata_["tokens"]["web_searches"]) == ("usage", 2)
    assert (rich.budget().reserved_amount, rich.budget().frozen_at) == (0, None)


def test_a_conversation_with_results_in_it_goes_on(site, rich):
    first = ask(site, rich, 1)
    again = request_body()["messages"] + [{"role": "assistant", "content": json.loads(first.text)["content"]}]
    again.append({"role": "user", "content": "Search the web 3 times for more"})
    assert ask(site, rich, 1, messages=again).status_code == 200
    assert [line.metadata_["tokens"]["web_searches"] for line in rich.lines()] == [1, 3]


def test_a_search_beyond_the_calls_own_limit_is_an_error_that_costs_nothing(site, rich):
    response = ask(site, rich, 3, max_uses=1)
    assert response.text.count("max_uses_exceeded") == 2
    assert line_of(rich).metadata_["tokens"]["web_searches"] == 1


@pytest.mark.parametrize("stream", [False, True])
def test_more_searches_than_were_allowed_are_paid_as_the_provider_counts_them(site, rich, stream):
    site.model.fault("usage", usage={"server_tool_use": {"web_search_requests": ALLOWED + 1}})
    ask(site, rich, 2, stream=stream)
    line = line_of(rich)
    assert line.cost_cad == cost(site.model.bill()[-1]["usage"], ALLOWED + 1, line.exchange_rate)
    assert rich.budget().frozen_at is None


@pytest.mark.parametrize("stream", [False, True])
def test_a_bill_above_the_bound_is_booked_whole_freezes_and_raises_an_alarm(site, rich, stream):
    site.model.fault("usage", usage={"server_tool_use": {"web_search_requests": 10_000}})
    assert ask(site, rich, 2, stream=stream).status_code == 200
    budget, line = rich.budget(), line_of(rich)
    assert line.cost_cad == budget.used_amount > bound(line.exchange_rate)
    assert (budget.frozen_at is not None, budget.overrun_amount) == (True, budget.used_amount - 100)
    with db.session_scope(site.settings) as session:
        raised = [one for one in alerts.views(session, rich.project) if one["kind"] == "frozen"]
    assert "was billed more than it held" in raised[0]["reason"]
    assert ask(site, rich, 1).status_code == 402


@pytest.mark.parametrize("stream", [False, True])
def test_a_report_without_searches_is_one_of_none(site, rich, stream):
    site.model.fault("usage", usage={"server_tool_use": None})
    ask(site, rich, 2, stream=stream)
    line = line_of(rich)
    assert line.cost_cad == cost(site.model.bill()[-1]["usage"], 0, line.exchange_rate)


@pytest.mark.parametrize(
    "reported", [{"web_search_requests": -1}, {"web_search_requests": "2"}, {"code_execution_requests": 1}, [], 2, ""]
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_report_that_is_not_understood_is_settled_at_the_bound(site, rich, stream, reported):
    site.model.fault("usage", usage={"server_tool_use": reported})
    assert ask(site, rich, 2, stream=stream).status_code == 200
    line = line_of(rich)
    assert (line.metadata_["basis"], line.cost_cad) == ("bound", bound(line.exchange_rate))


def test_a_stream_that_breaks_off_is_settled_at_the_bound(site, rich):
    site.model.fault("cut", after_events=4)
    with pytest.raises(httpx.RemoteProtocolError):
        ask(site, rich, 2, stream=True)
    rich.settled()
    line = line_of(rich)
    assert (line.metadata_["basis"], line.cost_cad) == ("bound", bound(line.exchange_rate))


def test_without_the_money_for_the_bound_nothing_is_forwarded(site):
    poor, calls = account(site.settings, "20"), len(site.model.bill())
    assert ask(site, poor, 1).status_code == 402
    assert (len(site.model.bill()), poor.lines()) == (calls, [])


def test_every_run_of_the_model_may_write_as_much_as_the_call_names(site, rich):
    """What the provider bills then is within what was held."""
    usage = {"input_tokens": RUNS * 1_000_000, "output_tokens": RUNS * MAX_TOKENS}
    site.model.fault("usage", usage=usage | {"server_tool_use": {"web_search_requests": ALLOWED}})
    assert ask(site, rich, 1).status_code == 200
    line = line_of(rich)
    assert line.cost_cad == cost(usage, ALLOWED, line.exchange_rate) <= held_for(rich)
    assert rich.budget().frozen_at is None
