"""Reconciling: the ledger beside Anthropic's own usage report, and corrections of what was booked without its usage.

A call whose usage never arrived (a connection or a hub that died) is booked at its bound. The report says what all
calls used: what it has beyond the calls that are known exactly was used by these, as far as their bounds reach; beyond
them it was somebody else. Days are UTC, as in the report; the sums of the whole range count, so that a call around
midnight inside it does no harm.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import ROUND_CEILING, Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from autovibe import ledger, prices
from autovibe.errors import AutovibeError, Invalid
from autovibe.ledger import CORRECTION, QUANTUM, Entry, UsageLine
from autovibe.prices import Tokens
from autovibe.settings import Settings

PATH = "/v1/organizations/usage_report/messages"
MOST_DAYS = 31
REASON = "reconcile"


class NoAdminKey(AutovibeError):
    """The usage report needs an admin key."""

    code = "no_admin_key"
    exit_code = 2
    default_hint = "Set AUTOVIBE_ANTHROPIC_ADMIN_KEY_FILE to a file with it (Console → Settings → Admin keys)."


class ReportFailed(AutovibeError):
    """The usage report could not be had."""

    code = "report_failed"
    http_status = 503


@dataclass(frozen=True)
class Uncertain:
    """What was booked without its usage: of a project, machine, day (of the project) and model; in CAD.

    `most`: what was booked before any comparison, which is the most that it can have cost.
    """

    project_uuid: UUID
    machine_uuid: UUID | None
    day: date
    utc_day: date
    model: str | None
    cad: Decimal = Decimal(0)
    most: Decimal = Decimal(0)


@dataclass
class Compared:
    """A model in the range: what the provider reports, what the ledger knows exactly, and what it has booked besides.

    `cad`: what the provider's remainder costs, to be compared with the sum of `uncertain`.
    """

    model: str
    reported: Tokens
    exact: Tokens
    uncertain_cad: Decimal = Decimal(0)
    cad: Decimal = Decimal(0)
    days: dict[date, tuple[Tokens, Tokens]] = field(default_factory=dict)

    @property
    def missing(self) -> dict[str, int]:
        """Tokens that the provider reports and no exact line has; negative: the ledger has more."""
        return {one.name: getattr(self.reported, one.name) - getattr(self.exact, one.name) for one in fields(Tokens)}


@dataclass(frozen=True)
class Reconciled:
    """What was compared, the corrections that put it right, and what no line of the ledger explains (CAD)."""

    models: list[Compared]
    corrections: list[Entry]
    unexplained_cad: Decimal


def report(settings: Settings, first: date, last: date) -> dict[tuple[date, str], Tokens]:
    """What the provider reports of each UTC day, both included, and model. Raises NoAdminKey, ReportFailed."""
    if settings.anthropic_admin_key is None:
        raise NoAdminKey
    import anthropic

    key = settings.anthropic_admin_key.get_secret_value()
    found: dict[tuple[date, str], Tokens] = {}
    query: dict[str, Any] = {
        "starting_at": _text(first),
        "ending_at": _text(last + timedelta(days=1)),
        "bucket_width": "1d",
        "group_by": ["model"],
        "limit": MOST_DAYS,
    }
    try:
        with anthropic.Anthropic(api_key=key, auth_token=None, base_url=settings.upstream_url, timeout=60) as client:
            while True:
                page: Any = client.get(PATH, cast_to=object, options={"params": query})
                _read(page, found)
                if not page.get("has_more"):
                    return found
                query["page"] = page["next_page"]
    except anthropic.APIStatusError as error:
        hint = "It must be an admin key." if error.status_code in (401, 403) else None
        raise ReportFailed(f"The provider refused its usage report ({error.status_code})", hint) from None
    except anthropic.APIError as error:
        raise ReportFailed(f"The provider's usage report cannot be had: {type(error).__name__}") from None


def _read(page: Any, found: dict[tuple[date, str], Tokens]) -> None:
    try:
        for bucket in page["data"]:
            day = datetime.fromisoformat(bucket["starting_at"]).astimezone(UTC).date()
            for row in bucket["results"]:
                key = day, prices.canonical(row["model"] or "(unknown)")
                found[key] = _plus(found.get(key, Tokens()), _tokens(row))
    except (KeyError, TypeError, ValueError, AttributeError, prices.MalformedUsage):
        raise ReportFailed("The provider's usage report is not understood") from None


def _tokens(row: Mapping[str, Any]) -> Tokens:
    """A row's counts, checked as those of a call are."""
    usage = {"input_tokens": row.get("uncached_input_tokens")}
    usage |= {name: row.get(name) for name in ("output_tokens", "cache_read_input_tokens", "cache_creation")}
    searches = (row.get("server_tool_use") or {}).get("web_search_requests")
    return prices.tokens_of({**usage, "server_tool_use": {"web_search_requests": searches}}, together=True)


