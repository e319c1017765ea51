"""Pools, prices, exchange rates, reconciling."""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import BaseModel, Field

from autovibe.api.v1.schemas.base import Amount, Body, Day, Number, View, text

#: What can be pooled, and for how long.
Shared = Literal["money", "api_calls"]
Each = Literal["daily", "weekly", "monthly"]


class PoolSet(Body):
    amount: Amount = Field(gt=0, description="Of each period, for all projects together.")


class PoolLimit(Body):
    floor: Amount = Field(0, description="What is never lent to others.")
    cap: Amount | None = Field(None, description="What its share is at most.")


class PoolShare(View):
    project: str
    greediness: Number
    share: Number
    used: Number
    reserved: Number
    floor: Number | None
    cap: Number | None
    until: date


class Pool(View):
    """What all projects share in each period, and their shares of the present one."""

    resource: str
    period: str
    amount: Number
    unit: str
    shares: list[PoolShare]


class Price(View):
    """USD per million tokens; web searches per thousand."""

    provider: str
    model: str
    above_tokens: int
    input: Number
    output: Number
    cache_read: Number
    cache_write_5m: Number
    cache_write_1h: Number
    web_search: Number | None
    from_: date = Field(alias="from")
    source: str


class RateSet(Body):
    rate: Amount = Field(gt=0, description="One unit of the first currency costs so much of the second.")
    on: Day | None = Field(None, description="From this day on; default: today.")


class Rate(View):
    day: date
    base: str
    quote: str
    rate: Number
    source: str


class ReconcileBook(Body):
    first: Day
    last: Day
    charge_to: text(255, 1) | None = Field(None, description="The project that pays what no line explains.")
    fingerprint: text(64, 64) = Field(description="Of what is to be booked, as GET has shown it.")


class ReconciledDay(BaseModel):
    model: str
    day: date
    reported: dict[str, int]
    in_ledger: dict[str, int]


class ReconciledModel(BaseModel):
    model: str
    missing: dict[str, int] = Field(description="Tokens that the provider reports and no exact line has.")
    booked_without_usage_cad: Number
    remainder_cad: Number


class Reconciliation(BaseModel):
    """The ledger beside the provider's own report."""

    days: list[ReconciledDay]
    models: list[ReconciledModel]
    corrections_cad: Number
    corrections: int
    unexplained_cad: Number
    booked: bool
    fingerprint: str
