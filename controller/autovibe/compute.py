"""Compute rates: what a machine itself costs, by resource, machine type and date.

The defaults are in `compute_rates.toml`; a file of the user's (`compute_rates_file`) wins over them. Both become rows
of the database that are never changed: a ledger line names the row that it was priced by.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import ROUND_CEILING, ROUND_HALF_UP, Context, Decimal
from importlib import resources
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.orm import Session

from autovibe import rates
from autovibe.errors import AutovibeError, Invalid
from autovibe.ledger import UsageLine, amount_of
from autovibe.models import ComputeRate
from autovibe.periods import UNITS
from autovibe.settings import Settings

#: A GB, of memory, disk and traffic.
GIB = 1 << 30
HOURS_A_MONTH = 730
QUANTUM = Decimal("1e-9")
MULTIPLIER = "multiplier"
#: A rate's name in a file -> what it prices, and how many of the ledger's units it is for.
NAMES = {
    "machine_hour": ("time", 1),
    "core_hour": ("cpu", 1),
    "memory_gb_hour": ("memory", 1),
    "storage_gb_hour": ("storage", 1),
    "storage_gb_month": ("storage", HOURS_A_MONTH),
    "network_gb": ("network", 1),
}
CURRENCIES = ("CAD", "USD")
_RATE_QUANTUM = Decimal("1e-12")
_EXACT = Context(prec=60)
_KEY = ("item", "machine_type", "effective_from", "source")


class NoComputeRate(AutovibeError):
    """No compute rate is known."""

    code = "no_compute_rate"
    http_status = 503
    default_hint = "Run `autovibe db upgrade`."


class InvalidRates(Invalid):
    """The file of compute rates is wrong."""

    code = "invalid_compute_rates"


@dataclass(frozen=True)
class Tariff:
    """What a machine type's resources cost on a day: the rate of each, its multiplier, and CAD for a USD (or None)."""

    rates: Mapping[str, ComputeRate]
    multiplier: Decimal
    usd: rates.Rate | None

    def cost(self, resource: str, amount: Decimal) -> tuple[Decimal, Decimal]:
        """(in the rate's currency, in CAD) of an amount in the resource's unit; rounded up at the ninth decimal."""
        rate = self.rates[resource]
        cost = _EXACT.multiply(_EXACT.multiply(amount, rate.rate), self.multiplier)
        cad = _EXACT.multiply(cost, self.usd.rate) if rate.currency == "USD" and self.usd else cost
        return _up(cost), _up(cad)

    def line(self, resource: str, subtype: str, amount: Decimal, key: str | None, **metadata: Any) -> UsageLine:
        """The ledger line of an amount."""
        rate = self.rates[resource]
        cost, cad = self.cost(resource, amount)
        in_usd = rate.currency == "USD" and self.usd is not None
        return UsageLine(
            resource_type=resource,
            resource_subtype=subtype,
            amount=amount,
            unit=UNITS[resource],
            cost_cad=cad,
            currency=rate.currency,
            cost=cost,
            exchange_rate=self.usd.rate if in_usd else None,
            exchange_rate_date=self.usd.day if in_usd else None,
            idempotency_key=key,
            metadata={"compute_rate": str(rate.uuid), "multiplier": str(self.multiplier.normalize()), **metadata},
        )


def tariff(session: Session, machine_type: str, at: datetime | date | None = None) -> Tariff:
    """A machine type's tariff on a day (UTC); raises NoComputeRate, NoRate."""
    day = rates.day_of(at)
    query = (
        sa.select(ComputeRate)
        .ext(distinct_on(ComputeRate.item))
        .where(ComputeRate.machine_type.in_(("", machine_type)), ComputeRate.effective_from <= day)
        .order_by(ComputeRate.item, ComputeRate.source == "default", ComputeRate.effective_from.desc())
    )
    found = {row.item: row for row in session.scalars(query)}
    multiplier = found.pop(MULTIPLIER, None)
    for resource, _ in NAMES.values():
        if resource not in found:
            raise NoComputeRate(f"No compute rate is known for {resource} on {day}")
    needs_usd = any(row.currency == "USD" for row in found.values())
    usd = rates.usd_to_cad(session, day) if needs_usd else None
    return Tariff(found, multiplier.rate if multiplier else Decimal(1), usd)


