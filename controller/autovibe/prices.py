"""What a call to a model costs: by date, model and length of the prompt. An unknown model is refused, never free."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from autovibe import pricelists, rates
from autovibe.errors import Invalid, NotFound
from autovibe.models import Price
from autovibe.rates import day_of
from autovibe.settings import Settings

PROVIDER = "anthropic"
QUANTUM = Decimal("1e-9")
THOUSAND, MILLION = Decimal(1000), Decimal(1_000_000)
#: More tokens than any call has; beyond it a report is malformed.
MOST_TOKENS = 1_000_000_000
#: Inference held to the US costs a tenth more on every token (the provider's documentation).
GEO_FACTORS = {"us": Decimal("1.1")}
DEAREST_GEO = max(GEO_FACTORS, key=GEO_FACTORS.__getitem__)

_EXACT = Context(prec=60)


class UnknownModel(NotFound):
    """No price is known for this model."""

    code = "unknown_model"
    http_status = 400
    default_hint = "Use a model that has a price, or give it one in `prices_file` and run `autovibe db upgrade`."


class MalformedUsage(Invalid):
    """The provider's usage report cannot be priced."""

    code = "malformed_usage"


@dataclass(frozen=True)
class Tokens:
    """The tokens of one call, by what they cost. `input` is uncached input only, as the API reports it."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    web_searches: int = 0

    @property
    def prompt(self) -> int:
        """The length that chooses the tier."""
        return self.input + self.cache_read + self.cache_write_5m + self.cache_write_1h


@dataclass(frozen=True)
class Cost:
    """Money of one call: USD and CAD, both rounded up at the ninth decimal, and what they follow from."""

    usd: Decimal
    cad: Decimal
    rate: Decimal
    rate_date: date
    rate_source: str
    price_uuid: UUID
    model: str
    tokens: Tokens

    @property
    def metadata(self) -> dict[str, Any]:
        """What a ledger line keeps besides the columns."""
        counts = {name: count for name, count in vars(self.tokens).items() if count}
        return {"model": self.model, "tokens": counts, "rate_source": self.rate_source}


@dataclass(frozen=True)
class Policy:
    """What an installation does about what is not known: an unknown model is refused, or priced at the dearest."""

    dearest_for_unknown: bool = False
    staleness: rates.Staleness | None = None

    @classmethod
    def of(cls, settings: Settings) -> Policy:
        return cls(settings.unknown_model == "dearest", rates.Staleness.of(settings))


@dataclass(frozen=True)
class Tariff:
    """All that a model's calls cost by on a day: the price of each tier, and CAD for a USD.

    `model`: the one that was asked for, where it is priced as another.
    """

    tiers: tuple[Price, ...]
    rate: rates.Rate
    model: str | None = None


def tariff(
    session: Session,
    model: str,
    at: datetime | date | None = None,
    provider: str = PROVIDER,
    policy: Policy = Policy(),  # noqa: B008 - frozen
) -> Tariff:
    """A provider's tariff for a model on a day; it can be kept after the session. Raises UnknownModel, NoRate."""
    asked = None
    try:
        tiers = tiers_of(session, model, at, provider)
    except UnknownModel:
        tiers = dearest(session, at, provider) if policy.dearest_for_unknown and model.strip() else []
        if not tiers:
            raise
        asked = model[:100]
    for tier in tiers:
        if tier in session:
            session.expunge(tier)
    return Tariff(tuple(tiers), rates.usd_to_cad(session, at, policy.staleness), asked)


def cost(by: Tariff, usage: Mapping[str, Any]) -> Cost:
    """The cost of a call, from the Messages API's `usage` object.

    Raises MalformedUsage when the report holds what has no price here: the caller settles at the bound.
    """
    tokens = tokens_of(usage)
    price = max((tier for tier in by.tiers if tier.tier_above_tokens < max(tokens.prompt, 1)), key=_tier)
    if tokens.web_searches and price.usd_web_search is None:
        raise MalformedUsage("The provider billed web searches, which have no price here")
    return _cost(by, price, tokens, _factor(usage, price.model))


def upper_bound(
    by: Tariff, *, input_tokens_max: int, max_tokens: int, geo: str | None = None, web_searches_max: int = 0
) -> Cost:
    """The most that a call can cost: every input token at the dearest input rate of any tier it can reach.

    Its `tokens` and `price_uuid` are of the dearest tier. What costs nothing still holds a little, for a reservation
    is above 0.
    """
    counts = {"input_tokens_max": input_tokens_max, "max_tokens": max_tokens, "web_searches_max": web_searches_max}
    for name, count in counts.items():
        if not 0 <= count <= MOST_TOKENS:
            raise MalformedUsage(f"{name} is {count}; it must be between 0 and {MOST_TOKENS}")
    reachable = [tier for tier in by.tiers if tier.tier_above_tokens < max(input_tokens_max, 1)]
    factor = GEO_FACTORS.get(geo or "", Decimal(1))
    if web_searches_max and any(tier.usd_web_search is None for tier in reachable):
        raise MalformedUsage("Web searches have no price for this model")
    tokens = [_dearest(tier, input_tokens_max, max_tokens, web_searches_max) for tier in reachable]
    bounds = [_cost(by, tier, most, factor) for tier, most in zip(reachable, tokens, strict=True)]
    bound = max(bounds, key=lambda bound: bound.usd)
    return replace(bound, cad=max(bound.cad, QUANTUM))


