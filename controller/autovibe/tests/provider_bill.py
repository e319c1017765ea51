"""What the stand-in provider's bill comes to, computed here by hand from the price file."""

from __future__ import annotations

import json
import tomllib
from decimal import ROUND_CEILING, Decimal
from importlib import resources
from typing import Any

import sqlalchemy as sa
from autovibe import db, prices
from autovibe.gateway.requests import check_messages
from autovibe.models import ExchangeRate
from autovibe.settings import Settings


def tariff_of(settings: Settings) -> Decimal:
    """The newest CAD for a USD."""
    newest = sa.select(ExchangeRate.rate).where(ExchangeRate.base == "USD", ExchangeRate.quote == "CAD")
    with db.session_scope(settings) as session:
        return session.scalars(newest.order_by(ExchangeRate.rate_date.desc())).first()


def cost_of(line: dict[str, Any], rate: Decimal) -> Decimal:
    """One line of the bill in CAD."""
    table = tomllib.loads(resources.files("autovibe").joinpath("prices.toml").read_text())["prices"]
    (price,) = [[Decimal(one) for one in row[3:8]] for row in table if row[0] == line["model"]]
    used, written = line["usage"], line["usage"]["cache_creation"]
    counts = (
        used["input_tokens"],
        used["output_tokens"],
        used["cache_read_input_tokens"],
        written["ephemeral_5m_input_tokens"],
        written["ephemeral_1h_input_tokens"],
    )
    usd = sum(one * count for one, count in zip(price, counts, strict=True)) / 1_000_000
    return (usd * rate).quantize(Decimal("1e-9"), rounding=ROUND_CEILING)


def worst_case(settings: Settings, asked: list[dict[str, Any]]) -> Decimal:
    """The dearest bound of these calls."""
    with db.session_scope(settings) as session:
        return max(
            prices.upper_bound(
                prices.tariff(session, body["model"]),
                input_tokens_max=check_messages(json.dumps(body).encode()).input_bound,
                max_tokens=body["max_tokens"],
            ).cad
            for body in asked
        )