def _plus(one: Tokens, other: Tokens) -> Tokens:
    return Tokens(*(getattr(one, each.name) + getattr(other, each.name) for each in fields(Tokens)))


def compare(
    session: Session,
    reported: Mapping[tuple[date, str], Tokens],
    first: date,
    last: date,
    policy: prices.Policy,
    charge_to: UUID | None = None,
) -> Reconciled:
    """The ledger of the UTC days from `first` to `last` beside the report, and the corrections; nothing is written.

    One transaction at a time compares, so that none books what another one just does. What nothing explains (somebody
    else used the key) is charged to the project `charge_to`, or to nobody.
    """
    if first > last:
        raise Invalid(f"The range ends on {last}, before it begins on {first}")
    session.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('autovibe reconcile'))"))
    exact, uncertain = _exact(session, first, last), _uncertain(session, first, last)
    models = _models(reported, exact, uncertain)
    for one in models:
        one.cad = _cost(session, one, last, policy)
    corrections, left = _corrections(models, uncertain)
    if left and charge_to:
        corrections.append(_correction(Uncertain(charge_to, None, last, last, None), left, charged=True))
        left = Decimal(0)
    return Reconciled(models, corrections, left)


def book(session: Session, found: Reconciled) -> Decimal:
    """Write the corrections, of a comparison that this transaction has made; returns their CAD."""
    return sum((booked.cad for booked in ledger.write_many(session, found.corrections)), Decimal(0))


def _models(
    reported: Mapping[tuple[date, str], Tokens],
    exact: Mapping[tuple[date, str], Tokens],
    uncertain: Iterable[Uncertain],
) -> list[Compared]:
    found: dict[str, Compared] = {}
    for day, model in sorted({*reported, *exact}):
        one = found.setdefault(model, Compared(model, Tokens(), Tokens()))
        theirs, ours = reported.get((day, model), Tokens()), exact.get((day, model), Tokens())
        one.days[day] = theirs, ours
        one.reported, one.exact = _plus(one.reported, theirs), _plus(one.exact, ours)
    for line in uncertain:
        if line.model is not None:
            one = found.setdefault(line.model, Compared(line.model, Tokens(), Tokens()))
            one.uncertain_cad += line.cad
    return [found[model] for model in sorted(found)]


def _cost(session: Session, one: Compared, day: date, policy: prices.Policy) -> Decimal:
    """What the remainder costs: at the dearest tier, for nobody knows how long the prompts were."""
    missing = Tokens(**{name: max(0, count) for name, count in one.missing.items()})
    if missing == Tokens():
        return Decimal(0)
    # A model that only others use keeps nobody from reconciling.
    policy = replace(policy, dearest_for_unknown=True)
    return prices.dearest_cost(prices.tariff(session, one.model, day, policy=policy), missing).cad


def _corrections(models: list[Compared], uncertain: list[Uncertain]) -> tuple[list[Entry], Decimal]:
    """Each model's uncertain lines come to its remainder, those without a model to what others leave.

    None comes to more than its bound; what nothing explains is returned, too.
    """
    entries: list[Entry] = []
    left = Decimal(0)
    for one in models:
        left += one.cad - _scaled([line for line in uncertain if line.model == one.model], one.cad, entries)
    return entries, left - _scaled([line for line in uncertain if line.model is None], left, entries)


def _scaled(lines: list[Uncertain], true: Decimal, entries: list[Entry]) -> Decimal:
    """Add the corrections that bring the lines to what is true, in proportion to their bounds.

    Their sum is exact, so that nothing is left to correct. Returns how much of it they explain.
    """
    bound = sum((line.most for line in lines), Decimal(0))
    left = explained = min(true, bound).quantize(QUANTUM, rounding=ROUND_CEILING)
    for line in lines:
        share = (left * line.most / bound).quantize(QUANTUM) if bound else Decimal(0)
        left, bound = left - share, bound - line.most
        if share != line.cad:
            entries.append(_correction(line, share - line.cad))
    return min(true, explained)


def _correction(line: Uncertain, change: Decimal, *, charged: bool = False) -> Entry:
    """`charged`: it is nobody's call, but what somebody pays for."""
    why = {"corrects": REASON, "corrected_model": line.model, "corrected_day": line.utc_day.isoformat()}
    why |= {"charged": True} if charged else {}
    money = UsageLine("money", CORRECTION, change, "CAD", change, "CAD", change, metadata=why)
    return Entry(line.project_uuid, money, line.machine_uuid, day=line.day)


