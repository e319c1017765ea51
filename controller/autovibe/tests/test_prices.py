"""What a call costs, to the last digit."""

from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
import sqlalchemy as sa
from autovibe import db, prices, rates
from autovibe.models import ExchangeRate, Price
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

DAY = date(2026, 11, 1)


@pytest.fixture
def session(settings):
    with db.session_scope(settings) as open_session:
        rates.set_manual(open_session, "USD", "CAD", Decimal("1.25"), DAY)
        yield open_session


def usd(session, model, usage, at=DAY):
    return prices.cost(prices.tariff(session, model, at), usage).usd


@pytest.mark.parametrize(
    ("model", "expected"),
    [("claude-opus-5-5", "37.20"), ("claude-sonnet-5-5", "18.60"), ("claude-haiku-5-5", "4.675")],
)
def test_a_million_of_everything(session, model, expected):
    usage = {
        "input_tokens": 10**6,
        "output_tokens": 10**6,
        "cache_read_input_tokens": 10**6,
        "cache_creation_input_tokens": 2 * 10**6,
        "cache_creation": {"ephemeral_5m_input_tokens": 10**6, "ephemeral_1h_input_tokens": 10**6},
    }
    assert usd(session, model, usage) == Decimal(expected)


def test_a_long_prompt_costs_more_on_every_token(session):
    def haiku(**usage):
        return usd(session, "claude-haiku-5-5", {"output_tokens": 1000, **usage})

    assert haiku(input_tokens=100_000) == Decimal("0.0105")
    assert haiku(input_tokens=99_999, cache_read_input_tokens=2) == Decimal("0.0524996")
    assert haiku(input_tokens=100_001) == Decimal("0.0525005")


def test_cad_follows_the_rate_and_is_rounded_up(session):
    rates.set_manual(session, "USD", "CAD", Decimal("1.396885070"), date(2026, 11, 2))
    cost = prices.cost(prices.tariff(session, "claude-haiku-5-5", date(2026, 11, 5)), {"input_tokens": 1})
    assert (cost.usd, cost.cad) == (Decimal("1.00e-7"), Decimal("1.40e-7"))
    assert (cost.rate, cost.rate_date, cost.rate_source) == (Decimal("1.396885070"), date(2026, 11, 2), "manual")
    assert cost.price_uuid in session.scalars(sa.select(Price.uuid).where(Price.model == "claude-haiku-5-5")).all()


def test_cache_writes_without_a_lifetime_are_the_default_and_with_an_unknown_one_the_dearest(session):
    assert usd(session, "claude-opus-5-5", {"cache_creation_input_tokens": 10**6}) == 5
    split = {"cache_creation_input_tokens": 10**6, "cache_creation": {"ephemeral_2h_input_tokens": 10**6}}
    assert usd(session, "claude-opus-5-5", split) == 8


def test_inference_held_to_the_us_costs_a_tenth_more(session):
    usage = {"input_tokens": 10**6, "inference_geo": "us", "service_tier": "standard"}
    assert usd(session, "claude-opus-5-5", usage) == Decimal("4.4")
    assert usd(session, "claude-opus-5-5", usage | {"inference_geo": "not_available"}) == 4


@pytest.mark.parametrize(
    ("sent", "known"),
    [
        ("claude-sonnet-5-5-20260901", "claude-sonnet-5-5"),
        ("claude-opus-5.5", "claude-opus-5-5"),
        ("anthropic/claude-haiku-5-5", "claude-haiku-5-5"),
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "claude-sonnet-4-5"),
        ("claude-sonnet-4-5@20250929", "claude-sonnet-4-5"),
        ("claude-sonnet-5-5[1m]", "claude-sonnet-5-5"),
        ("claude-3-5-haiku-latest", "claude-3-5-haiku"),
        ("claude-sonnet-4-20250514", "claude-sonnet-4-0"),
        ("Claude-Opus-4-6", "claude-opus-4-6"),
    ],
)
def test_a_model_is_known_by_the_names_that_clients_send(session, sent, known):
    assert prices.tiers_of(session, sent, DAY)[0].model == known


