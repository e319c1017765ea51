"""Where prices come from: those that come with autovibe, a file of the user's, and the public list genai-prices.

They become rows of `prices`, with their source. A row is never changed, for ledger lines refer to it: when its source
says something else, it is retired, and a new row holds.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from autovibe.errors import SettingsError
from autovibe.ledger import InvalidAmount, amount_of
from autovibe.models import Price

#: Ranks: of the rows that hold on a day those of the highest are taken.
PUBLIC, OURS, FILE = 0, 1, 2
#: Before any use.
ALWAYS = date(2024, 1, 1)
MOST_TIER = 2**31 - 1
_KEYS = ("provider", "model", "effective_from", "tier_above_tokens")
_PRICES = ("usd_input", "usd_output", "usd_cache_read", "usd_cache_write_5m", "usd_cache_write_1h", "usd_web_search")

Row = dict[str, Any]


class BadPrices(SettingsError):
    """The file of prices is wrong."""

    code = "bad_prices"
    exit_code = 2


def ours() -> list[Row]:
    """The rows of prices.toml."""
    data = builtin()
    columns = ("model", "effective_from", "tier_above_tokens", *_PRICES[:-1])
    rows = [dict(zip(columns, row, strict=True)) for row in data["prices"]]
    for row in rows:
        row |= {name: Decimal(value) for name, value in row.items() if name.startswith("usd_")}
        row |= {"provider": data["provider"], "source": data["source"], "rank": OURS}
        row["usd_web_search"] = Decimal(data["web_search"])
    return rows


@functools.cache
def builtin() -> dict[str, Any]:
    """prices.toml."""
    return tomllib.loads(resources.files("autovibe").joinpath("prices.toml").read_text(encoding="utf-8"))


def of_file(path: Path) -> list[Row]:
    """The rows of a user's file: `[[prices]]` tables, see docs/money.md. Raises BadPrices with one line."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadPrices(f"The prices in {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadPrices(f"{path} is not valid TOML: {error}") from None
    tables = data.get("prices")
    if set(data) != {"prices"} or not isinstance(tables, list):
        raise BadPrices(f"{path} must hold [[prices]] tables and nothing else")
    rows = []
    for place, table in enumerate(tables, 1):
        try:
            rows.append(_of_table(table) | {"source": str(path), "rank": FILE})
        except (InvalidAmount, ValueError) as error:
            raise BadPrices(f"{path}, price {place}: {error}") from None
    if len({tuple(row[key] for key in _KEYS) for row in rows}) < len(rows):
        raise BadPrices(f"{path} has two prices for one model, day and length of prompt")
    return rows


def _of_table(table: Any) -> Row:
    names = {"provider", "model", "from", "above_tokens", "input", "output"}
    more = {"cache_read", "cache_write_5m", "cache_write_1h", "web_search"}
    if not isinstance(table, dict):
        raise ValueError("it is not a table")
    if unknown := set(table) - names - more:
        raise ValueError(f"there is no field {min(unknown)!r}")
    for name in ("model", "input", "output"):
        if name not in table:
            raise ValueError(f"field {name!r} is missing")
    model, provider = table["model"], table.get("provider", "anthropic")
    since, above = table.get("from", ALWAYS), table.get("above_tokens", 0)
    if not all(isinstance(text, str) and text.strip() for text in (model, provider)):
        raise ValueError("model and provider are texts")
    if type(since) is not date:
        raise ValueError("`from` is a date, as 2026-11-01")
    if type(above) is not int or not 0 <= above <= MOST_TIER:
        raise ValueError("`above_tokens` is a number of tokens")
    given = {name: amount_of(str(table[name]), name) for name in ("input", "output", *more) if name in table}
    # What is not said costs as much as plain input: a cache that is not priced must not be free.
    return {
        "provider": provider,
        "model": model,
        "effective_from": since,
        "tier_above_tokens": above,
        "usd_input": given["input"],
        "usd_output": given["output"],
        "usd_cache_read": given.get("cache_read", given["input"]),
        "usd_cache_write_5m": given.get("cache_write_5m", given["input"]),
        "usd_cache_write_1h": given.get("cache_write_1h", given.get("cache_write_5m", given["input"])),
        "usd_web_search": given.get("web_search"),
    }


def store(session: Session, rows: Iterable[Row], *, whole_rank: int | None = None) -> int:
    """Put rows into the database; returns how many were new. A row that says something else is retired.

    `whole_rank`: the rows are all that there is of this rank, so what is not among them is retired.
    """
    wanted = {(*(row[key] for key in _KEYS), row["rank"]): row for row in rows}
    known = {
        (*(getattr(price, key) for key in _KEYS), price.rank): price
        for price in session.scalars(sa.select(Price).where(Price.retired_at.is_(None)))
    }
    gone = [price for key, price in known.items() if _differs(price, wanted.get(key), whole_rank)]
    for price in gone:
        price.retired_at = datetime.now(UTC)
    session.flush()
    new = [row for key, row in wanted.items() if key not in known or known[key] in gone]
    if not new:
        return 0
    # Two processes may find the same model at a time.
    statement = insert(Price).values(new).on_conflict_do_nothing().returning(Price.uuid)
    return len(session.execute(statement).all())