def dearest_cost(by: Tariff, tokens: Tokens) -> Cost:
    """The cost of the tokens of many calls, each of which may be of any tier."""
    return max((_cost(by, tier, tokens, Decimal(1)) for tier in by.tiers), key=lambda cost: cost.usd)


def tokens_of(usage: Mapping[str, Any], *, together: bool = False) -> Tokens:
    """The counts in the Messages API's `usage`, checked. Absent and null are 0.

    `together`: it is the sum of many calls, so that its counts may be beyond a call's.
    """
    most = MOST_TOKENS**2 if together else MOST_TOKENS
    if not isinstance(usage, Mapping):
        raise MalformedUsage("The provider's usage is not an object")
    written = _count(usage, "cache_creation_input_tokens", most)
    by_lifetime = _object(usage, "cache_creation")
    five_minutes = _count(by_lifetime, "ephemeral_5m_input_tokens", most)
    one_hour = _count(by_lifetime, "ephemeral_1h_input_tokens", most)
    tools = _object(usage, "server_tool_use")
    if any(count for name, count in tools.items() if name not in ("web_search_requests", "web_fetch_requests")):
        raise MalformedUsage("The provider billed server tools, which have no price here")
    rest = written - five_minutes - one_hour
    if rest > 0 and not by_lifetime:
        five_minutes = rest  # the API's default lifetime
    elif rest > 0:
        one_hour += rest  # a lifetime that is not known here: the dearest
    return Tokens(
        input=_count(usage, "input_tokens", most),
        output=_count(usage, "output_tokens", most),
        cache_read=_count(usage, "cache_read_input_tokens", most),
        cache_write_5m=five_minutes,
        cache_write_1h=one_hour,
        web_searches=_count(tools, "web_search_requests", most),
    )


def tiers_of(session: Session, model: str, at: datetime | date | None = None, provider: str = PROVIDER) -> list[Price]:
    """The prices of a model that hold on a day, one for each tier; UnknownModel when there is none.

    One that is not in the database is looked for in the public list. Other providers' models have the very names that
    the price rows have, or that list.
    """
    name, day = canonical(model) if provider == PROVIDER else model, day_of(at)
    found = _tiers(session, name, day, provider)
    if not found and (listed := pricelists.public(provider, model)):
        known, rows = listed
        found = _tiers(session, known, day, provider)
        if not found and pricelists.store(session, rows):
            found = _tiers(session, known, day, provider)
    if not found:
        raise UnknownModel(f"No price is known for model {model!r:.150}", model=model)
    return found


def _tiers(session: Session, name: str, day: date, provider: str) -> list[Price]:
    holds = (
        Price.provider == provider,
        Price.model == name,
        Price.effective_from <= day,
        Price.retired_at.is_(None),
    )
    newest = sa.select(Price.rank, Price.effective_from).where(*holds)
    newest = newest.order_by(Price.rank.desc(), Price.effective_from.desc()).limit(1)
    wanted = sa.select(Price).where(*holds, sa.tuple_(Price.rank, Price.effective_from).in_(newest))
    return list(session.scalars(wanted.order_by(Price.tier_above_tokens)))


def dearest(session: Session, at: datetime | date | None = None, provider: str = PROVIDER) -> list[Price]:
    """The price of the dearest token that is known of a provider, or else of any: one row, or none."""
    wanted = (
        sa.select(Price)
        .where(Price.effective_from <= day_of(at), Price.retired_at.is_(None))
        .order_by((Price.provider == provider).desc(), (Price.usd_input + Price.usd_output).desc(), Price.uuid)
        .limit(1)
    )
    found = list(session.scalars(wanted))
    for price in found:
        session.expunge(price)
        price.tier_above_tokens = 0
    return found


def known_models(session: Session, provider: str = PROVIDER) -> list[str]:
    """The models that have a price."""
    known = sa.select(Price.model).where(Price.provider == provider, Price.retired_at.is_(None))
    return list(session.scalars(known.distinct().order_by(Price.model)))