@pytest.mark.parametrize("model", ["claude-opus-9", "claude-opus-5-5-fast", "gpt-5", "", "claude-opus-5-55"])
def test_an_unknown_model_is_never_free(session, model):
    with pytest.raises(prices.UnknownModel):
        prices.cost(prices.tariff(session, model, DAY), {"input_tokens": 1})
    with pytest.raises(prices.UnknownModel):
        prices.upper_bound(prices.tariff(session, model, DAY), input_tokens_max=1, max_tokens=1)


def test_a_price_holds_from_its_date(session):
    usage = {"input_tokens": 300_000}
    assert usd(session, "claude-opus-4-6", usage, date(2026, 3, 12)) == 3
    assert usd(session, "claude-opus-4-6", usage, datetime(2026, 3, 13, tzinfo=UTC)) == Decimal("1.5")


@pytest.mark.parametrize(
    "usage",
    [
        {"input_tokens": -1},
        {"input_tokens": 1.5},
        {"input_tokens": True},
        {"input_tokens": "7"},
        {"output_tokens": 10**12},
        {"cache_creation": [1]},
        {"server_tool_use": {"web_search_requests": 1}},
        {"speed": "fast"},
        {"service_tier": "priority"},
        [1],
    ],
)
def test_a_report_that_cannot_be_priced_is_refused(session, usage):
    with pytest.raises(prices.MalformedUsage):
        prices.cost(prices.tariff(session, "claude-opus-5-5", DAY), usage)


TIERED_AND_NOT = ["claude-haiku-5-5", "claude-opus-5-5", "claude-sonnet-4-5"]
COUNTS = st.integers(0, 400_000)


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["claude-haiku-5-5", "claude-opus-5-5", "claude-sonnet-4-5"]),
    COUNTS,
    COUNTS,
    COUNTS,
    COUNTS,
    COUNTS,
)
def test_no_call_costs_more_than_its_bound(session, model, fresh, read, five, hour, out):
    usage = {"input_tokens": fresh, "cache_read_input_tokens": read, "output_tokens": out}
    usage |= {"cache_creation_input_tokens": five + hour}
    usage |= {"cache_creation": {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour}}
    tariff = prices.tariff(session, model, DAY)
    bound = prices.upper_bound(tariff, input_tokens_max=fresh + read + five + hour, max_tokens=out)
    cost = prices.cost(tariff, usage)
    assert cost.usd <= bound.usd
    assert cost.cad <= bound.cad


def test_loading_the_prices_again_changes_nothing(session):
    before = session.scalars(sa.select(Price.uuid).order_by(Price.uuid)).all()
    assert prices.load(session) == 0
    assert session.scalars(sa.select(Price.uuid).order_by(Price.uuid)).all() == before
    assert len(before) == len(prices._file()["prices"])


def test_a_weekend_takes_fridays_rate_and_today_the_last_one_known(session):
    session.execute(sa.delete(ExchangeRate).where(ExchangeRate.source == rates.MANUAL))
    friday, sunday = date(2026, 5, 15), datetime(2026, 5, 17, 23, tzinfo=UTC)
    assert rates.usd_to_cad(session, sunday) == rates.usd_to_cad(session, friday)
    assert rates.usd_to_cad(session, friday).day == friday
    newest = session.scalar(sa.select(sa.func.max(ExchangeRate.rate_date)))
    assert rates.usd_to_cad(session).day == newest
    assert rates.usd_to_cad(session, newest).source == "ECB"


def test_a_rate_set_by_hand_comes_first_and_loading_again_adds_nothing(session):
    assert rates.load(session, Decimal("1.5")) == 0
    assert rates.usd_to_cad(session).rate == Decimal("1.5")


def test_a_day_before_all_rates_is_refused(session):
    with pytest.raises(rates.NoRate):
        rates.usd_to_cad(session, date(1990, 1, 1))
