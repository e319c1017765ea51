"""Exchange rates: the European Central Bank's, bundled with CurrencyConverter, or one that was set by hand.

Rates are published on working days and the bundle ends some weeks back: a day without a rate takes the last one known
before it, and says of which day it is.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from autovibe.errors import AutovibeError, Invalid
from autovibe.ledger import amount_of
from autovibe.models import ExchangeRate
from autovibe.settings import Settings

ECB, MANUAL = "ECB", "manual"
#: How far back `load` goes in an empty database.
HISTORY = timedelta(days=400)
QUANTUM = Decimal("1e-9")


class NoRate(AutovibeError):
    """No exchange rate is known."""

    code = "no_exchange_rate"
    http_status = 503
    default_hint = "Run `autovibe db upgrade`, or `autovibe rate set RATE`."


class InvalidRate(Invalid):
    """That is not an exchange rate."""

    code = "invalid_rate"


@dataclass(frozen=True)
class Rate:
    """One unit of the base currency costs `rate` of the other; `day` is the rate's own day."""

    rate: Decimal
    day: date
    source: str


@dataclass(frozen=True)
class Staleness:
    """After so many days a rate is stale: as much is added as it may have moved since."""

    days: int
    margin_percent: Decimal

    @classmethod
    def of(cls, settings: Settings) -> Staleness:
        return cls(settings.rate_stale_days, settings.rate_margin_percent)

    def applied(self, rate: Rate, day: date) -> Rate:
        """The rate with the margin, on a day on which it is stale; its source says so."""
        age = (day - rate.day).days
        if age <= self.days or not self.margin_percent:
            return rate
        raised = rate.rate * (1 + self.margin_percent / 100)
        said = f"{rate.source}, {age} days old, +{self.margin_percent.normalize():f} %"
        return Rate(raised.quantize(QUANTUM, rounding=ROUND_CEILING), rate.day, said)


def usd_to_cad(session: Session, at: datetime | date | None = None, staleness: Staleness | None = None) -> Rate:
    """CAD for one USD: the last rate known on that day, with a margin when it is stale."""
    return rate_of(session, "USD", "CAD", at, staleness)


def rate_of(
    session: Session,
    base: str,
    quote: str,
    at: datetime | date | None = None,
    staleness: Staleness | None = None,
) -> Rate:
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
    rate = Rate(found.rate, found.rate_date, found.source)
    return staleness.applied(rate, day) if staleness else rate


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


def views(session: Session, last: int = 20) -> list[dict[str, Any]]:
    """The rates that are stored, the newest first."""
    newest = sa.select(ExchangeRate).order_by(ExchangeRate.rate_date.desc(), ExchangeRate.source.desc()).limit(last)
    return [
        {"day": row.rate_date, "base": row.base, "quote": row.quote, "rate": row.rate, "source": row.source}
        for row in session.scalars(newest)
    ]


def set_manual(session: Session, base: str, quote: str, rate: Decimal, day: date | None = None) -> None:
    """Use this rate from a day (today) on, until a newer one is stored. Raises InvalidRate."""
    for currency in (base, quote):
        if not re.fullmatch("[A-Z]{3}", currency):
            raise InvalidRate(f"{currency!r:.50} is not a currency; it has three capital letters")
    if base == quote:
        raise InvalidRate("A currency has no rate against itself")
    rate = amount_of(rate, "rate", positive=True)
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