def _differs(price: Price, row: Row | None, whole_rank: int | None) -> bool:
    if row is None:
        return price.rank == whole_rank
    return any(getattr(price, name) != row[name] for name in _PRICES)


#: What providers call models that do more for a call than answer it.
_SEARCHES = re.compile(r"(?<![a-z])search|deep-research|online\b|sonar|compound")


def public(provider: str, model: str) -> tuple[str, list[Row]] | None:
    """The name by which genai-prices knows a model, and its rows; None when it does not, or not by tokens.

    Only exact names are taken: a list that matches by a name's beginning would price a dearer variant as the model.
    Where a price depends on the time of day, or on what a token stands for, the dearest is taken. A model that searches
    by itself is billed for that, too, which the list does not say: who wants it writes its price down.
    """
    # It reads its whole list: a second, so only when it is needed.
    from genai_prices import data_snapshot

    ref = model.strip().lower()
    if not ref or _SEARCHES.search(ref):
        return None
    for one in data_snapshot.get_snapshot().providers:
        if one.id == provider:
            for info in one.models:
                if ref == info.id.lower() or _is_exact(info.match, ref):
                    rows = _rows(provider, info)
                    return (info.id, rows) if rows else None
    return None


def _is_exact(clause: Any, ref: str) -> bool:
    kind = type(clause).__name__
    if kind == "ClauseOr":
        return any(_is_exact(part, ref) for part in clause.or_)
    return kind in ("ClauseEquals", "ClauseRegex") and clause.is_match(ref)


def _rows(provider: str, info: Any) -> list[Row]:
    conditional = info.prices if isinstance(info.prices, list) else [None]
    begins = {ALWAYS} | {
        one.constraint.start_date for one in conditional if type(getattr(one, "constraint", None)).__name__ == _START
    }
    source = f"genai-prices {metadata.version('genai-prices')}"
    rows = []
    for begin in sorted(begins):
        held = _holding(info, begin)
        for above in sorted({0} | {tier.start for prices in held for tier in _tiers(prices)}):
            costs = _dearest(held, above)
            if costs is None:
                return []
            keys = (provider, info.id, begin, above)
            rows.append(dict(zip(_KEYS, keys, strict=True)) | costs | {"source": source, "rank": PUBLIC})
    return rows


_START = "StartDateConstraint"


def _holding(info: Any, day: date) -> list[Mapping[str, Any]]:
    """The prices that may hold on a day: the last that begins by then, and those of its times of day."""
    if not isinstance(info.prices, list):
        return [info.prices.__dict__]
    held: list[Any] = []
    for one in info.prices:
        constraint = type(one.constraint).__name__ if one.constraint else None
        if constraint is None or (constraint == _START and one.constraint.start_date <= day):
            held = [one.prices]
        elif constraint != _START:
            held.append(one.prices)
    return [prices.__dict__ for prices in held]


def _tiers(prices: Mapping[str, Any]) -> list[Any]:
    return [tier for value in prices.values() for tier in getattr(value, "tiers", ())]


def _dearest(held: list[Mapping[str, Any]], above: int) -> dict[str, Decimal | None] | None:
    """The columns of a tier; None when it is not priced by tokens, or is free."""

    def most(*names: str) -> Decimal | None:
        found = [_at(prices[name], above) for prices in held for name in names if prices.get(name) is not None]
        return max(found, default=None)

    named = {name for prices in held for name, value in prices.items() if value is not None}
    if any(
        not name.endswith("_mtok") and name not in ("web_searches_kcount", "storage_searches_kcount") for name in named
    ):
        return None
    inputs = [name for name in named if name.startswith("input_")]
    plain, output = most(*inputs), most(*(name for name in named if name.startswith("output_")))
    if plain is None or output is None or not (plain or output):
        return None
    reads = [name for name in named if name.startswith("cache_") and "read" in name]
    written, hour = most("cache_write_mtok"), most("cache_write_1h_mtok")
    return {
        "usd_input": plain,
        "usd_output": output,
        "usd_cache_read": plain if not reads else most(*reads),
        "usd_cache_write_5m": plain if written is None else written,
        "usd_cache_write_1h": max(plain, written or plain) if hour is None else hour,
        "usd_web_search": most("web_searches_kcount"),
    }


def _at(price: Any, above: int) -> Decimal:
    tiers = getattr(price, "tiers", None)
    if tiers is None:
        return price
    reached = [tier.price for tier in tiers if tier.start <= above]
    return reached[-1] if reached else price.base