def load(session: Session, settings: Settings) -> int:
    """Put the default rates, and those of the user's file, into the database; returns how many were new.

    Safe to run again. Raises InvalidRates, also for a rate that stands there already with another amount.
    """
    default = resources.files("autovibe").joinpath("compute_rates.toml").read_text(encoding="utf-8")
    rows = parse(default, "default")
    if settings.compute_rates_file is not None:
        rows += parse(_read(settings.compute_rates_file), "override", str(settings.compute_rates_file))
    added = session.scalars(
        insert(ComputeRate).values(rows).on_conflict_do_nothing(index_elements=_KEY).returning(ComputeRate.uuid)
    ).all()
    stored = {tuple(getattr(row, name) for name in _KEY): row for row in session.scalars(sa.select(ComputeRate))}
    for row in rows:
        kept = stored[tuple(row[name] for name in _KEY)]
        if (kept.rate, kept.currency) != (row["rate"], row["currency"]):
            what = f"The {row['item']} {row['machine_type']}".strip()
            raise InvalidRates(
                f"{what} of {row['effective_from']} is {kept.rate.normalize():f} {kept.currency or ''}".strip()
                + " already, and a rate is never changed",
                "Give the new one a later date.",
            )
    return len(added)


def parse(text: str, source: str, name: str = "compute_rates.toml") -> list[dict[str, Any]]:
    """The rows of a file's text. Raises InvalidRates with one line that names what is wrong."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidRates(f"{name} is not valid TOML: {error}") from None
    if unknown := set(data) - {"rates", "multipliers"}:
        raise InvalidRates(f"{name}: there is no table {sorted(unknown)[0]!r}", "Use [[rates]] and [[multipliers]].")
    rows: dict[tuple[str, str, date], dict[str, Any]] = {}
    for entry in _entries(data, "rates", name):
        since, currency = _since(entry, name), entry.pop("currency", "CAD")
        if currency not in CURRENCIES:
            raise InvalidRates(f"{name}: the currency must be CAD or USD, not {currency!r}")
        for key, value in entry.items():
            if key not in NAMES:
                raise InvalidRates(f"{name}: there is no rate {key!r}", f"Rates: {', '.join(NAMES)}.")
            item, units = NAMES[key]
            rate = _number(value, key, name) / units
            _add(rows, name, item, "", since, rate, currency, source)
    for entry in _entries(data, "multipliers", name):
        since = _since(entry, name)
        for machine_type, value in entry.items():
            if not 1 <= len(machine_type) <= 50:
                raise InvalidRates(f"{name}: {machine_type[:60]!r} is no machine type")
            _add(rows, name, MULTIPLIER, machine_type, since, _number(value, machine_type, name), None, source)
    if not rows:
        raise InvalidRates(f"{name} has no rates in it")
    return list(rows.values())


def hours(seconds: Decimal) -> Decimal:
    """Hours, with nine decimals."""
    return (seconds / 3600).quantize(QUANTUM, rounding=ROUND_HALF_UP, context=_EXACT)


def _read(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InvalidRates(f"The setting compute_rates_file names {path}, which cannot be read: {reason}") from None


def _entries(data: dict[str, Any], table: str, name: str) -> list[dict[str, Any]]:
    entries = data.get(table, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InvalidRates(f"{name}: write [[{table}]], with two brackets")
    return entries


def _since(entry: dict[str, Any], name: str) -> date:
    since = entry.pop("from", None)
    if not isinstance(since, date) or isinstance(since, datetime):
        raise InvalidRates(f"{name}: each entry needs the date that it holds from, such as from = 2026-01-31")
    return since


def _number(value: Any, key: str, name: str) -> Decimal:
    if not isinstance(value, str | int):
        raise InvalidRates(f'{name}: write {key} = "{value}", with quotation marks: a money amount is exact')
    try:
        return amount_of(value, key)
    except Invalid as error:
        raise InvalidRates(f"{name}: {error.message}") from None


def _add(
    rows: dict[tuple[str, str, date], dict[str, Any]],
    name: str,
    item: str,
    machine_type: str,
    since: date,
    rate: Decimal,
    currency: str | None,
    source: str,
) -> None:
    if (item, machine_type, since) in rows:
        raise InvalidRates(f"{name} has two rates for {machine_type or item} from {since}")
    rows[item, machine_type, since] = {
        "item": item,
        "machine_type": machine_type,
        "effective_from": since,
        "rate": rate.quantize(_RATE_QUANTUM, rounding=ROUND_HALF_UP),
        "currency": currency,
        "source": source,
    }


def _up(amount: Decimal) -> Decimal:
    return amount.quantize(QUANTUM, rounding=ROUND_CEILING, context=_EXACT)