# Calls at Anthropic's prices: those whose usage arrived, and those that were booked without it.
_EXACT = sa.text("""
SELECT (recorded_at AT TIME ZONE 'UTC')::date AS day, metadata ->> 'model' AS model,
       sum((metadata #>> '{tokens,input}')::bigint) AS input, sum((metadata #>> '{tokens,output}')::bigint) AS output,
       sum((metadata #>> '{tokens,cache_read}')::bigint) AS cache_read,
       sum((metadata #>> '{tokens,cache_write_5m}')::bigint) AS cache_write_5m,
       sum((metadata #>> '{tokens,cache_write_1h}')::bigint) AS cache_write_1h,
       sum((metadata #>> '{tokens,web_searches}')::bigint) AS web_searches
FROM resource_usage
WHERE recorded_at >= :first AND recorded_at < :until AND resource_type = 'money' AND resource_subtype = 'claude_api'
  AND metadata ? 'model' AND coalesce(metadata ->> 'basis', 'usage') = 'usage'
GROUP BY 1, 2
""")
# Together with what was taken back of them, whenever that was.
_UNCERTAIN = sa.text("""
WITH booked AS (
    SELECT project_uuid, machine_uuid, billing_period_start AS day, (recorded_at AT TIME ZONE 'UTC')::date AS utc_day,
           metadata ->> 'model' AS model, cost_cad, reservation_uuid,
           metadata ? 'reaped' OR metadata ? 'settled_at_bound' AS reaped
    FROM resource_usage
    WHERE recorded_at >= :first AND recorded_at < :until AND resource_type = 'money'
      AND resource_subtype = 'claude_api'
      AND (metadata ->> 'basis' IN ('bound', 'partial') OR metadata ->> 'settled_at_bound' = 'true')
), taken_back AS (
    SELECT c.project_uuid, c.machine_uuid, c.billing_period_start AS day, b.utc_day, b.model, c.cost_cad,
           c.cost_cad AS most
    FROM resource_usage c JOIN booked b ON b.reservation_uuid = c.reservation_uuid AND b.reaped
    WHERE c.resource_subtype = 'correction' AND c.metadata ->> 'corrects' = 'settled_at_bound'
    UNION ALL
    SELECT c.project_uuid, c.machine_uuid, c.billing_period_start, (c.metadata ->> 'corrected_day')::date,
           c.metadata ->> 'corrected_model', c.cost_cad, CASE WHEN c.metadata ? 'charged' THEN c.cost_cad ELSE 0 END
    FROM resource_usage c
    WHERE c.resource_subtype = 'correction' AND c.metadata ->> 'corrects' = 'reconcile'
      AND (c.metadata ->> 'corrected_day')::date BETWEEN :first_day AND :last_day
)
SELECT project_uuid, machine_uuid, day, utc_day, model, sum(cost_cad) AS cad, sum(most) AS most FROM (
    SELECT project_uuid, machine_uuid, day, utc_day, model, cost_cad, cost_cad AS most FROM booked
    UNION ALL SELECT * FROM taken_back
) AS lines GROUP BY 1, 2, 3, 4, 5 HAVING sum(cost_cad) <> 0 OR sum(most) <> 0 ORDER BY 1, 3, 4, 5, 2
""")


def _range(first: date, last: date) -> dict[str, Any]:
    midnight = datetime.combine(first, time(), UTC)
    until = datetime.combine(last + timedelta(days=1), time(), UTC)
    return {"first": midnight, "until": until, "first_day": first, "last_day": last}


def _exact(session: Session, first: date, last: date) -> dict[tuple[date, str], Tokens]:
    found: dict[tuple[date, str], Tokens] = defaultdict(Tokens)
    for row in session.execute(_EXACT, _range(first, last)).mappings():
        counts = {one.name: int(row[one.name] or 0) for one in fields(Tokens)}
        key = row["day"], prices.canonical(row["model"])
        found[key] = _plus(found[key], Tokens(**counts))
    return dict(found)


def _uncertain(session: Session, first: date, last: date) -> list[Uncertain]:
    """By what a correction names, which has the model's canonical name."""
    found: dict[tuple[Any, ...], Uncertain] = {}
    for *key, model, cad, most in session.execute(_UNCERTAIN, _range(first, last)).all():
        model = model and prices.canonical(model)
        one = found.setdefault((*key, model), Uncertain(*key, model))
        found[(*key, model)] = replace(one, cad=one.cad + cad, most=one.most + most)
    return list(found.values())


def _text(day: date) -> str:
    return f"{day.isoformat()}T00:00:00Z"
