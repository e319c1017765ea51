"""What a call costs, to the last digit."""

from datetime import UTC, date, datetime
from decimal import Decimal
from importlib import metadata

import genai_prices
import pytest
import sqlalchemy as sa
from autovibe import db, pricelists, prices, rates
from autovibe.gateway.reserving import Bounds
from autovibe.ledger import InvalidAmount
from autovibe.models import ExchangeRate, Price
from genai_prices import data_snapshot
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy.exc import DBAPIError

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


@pytest.mark.parametrize("model", ["claude-opus-5-5", "claude-haiku-5-5"])
def test_a_call_is_bounded_wherever_the_workspace_lets_it_run(session, model):
    bounds = Bounds(model, prices.PROVIDER, prices.tariff(session, model))
    for tokens in (1, 99_999, 100_001, 10**6):
        written = {"ephemeral_1h_input_tokens": tokens}
        usage = {"cache_creation_input_tokens": tokens, "cache_creation": written, "output_tokens": 10_000}
        billed = prices.cost(bounds.tariff, usage | {"inference_geo": "us"})
        assert billed.cad <= bounds.cost(tokens, 10_000).cad


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
        {"server_tool_use": {"code_execution_requests": 1}},
        {"server_tool_use": {"web_search_requests": -1}},
        {"server_tool_use": [1]},
        {"speed": "fast"},
        {"speed": {}, "inference_geo": "us"},
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
    assert len(before) == len(pricelists.ours())


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


# Other sources


def test_a_model_that_only_the_public_list_has_is_priced_by_it_and_its_rows_are_kept(session):
    usage = {"input_tokens": 10**6, "output_tokens": 10**6}
    assert usd(session, "claude-v1", usage) == 32
    row = session.scalars(sa.select(Price).where(Price.model == "claude-v1")).one()
    assert (row.rank, row.source) == (pricelists.PUBLIC, f"genai-prices {metadata.version('genai-prices')}")
    assert prices.tiers_of(session, "claude-v1", DAY) == [row]
    # A cache that has no price there costs as much as plain input.
    assert usd(session, "claude-v1", {"cache_read_input_tokens": 10**6}) == 8


@pytest.mark.parametrize("model", ["claude-opus-4-5-turbo", "claude-opus-5.5-fast", "claude-sonnet-4.5x"])
def test_a_variant_is_not_priced_as_the_model_whose_name_it_begins_with(session, model):
    with pytest.raises(prices.UnknownModel):
        prices.tariff(session, model, DAY)


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-4o-search-preview"),
        ("openai", "gpt-5-search-api"),
        ("openai", "o3-deep-research"),
        ("openrouter", "perplexity/sonar"),
        ("openrouter", "perplexity/llama-3.1-sonar-large-128k-online"),
        ("openrouter", "openai/gpt-4o:online"),
    ],
)
def test_a_model_that_searches_by_itself_costs_more_than_its_tokens_and_has_no_price(session, provider, model):
    with pytest.raises(prices.UnknownModel):
        prices.tiers_of(session, model, provider=provider)
    assert prices.tiers_of(session, "nousresearch/hermes-4-70b", provider="openrouter")


def test_every_model_of_the_public_list_that_can_be_priced_costs_something(session):
    for provider in ("openai", "google", "deepseek", "x-ai", "mistral", "groq"):
        for info in next(p for p in data_snapshot.get_snapshot().providers if p.id == provider).models:
            for row in pricelists._rows(provider, info):
                assert row["usd_input"] + row["usd_output"] > 0, row
                assert min(v for k, v in row.items() if k.startswith("usd_") and v is not None) >= 0


