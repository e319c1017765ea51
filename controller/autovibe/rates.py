"""Exchange rates: the European Central Bank's, bundled with CurrencyConverter, or one that was set by hand.

Rates are published on working days and the bundle ends some weeks back: a day without a rate takes the last one known
before it, and says of which day it is.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from autovibe.errors import AutovibeError
from autovibe.models import ExchangeRate

ECB, MANUAL = "ECB", "manual"
#: How far back `load` goes in an empty database.
HISTORY = timedelta(days=400)
QUANTUM = Decimal("1e-9")


class NoRate(AutovibeError):
    """No exchange rate is known."""

    code = "no_exchange_rate"
    http_status = 503
    default_hint = "Run `autovibe db upgrade`, or set AUTOVIBE_USD_TO_CAD."


@dataclass(frozen=True)
class Rate:
    """One unit of the base currency costs `rate` of the other; `day` is the rate's own day."""

    rate: Decimal
    day: date
    source: str


def usd_to_cad(session: Session, at: datetime | date | None = None) -> Rate:
    """CAD for one USD: the last rate known on that day."""
    return rate_of(session, "USD", "CAD", at)


def rate_of(session: Session, base: str, quote: str, at: datetime | date | None = None) -> Rate:
    """The last rate known on a day; of two of one day the one set by hand. Raises NoRate."""
    day = day_of(at)
    newest_first = (ExchangeRate.rate_date.desc(), (ExchangeRate.source == MANUAL).desc())
    query = (
        sa.select(ExchangeRate)
        .where(ExchangeRate.base == base, ExchangeRate.quote == quote, ExchangeRate.rate_date <= day)
        .order_by(*newest_first)
        .limit(1)
    )
    found = session.scalars(query).first()
    if found is None:
        raise NoRate(f"No exchange rate from {base} to {quote} is known for {day}")
    return Rate(found.rate, found.rate_date, found.source)


def load(session: Session, manual: Decimal | None = None) -> int:
    """Store the bundled USD → CAD rates that are missing, and `manual` as today's; returns how many were stored."""
    last = session.scalar(sa.select(sa.func.max(ExchangeRate.rate_date)).where(ExchangeRate.source == ECB))
    end = _converter().bounds["USD"].last_date
    day = last + timedelta(days=1) if last else end - HISTORY
    rows = []
    while day <= end:
        if (rate := _published(day)) is not None:
            rows.append({"base": "USD", "quote": "CAD", "rate_date": day, "rate": rate, "source": ECB})
        day += timedelta(days=1)
    if rows:
        session.execute(insert(ExchangeRate).values(rows).on_conflict_do_nothing())
    if manual is not None:
        set_manual(session, "USD", "CAD", manual)
    return len(rows)


def set_manual(session: Session, base: str, quote: str, rate: Decimal, day: date | None = None) -> None:
    """Use this rate from a day (today) on, until a newer one is stored."""
    row = {"base": base, "quote": quote, "rate_date": day or day_of(None), "rate": rate, "source": MANUAL}
    statement = insert(ExchangeRate).values(row)
    keys = ["base", "quote", "rate_date", "source"]
    session.execute(statement.on_conflict_do_update(index_elements=keys, set_={"rate": rate}))


def day_of(at: datetime | date | None) -> date:
    """The UTC day of a time; today for None. A time without a zone is refused: it names no day."""
    if at is None:
        return datetime.now(UTC).date()
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise ValueError("a time without a time zone")
        return at.astimezone(UTC).date()
    return at


def _published(day: date) -> Decimal | None:
    from currency_converter import RateNotFoundError

    try:
        rate = _converter().convert(1, "USD", "CAD", date=day)
    except RateNotFoundError:
        return None
    return Decimal(rate).quantize(QUANTUM, rounding=ROUND_HALF_UP)


@functools.cache
def _converter() -> Any:
    from currency_converter import CurrencyConverter

    # It reads 27 years of rates: half a second, so only when it is needed.
    return CurrencyConverter(decimal=True)
