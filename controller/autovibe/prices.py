"""What a call to a model costs: by date, model and length of the prompt. An unknown model is refused, never free."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import ROUND_CEILING, Context, Decimal
from importlib import resources
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from autovibe import rates
from autovibe.errors import Invalid, NotFound
from autovibe.models import Price
from autovibe.rates import Rate, day_of

PROVIDER = "anthropic"
QUANTUM = Decimal("1e-9")
MILLION = Decimal(1_000_000)
#: More tokens than any call has; beyond it a report is malformed.
MOST_TOKENS = 1_000_000_000
#: Inference held to the US costs a tenth more on every token (the provider's documentation).
GEO_FACTORS = {"us": Decimal("1.1")}

_EXACT = Context(prec=60)


class UnknownModel(NotFound):
    """No price is known for this model."""

    code = "unknown_model"
    http_status = 400
    default_hint = "Use a model that has a price, or add its price to prices.toml and run `autovibe db upgrade`."


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
class Tariff:
    """All that a model's calls cost by on a day: the price of each tier, and CAD for a USD."""

    tiers: tuple[Price, ...]
    rate: rates.Rate


def tariff(session: Session, model: str, at: datetime | date | None = None) -> Tariff:
    """A model's tariff on a day; it can be kept after the session. Raises UnknownModel, NoRate."""
    tiers = tiers_of(session, model, at)
    for tier in tiers:
        session.expunge(tier)
    return Tariff(tuple(tiers), rates.usd_to_cad(session, at))


def cost(by: Tariff, usage: Mapping[str, Any]) -> Cost:
    """The cost of a call, from the Messages API's `usage` object.

    Raises MalformedUsage when the report holds what has no price here: the caller settles at the bound.
    """
    tokens = tokens_of(usage)
    factor = _factor(usage)
    price = max((tier for tier in by.tiers if tier.tier_above_tokens < max(tokens.prompt, 1)), key=_tier)
    return _cost(price, tokens, factor, by.rate)


def upper_bound(by: Tariff, *, input_tokens_max: int, max_tokens: int, geo: str | None = None) -> Cost:
    """The most that a call can cost: every input token at the dearest input rate of any tier it can reach.

    Its `tokens` and `price_uuid` are of the dearest tier.
    """
    for name, count in (("input_tokens_max", input_tokens_max), ("max_tokens", max_tokens)):
        if not 0 <= count <= MOST_TOKENS:
            raise MalformedUsage(f"{name} is {count}; it must be between 0 and {MOST_TOKENS}")
    reachable = [tier for tier in by.tiers if tier.tier_above_tokens < max(input_tokens_max, 1)]
    factor = GEO_FACTORS.get(geo or "", Decimal(1))
    bounds = [_cost(tier, _dearest(tier, input_tokens_max, max_tokens), factor, by.rate) for tier in reachable]
    return max(bounds, key=lambda bound: bound.usd)


def tokens_of(usage: Mapping[str, Any]) -> Tokens:
    """The counts in the Messages API's `usage`, checked. Absent and null are 0."""
    if not isinstance(usage, Mapping):
        raise MalformedUsage("The provider's usage is not an object")
    written = _count(usage, "cache_creation_input_tokens")
    by_lifetime = usage.get("cache_creation") or {}
    if not isinstance(by_lifetime, Mapping):
        raise MalformedUsage("The provider's usage has a cache_creation that is not an object")
    five_minutes = _count(by_lifetime, "ephemeral_5m_input_tokens")
    one_hour = _count(by_lifetime, "ephemeral_1h_input_tokens")
    rest = written - five_minutes - one_hour
    if rest > 0 and not by_lifetime:
        five_minutes = rest  # the API's default lifetime
    elif rest > 0:
        one_hour += rest  # a lifetime that is not known here: the dearest
    return Tokens(
        input=_count(usage, "input_tokens"),
        output=_count(usage, "output_tokens"),
        cache_read=_count(usage, "cache_read_input_tokens"),
        cache_write_5m=five_minutes,
        cache_write_1h=one_hour,
    )


def tiers_of(session: Session, model: str, at: datetime | date | None = None) -> list[Price]:
    """The prices of a model that hold on a day, one for each tier; UnknownModel when there is none."""
    name, day = canonical(model), day_of(at)
    newest = (
        sa.select(sa.func.max(Price.effective_from))
        .where(Price.provider == PROVIDER, Price.model == name, Price.effective_from <= day)
        .scalar_subquery()
    )
    wanted = sa.select(Price).where(Price.provider == PROVIDER, Price.model == name, Price.effective_from == newest)
    found = list(session.scalars(wanted.order_by(Price.tier_above_tokens)))
    if not found:
        raise UnknownModel(f"No price is known for model {model!r}", model=model)
    return found