@pytest.mark.parametrize(
    ("provider", "model", "tokens", "out"),
    [
        ("openai", "gpt-5", 1000, 100),
        ("openai", "gpt-4.1-mini", 250_000, 10),
        ("google", "gemini-2.5-pro", 150_000, 1000),
        ("google", "gemini-2.5-pro", 250_000, 1000),
        ("google", "gemini-2.5-pro", 200_000, 1000),
        ("anthropic", "claude-v1", 5000, 7),
        ("anthropic", "claude-sonnet-4-5", 200_001, 7),
    ],
)
def test_a_call_costs_what_the_public_list_itself_calculates(session, provider, model, tokens, out):
    at = datetime(2026, 11, 20, tzinfo=UTC)
    theirs = genai_prices.calc_price(
        genai_prices.Usage(input_tokens=tokens, output_tokens=out),
        model_ref=model,
        provider_id=provider,
        genai_request_timestamp=at,
    )
    tariff = prices.tariff(session, model, at, provider)
    assert prices.cost(tariff, {"input_tokens": tokens, "output_tokens": out}).usd == theirs.total_price


def test_the_public_lists_own_extraction_finds_the_same_tokens(session):
    usage = {
        "input_tokens": 504, "output_tokens": 97, "cache_creation_input_tokens": 123, "cache_read_input_tokens": 45,
        "cache_creation": {"ephemeral_5m_input_tokens": 23, "ephemeral_1h_input_tokens": 100},
    }  # fmt: skip
    found = genai_prices.data_snapshot.get_snapshot().extract_usage(
        {"model": "claude-opus-5-5", "usage": usage}, "anthropic", None, "default"
    )
    tokens = prices.tokens_of(usage)
    assert (tokens.prompt, tokens.output) == (found.usage.input_tokens, found.usage.output_tokens)
    assert usd(session, "claude-opus-5-5", usage) == found.calc_price().total_price


def test_web_searches_are_priced_and_bounded(session):
    tariff = prices.tariff(session, "claude-opus-5-5", DAY)
    usage = {"input_tokens": 10**6, "server_tool_use": {"web_search_requests": 3, "web_fetch_requests": 2}}
    assert prices.cost(tariff, usage).usd == Decimal("4.03")
    bound = prices.upper_bound(tariff, input_tokens_max=10**6, max_tokens=0, web_searches_max=3)
    assert bound.usd == Decimal("8.03")
    unpriced = prices.tariff(session, "claude-v1", DAY)
    with pytest.raises(prices.MalformedUsage, match="web searches"):
        prices.cost(unpriced, usage)
    with pytest.raises(prices.MalformedUsage, match="no price for this model"):
        prices.upper_bound(unpriced, input_tokens_max=1, max_tokens=1, web_searches_max=1)


def test_fast_inference_costs_a_multiple_where_it_is_known(session):
    assert usd(session, "claude-opus-5", {"input_tokens": 10**6, "speed": "fast"}) == 10
    assert usd(session, "claude-opus-5", {"input_tokens": 10**6, "speed": "fast", "inference_geo": "us"}) == 11


FILE = """
[[prices]]
model = "claude-opus-5-5"
from = 2026-10-01
input = "1.5"
output = 7

[[prices]]
provider = "vllm"
model = "Qwen/qwen3-coder"
input = "0"
output = "0"
"""