def views(session: Session, model: str | None = None, at: datetime | date | None = None) -> list[dict[str, Any]]:
    """The prices that hold on a day, in USD per million tokens (web searches: per thousand), of a model or of all."""
    known = sa.select(Price.provider, Price.model).where(Price.retired_at.is_(None)).distinct()
    names = session.execute(known.order_by(Price.provider, Price.model)).all()
    if model is not None:
        names = [(provider, name) for provider, name in names if model.lower() in name.lower()]
    rows = [tier for provider, name in names for tier in _tiers(session, name, day_of(at), provider)]
    return [
        {
            "provider": row.provider,
            "model": row.model,
            "above_tokens": row.tier_above_tokens,
            "input": row.usd_input,
            "output": row.usd_output,
            "cache_read": row.usd_cache_read,
            "cache_write_5m": row.usd_cache_write_5m,
            "cache_write_1h": row.usd_cache_write_1h,
            "web_search": row.usd_web_search,
            "from": row.effective_from,
            "source": row.source,
        }
        for row in rows
    ]


def canonical(model: str) -> str:
    """A model's name as the prices have it: without provider, date, `-latest`, `[1m]`; `5.5` is `5-5`."""
    name = model.strip().lower()
    name = re.sub(r"^(?:(?:[a-z]{2,6}\.)?anthropic[./])", "", name)
    name = re.sub(r"\[[0-9a-z]+\]$", "", name)
    name = re.sub(r"-v\d+(?::\d+)?$", "", name)
    name = re.sub(r"(?:[-@](?:\d{8}|\d{4}-\d{2}-\d{2}|latest|default))$", "", name)
    name = re.sub(r"(?<=\d)\.(?=\d)", "-", name)
    return _aliases().get(name, name)


def load(session: Session, settings: Settings | None = None) -> int:
    """Put the prices that come with autovibe, and the user's own, into the database; returns how many were new.

    Safe to run again. What is no longer in the file holds no longer.
    """
    file = settings.prices_file if settings else None
    given = pricelists.of_file(file) if file else []
    return pricelists.store(session, pricelists.ours()) + pricelists.store(session, given, whole_rank=pricelists.FILE)


def _cost(by: Tariff, price: Price, tokens: Tokens, factor: Decimal) -> Cost:
    exact = (
        price.usd_input * tokens.input
        + price.usd_output * tokens.output
        + price.usd_cache_read * tokens.cache_read
        + price.usd_cache_write_5m * tokens.cache_write_5m
        + price.usd_cache_write_1h * tokens.cache_write_1h
    )
    usd = _EXACT.divide(_EXACT.multiply(exact, factor), MILLION)
    if tokens.web_searches:
        usd += _EXACT.divide((price.usd_web_search or 0) * tokens.web_searches, THOUSAND)
    cad = _EXACT.multiply(usd, by.rate.rate)
    return Cost(
        usd=_up(usd),
        cad=_up(cad),
        rate=by.rate.rate,
        rate_date=by.rate.day,
        rate_source=by.rate.source,
        price_uuid=price.uuid,
        model=by.model or price.model,
        tokens=tokens,
    )


def _up(amount: Decimal) -> Decimal:
    return amount.quantize(QUANTUM, rounding=ROUND_CEILING, context=_EXACT)


def _dearest(tier: Price, input_tokens: int, output_tokens: int, web_searches: int) -> Tokens:
    kinds = {
        "input": tier.usd_input,
        "cache_read": tier.usd_cache_read,
        "cache_write_5m": tier.usd_cache_write_5m,
        "cache_write_1h": tier.usd_cache_write_1h,
    }
    most = {max(kinds, key=kinds.__getitem__): input_tokens}
    return Tokens(output=output_tokens, web_searches=web_searches, **most)


def _factor(usage: Mapping[str, Any], model: str) -> Decimal:
    """What multiplies every token's price; refuses what has a price that is not known here."""
    if usage.get("service_tier") not in (None, "standard", "batch"):
        raise MalformedUsage(f"The provider billed service tier {usage['service_tier']!r:.50}, which has no price here")
    speed = "standard" if usage.get("speed") is None else usage["speed"]
    factor = pricelists.builtin()["speed"].get(str(speed), {}).get(model)
    if speed != "standard" and factor is None:
        raise MalformedUsage(f"The provider billed speed {speed!r:.50}, which has no price here")
    return GEO_FACTORS.get(str(usage.get("inference_geo") or "").lower(), Decimal(1)) * Decimal(factor or 1)


def _object(usage: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = usage.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise MalformedUsage(f"The provider's usage has a {name} that is not an object")
    return value


def _count(usage: Mapping[str, Any], name: str, most: int) -> int:
    value = usage.get(name)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise MalformedUsage(f"The provider's usage has {name} = {value!r}, which is not a number of tokens")
    return value


def _tier(price: Price) -> int:
    return price.tier_above_tokens


def _aliases() -> dict[str, str]:
    return pricelists.builtin()["aliases"]