def known_models(session: Session) -> list[str]:
    """The models that have a price."""
    return list(
        session.scalars(sa.select(Price.model).where(Price.provider == PROVIDER).distinct().order_by(Price.model))
    )


def canonical(model: str) -> str:
    """A model's name as the prices have it: without provider, date, `-latest`, `[1m]`; `5.5` is `5-5`."""
    name = model.strip().lower()
    name = re.sub(r"^(?:(?:[a-z]{2,6}\.)?anthropic[./])", "", name)
    name = re.sub(r"\[[0-9a-z]+\]$", "", name)
    name = re.sub(r"-v\d+(?::\d+)?$", "", name)
    name = re.sub(r"(?:[-@](?:\d{8}|\d{4}-\d{2}-\d{2}|latest|default))$", "", name)
    name = re.sub(r"(?<=\d)\.(?=\d)", "-", name)
    return _aliases().get(name, name)


def load(session: Session) -> int:
    """Put the prices of prices.toml into the database; returns how many were new. Safe to run again."""
    data = _file()
    columns = ("model", "effective_from", "tier_above_tokens", "usd_input", "usd_output", "usd_cache_read")
    columns += ("usd_cache_write_5m", "usd_cache_write_1h")
    rows = [dict(zip(columns, row, strict=True)) for row in data["prices"]]
    for row in rows:
        row |= {name: Decimal(value) for name, value in row.items() if name.startswith("usd_")}
        row |= {"provider": data["provider"], "source": data["source"]}
    statement = insert(Price).values(rows).on_conflict_do_nothing().returning(Price.uuid)
    return len(session.execute(statement).all())


def _cost(price: Price, tokens: Tokens, factor: Decimal, rate: Rate) -> Cost:
    exact = (
        price.usd_input * tokens.input
        + price.usd_output * tokens.output
        + price.usd_cache_read * tokens.cache_read
        + price.usd_cache_write_5m * tokens.cache_write_5m
        + price.usd_cache_write_1h * tokens.cache_write_1h
    )
    usd = _EXACT.divide(_EXACT.multiply(exact, factor), MILLION)
    cad = _EXACT.multiply(usd, rate.rate)
    return Cost(
        usd=_up(usd),
        cad=_up(cad),
        rate=rate.rate,
        rate_date=rate.day,
        rate_source=rate.source,
        price_uuid=price.uuid,
        model=price.model,
        tokens=tokens,
    )


def _up(amount: Decimal) -> Decimal:
    return amount.quantize(QUANTUM, rounding=ROUND_CEILING, context=_EXACT)


def _dearest(tier: Price, input_tokens: int, output_tokens: int) -> Tokens:
    kinds = {
        "input": tier.usd_input,
        "cache_read": tier.usd_cache_read,
        "cache_write_5m": tier.usd_cache_write_5m,
        "cache_write_1h": tier.usd_cache_write_1h,
    }
    return Tokens(output=output_tokens, **{max(kinds, key=kinds.__getitem__): input_tokens})


def _factor(usage: Mapping[str, Any]) -> Decimal:
    """What multiplies every token's price; refuses what has a price that is not known here."""
    searches = usage.get("server_tool_use") or {}
    if not isinstance(searches, Mapping) or any(searches.values()):
        raise MalformedUsage("The provider billed server tools, which have no price here")
    if usage.get("speed") not in (None, "standard"):
        raise MalformedUsage(f"The provider billed speed {usage['speed']!r}, which has no price here")
    if usage.get("service_tier") not in (None, "standard", "batch"):
        raise MalformedUsage(f"The provider billed service tier {usage['service_tier']!r}, which has no price here")
    return GEO_FACTORS.get(str(usage.get("inference_geo") or "").lower(), Decimal(1))


def _count(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_TOKENS:
        raise MalformedUsage(f"The provider's usage has {name} = {value!r}, which is not a number of tokens")
    return value


def _tier(price: Price) -> int:
    return price.tier_above_tokens


@functools.cache
def _file() -> dict[str, Any]:
    return tomllib.loads(resources.files("autovibe").joinpath("prices.toml").read_text(encoding="utf-8"))


def _aliases() -> dict[str, str]:
    return _file()["aliases"]