def test_a_file_of_ones_own_comes_first_until_it_is_taken_back(session, settings, tmp_path):
    file = tmp_path / "prices.toml"
    file.write_text(FILE)
    mine = settings.model_copy(update={"prices_file": file})
    assert prices.load(session, mine) == 2
    assert prices.load(session, mine) == 0
    usage = {"input_tokens": 10**6, "cache_read_input_tokens": 10**6}
    assert usd(session, "claude-opus-5-5", usage) == 3
    assert usd(session, "claude-opus-5-5", usage, date(2026, 9, 30)) == Decimal("4.2")
    local = prices.tariff(session, "Qwen/qwen3-coder", DAY, "vllm")
    assert prices.cost(local, usage).cad == 0
    assert prices.upper_bound(local, input_tokens_max=10, max_tokens=10).cad == prices.QUANTUM
    file.write_text(FILE.replace("1.5", "2.5"))
    assert prices.load(session, mine) == 1
    assert usd(session, "claude-opus-5-5", usage) == 5
    assert prices.load(session, settings) == 0
    assert usd(session, "claude-opus-5-5", usage) == Decimal("4.2")
    assert session.scalar(sa.select(sa.func.count()).select_from(Price).where(Price.rank == pricelists.FILE)) == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("prices = 1", "must hold"),
        ("[[prices", "not valid TOML"),
        ('[[prices]]\nmodel = "m"\ninput = 1', "price 1: field 'output' is missing"),
        ('[[prices]]\nmodel = "m"\ninput = -1\noutput = 1', "must be at least 0"),
        ('[[prices]]\nmodel = "m"\ninput = nan\noutput = 1', "not a number"),
        ('[[prices]]\nmodel = "m"\ninput = 1\noutput = 1e30', "too large"),
        ('[[prices]]\nmodel = "m"\ninput = 1\noutput = 1\nfrom = "soon"', "`from` is a date"),
        ('[[prices]]\nmodel = "m"\ninput = 1\noutput = 1\nabove_tokens = -5', "a number of tokens"),
        ('[[prices]]\nmodel = ""\ninput = 1\noutput = 1', "are texts"),
        ('[[prices]]\nmodel = "m"\ninput = 1\noutput = 1\njoy = 1', "no field 'joy'"),
        ('[[prices]]\nmodel = "m"\ninput = 1\noutput = 1\n' * 2, "two prices for one model"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, content, said):
    file = tmp_path / "prices.toml"
    file.write_text(content)
    with pytest.raises(pricelists.BadPrices, match=said) as refused:
        pricelists.of_file(file)
    assert "\n" not in refused.value.message
    with pytest.raises(pricelists.BadPrices, match="cannot be read"):
        pricelists.of_file(tmp_path / "nowhere")


def test_an_unknown_model_is_priced_at_the_dearest_when_one_says_so(session):
    policy = prices.Policy(dearest_for_unknown=True)
    tariff = prices.tariff(session, "claude-next-9", DAY, policy=policy)
    cost = prices.cost(tariff, {"input_tokens": 10**6, "output_tokens": 10**6})
    assert (cost.usd, cost.model) == (90, "claude-next-9")
    other = prices.tariff(session, "house-model", DAY, "nobody", policy)
    assert prices.cost(other, {"input_tokens": 10**6}).usd == 15
    with pytest.raises(prices.UnknownModel):
        prices.tariff(session, "", DAY, policy=policy)


def test_a_stale_rate_gets_a_margin_and_says_so(session):
    staleness = rates.Staleness(10, Decimal(2))
    fresh = rates.usd_to_cad(session, date(2026, 11, 11), staleness)
    assert (fresh.rate, fresh.source) == (Decimal("1.25"), "manual")
    stale = rates.usd_to_cad(session, date(2026, 11, 12), staleness)
    assert (stale.rate, stale.day, stale.source) == (Decimal("1.275"), DAY, "manual, 11 days old, +2 %")
    policy = prices.Policy(staleness=staleness)
    tariff = prices.tariff(session, "claude-opus-5-5", date(2026, 11, 12), policy=policy)
    assert prices.cost(tariff, {"input_tokens": 10**6}).cad == Decimal("5.1")


@pytest.mark.parametrize(
    ("base", "quote", "rate", "error"),
    [
        ("USD", "CAD", "0", InvalidAmount),
        ("USD", "CAD", "-1", InvalidAmount),
        ("USD", "CAD", "NaN", InvalidAmount),
        ("USD", "CAD", "1e20", InvalidAmount),
        ("usd", "CAD", "1", rates.InvalidRate),
        ("USD", "DOLLARS", "1", rates.InvalidRate),
        ("CAD", "CAD", "1", rates.InvalidRate),
    ],
)
def test_a_wrong_rate_is_refused(session, base, quote, rate, error):
    with pytest.raises(error):
        rates.set_manual(session, base, quote, Decimal(rate))


def test_a_price_is_never_changed(session):
    for statement in ("UPDATE prices SET usd_input = 0", "DELETE FROM prices"):
        with pytest.raises(DBAPIError, match="never changed"), session.begin_nested():
            session.execute(sa.text(statement))
