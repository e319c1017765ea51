"""The ledger: one immutable line for each thing used. A correction is a new line.

A line and the budget that it is taken from belong to one transaction: only `budgets` calls `write`; `write_many` does
both. What the lines add up to by day (`usage_by_day`) is kept by the database.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from autovibe import periods, pgarrays
from autovibe.errors import Invalid
from autovibe.models import Machine, Project, Usage, UsageKey
from autovibe.periods import UNITS

#: Below this NUMERIC(24,9) holds every amount.
LIMIT = Decimal("1e15")
QUANTUM = Decimal("1e-9")
_PLAIN = re.compile(r"\d{1,15}(?:\.\d{1,9})?").fullmatch
#: The only kind of line that takes back.
CORRECTION = "correction"


class InvalidAmount(Invalid):
    """That is not an amount."""

    code = "invalid_amount"


class InvalidLine(Invalid):
    """That cannot be a line of the ledger."""

    code = "invalid_line"


@dataclass(frozen=True)
class UsageLine:
    """What was used and what it cost.

    resource_type: money, time, api_calls, cpu, memory, storage, network. `amount` is in `unit`. `cost` is in
    `currency`, `cost_cad` what the budget pays (None: nothing). A second line with the same `idempotency_key` is not
    written.
    """

    resource_type: str
    resource_subtype: str | None = None
    amount: Decimal = Decimal(0)
    unit: str = "CAD"
    cost_cad: Decimal | None = None
    currency: str | None = None
    cost: Decimal | None = None
    exchange_rate: Decimal | None = None
    exchange_rate_date: date | None = None
    price_uuid: UUID | None = None
    idempotency_key: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    checkpoint_uuid: UUID | None = None
    operation_uuid: UUID | None = None

    @classmethod
    def of_call(cls, cost: Any, key: str | None, subtype: str = "claude_api", **metadata: Any) -> UsageLine:
        """The money line of a model call, from a `prices.Cost`."""
        return cls(
            resource_type="money",
            resource_subtype=subtype,
            amount=cost.usd,
            unit="USD",
            cost_cad=cost.cad,
            currency="USD",
            cost=cost.usd,
            exchange_rate=cost.rate,
            exchange_rate_date=cost.rate_date,
            price_uuid=cost.price_uuid,
            idempotency_key=key,
            metadata=cost.metadata | metadata,
        )


def amount_of(value: Decimal | int | str, what: str = "amount", *, positive: bool = False) -> Decimal:
    """A checked amount with at most nine decimals; raises InvalidAmount for NaN, infinity, floats and huge numbers."""
    if isinstance(value, (bool, float)):
        raise InvalidAmount(f"The {what} must be a decimal number, not {type(value).__name__}")
    try:
        amount = Decimal(value)
    except (ArithmeticError, TypeError, ValueError):
        raise InvalidAmount(f"The {what} {value!r} is not a number") from None
    if not amount.is_finite():
        raise InvalidAmount(f"The {what} {amount} is not a number")
    if abs(amount) >= LIMIT:
        raise InvalidAmount(f"The {what} {amount} is too large")
    if amount != amount.quantize(QUANTUM):
        raise InvalidAmount(f"The {what} {amount} has more than nine decimals")
    if amount < 0 or (positive and amount == 0):
        raise InvalidAmount(f"The {what} must be {'above' if positive else 'at least'} 0, not {amount}")
    return amount


@dataclass(frozen=True)
class Entry:
    """A line of a project, and of one of its machines; it counts to the project's day at a time (now), or to `day`."""

    project_uuid: UUID
    line: UsageLine
    machine_uuid: UUID | None = None
    at: datetime | None = None
    day: date | None = None


@dataclass(frozen=True)
class Booked:
    """What `write_many` wrote of a project: how many lines, and their CAD.

    `has_budget`: there was a budget of money to take it from. `froze`: the budgets that this has frozen, by their
    names ("daily budget of money").
    """

    project_uuid: UUID
    lines: int
    cad: Decimal
    has_budget: bool
    froze: tuple[str, ...]


def write_many(session: Session, entries: Sequence[Entry]) -> list[Booked]:
    """Write the entries whose keys are new, and take them from their budgets: the way for metering, fast.

    All in the caller's transaction, by one statement; each budget is moved once. What nobody had reserved and a hard
    budget does not have is an overrun, as with `budgets.charge`; a project without a budget is written all the same.
    Projects of which nothing was new are not in what is returned. Give all that belongs to one transaction at once:
    a second call in it may wait for somebody who waits for it.
    """
    if not entries:
        return []
    for entry in entries:
        check(entry.line)
    periods.lock(session)
    days = _days(session, entries)
    periods.roll_all(session, {(entry.project_uuid, day) for entry, day in zip(entries, days, strict=True)})
    with _refused():
        booked = session.execute(_WRITE, _arrays(entries, days)).all()
    return [Booked(row.project_uuid, row.lines, row.cad, row.has_money, tuple(row.froze)) for row in booked]


def _days(session: Session, entries: Sequence[Entry]) -> list[date]:
    """The day that each entry counts to."""
    wanted = list({(entry.project_uuid, entry.at) for entry in entries})
    now = periods.moment(None)
    times = [now if at is None else periods.moment(at) for _, at in wanted]
    values = {"projects": [project for project, _ in wanted], "times": times}
    found = dict(zip(wanted, session.execute(_DAYS, values).scalars(), strict=True))
    for (project, _), day in found.items():
        if day is None:
            raise InvalidLine(f"There is no project {project}")
    return [entry.day or found[entry.project_uuid, entry.at] for entry in entries]


def _arrays(entries: Sequence[Entry], days: Sequence[date]) -> dict[str, str | None]:
    """The entries as `write_usage` takes them: an array's text for each of `_ARRAYS`."""
    rows = []
    for entry, day in zip(entries, days, strict=True):
        line = entry.line
        rows.append((
            line.idempotency_key, entry.project_uuid, entry.machine_uuid, line.checkpoint_uuid, line.operation_uuid,
            line.resource_type, line.resource_subtype, line.amount, line.unit, line.cost_cad, line.cost, line.currency,
            line.exchange_rate, line.exchange_rate_date, line.price_uuid, day,
            json.dumps(line.metadata) if line.metadata else None,
        ))  # fmt: skip
    columns = zip(_ARRAYS.items(), zip(*rows, strict=True), strict=True)
    return {name: pgarrays.text_of(column, quoted=kind in ("text", "jsonb")) for (name, kind), column in columns}


def _columns(line: UsageLine) -> dict[str, Any]:
    """What of a line stands in columns of the same names."""
    return {
        "checkpoint_uuid": line.checkpoint_uuid,
        "operation_uuid": line.operation_uuid,
        "resource_type": line.resource_type,
        "resource_subtype": line.resource_subtype,
        "amount": line.amount,
        "unit": line.unit,
        "cost_cad": line.cost_cad,
        "cost": line.cost,
        "currency": line.currency,
        "exchange_rate": line.exchange_rate,
        "exchange_rate_date": line.exchange_rate_date,
        "price_uuid": line.price_uuid,
    }


def check(line: UsageLine) -> None:
    """Raise InvalidAmount or InvalidLine for what cannot be in the ledger."""
    unit = UNITS.get(line.resource_type)
    if unit is None:
        raise InvalidLine(f"A resource is one of {', '.join(UNITS)}, not {line.resource_type!r:.50}")
    if line.unit != unit and line.resource_type != "money":
        raise InvalidAmount(f"{line.resource_type} is counted in {unit}, not {line.unit}")
    negative = line.resource_subtype == CORRECTION
    for name, value in (("amount", line.amount), ("cost", line.cost), ("cost in CAD", line.cost_cad)):
        if value is not None and not _is_plain(value):
            amount_of(abs(value) if negative and isinstance(value, Decimal) else value, name)
    if line.cost is not None and line.currency != "CAD":
        if not re.fullmatch("[A-Z]{3}", line.currency or ""):
            raise InvalidLine(f"{line.currency!r:.50} is not a currency; it has three capital letters")
        if line.exchange_rate is None or line.exchange_rate_date is None or line.cost_cad is None:
            raise InvalidLine(f"A cost in {line.currency} needs its exchange rate, the rate's date, and its CAD")


def _is_plain(value: Any) -> bool:
    """A quick look whether it is what most are: not negative, below the limit, of at most nine decimals."""
    return type(value) is Decimal and _PLAIN(str(value)) is not None


@contextmanager
def _refused() -> Iterator[None]:
    """What the database refuses, in words."""
    try:
        yield
    except IntegrityError as error:
        constraint = error.orig.diag.constraint_name or ""
        what = next((said for name, said in _REFUSALS.items() if name in constraint), None)
        if what is None:
            raise
        raise InvalidLine(what) from None


#: constraint -> what its violation says
_REFUSALS = {
    "machine_of_project": "A line names a machine that is not one of its project's",
    "project_uuid": "A line names a project that does not exist",
    "checkpoint_uuid": "A line names a checkpoint that does not exist",
    "operation_uuid": "A line names an operation that does not exist",
    "price_uuid": "A line names a price that does not exist",
    "used_amount": "A correction takes back more than was used",
}
_DAYS = sa.text(
    "SELECT project_day(project, at) FROM unnest(CAST(:projects AS uuid[]), CAST(:times AS timestamptz[])) "
    "WITH ORDINALITY AS w (project, at, place) ORDER BY place"
)
#: parameters of `write_usage` -> the types of their elements
_ARRAYS = {
    "keys": "text", "projects": "uuid", "machines": "uuid", "checkpoints": "uuid", "operations": "uuid",
    "types": "text", "subtypes": "text", "amounts": "numeric", "units": "text", "cads": "numeric", "costs": "numeric",
    "currencies": "text", "rates": "numeric", "rate_dates": "date", "prices": "uuid", "days": "date",
    "metadata": "jsonb",
}  # fmt: skip
_CASTS = ", ".join(f"CAST(:{name} AS {kind}[])" for name, kind in _ARRAYS.items())
_WRITE = sa.text(f"SELECT * FROM write_usage({_CASTS})")  # noqa: S608 - nothing from outside


def write(
    session: Session,
    lines: Sequence[UsageLine],
    *,
    project_uuid: UUID,
    day: date,
    machine_uuid: UUID | None = None,
    reservation_uuid: UUID | None = None,
) -> dict[str, Decimal]:
    """Write the lines whose keys are new, as the project's `day`; returns what they sum up to, by resource type.

    `money` is the sum of the `cost_cad` of them all.
    """
    for line in lines:
        check(line)
    new = _claim(session, [(line, uuid4()) for line in lines])
    rows = [
        _columns(line)
        | {
            "uuid": uuid,
            "project_uuid": project_uuid,
            "machine_uuid": machine_uuid,
            "reservation_uuid": reservation_uuid,
            "billing_period_start": day,
            "billing_period_end": day + timedelta(days=1),
            "metadata_": line.metadata,
        }
        for line, uuid in new
    ]
    if rows:
        with _refused():
            session.execute(sa.insert(Usage), rows)
    spent = {"money": Decimal(0)}
    for line, _ in new:
        spent["money"] += line.cost_cad or Decimal(0)
        if line.resource_type != "money":
            spent[line.resource_type] = spent.get(line.resource_type, Decimal(0)) + line.amount
    return spent


def _claim(session: Session, lines: list[tuple[UsageLine, UUID]]) -> list[tuple[UsageLine, UUID]]:
    """The lines that were not counted before; their keys are taken now, in the caller's transaction."""
    keyed: dict[str, UUID] = {}
    for line, uuid in lines:
        if line.idempotency_key is not None:
            keyed.setdefault(line.idempotency_key, uuid)
    if not keyed:
        return lines
    # In one order everywhere: two reports with the same keys wait for each other instead of deadlocking.
    rows = [
        {"idempotency_key": key, "usage_uuid": uuid, "recorded_at": sa.func.now()}
        for key, uuid in sorted(keyed.items())
    ]
    statement = insert(UsageKey).values(rows).on_conflict_do_nothing().returning(UsageKey.usage_uuid)
    taken = set(session.scalars(statement))
    return [(line, uuid) for line, uuid in lines if line.idempotency_key is None or uuid in taken]


def total_cad(session: Session, project_uuid: UUID, machine_uuid: UUID | None = None) -> Decimal:
    """The sum of the lines of a project, or of one of its machines."""
    query = sa.text("""
        SELECT coalesce(sum(cad), 0) FROM usage_by_day
        WHERE project_uuid = :project AND (machine_uuid = :machine OR CAST(:machine AS uuid) IS NULL)
    """)
    return session.scalar(query, {"project": project_uuid, "machine": machine_uuid}) or Decimal(0)


def views(session: Session, project_uuid: UUID | None = None, limit: int | None = None) -> list[dict[str, Any]]:
    """The ledger's last lines as plain data, oldest first, with the names that a person knows."""
    newest = sa.select(Usage).order_by(Usage.recorded_at.desc(), Usage.uuid.desc()).limit(limit)
    if project_uuid is not None:
        newest = newest.where(Usage.project_uuid == project_uuid)
    line = aliased(Usage, newest.subquery())
    query = (
        sa.select(line, Project.name, Machine.name)
        .join(Project, Project.uuid == line.project_uuid)
        .outerjoin(Machine, Machine.uuid == line.machine_uuid)
        .order_by(line.recorded_at, line.uuid)
    )
    return [view(*row) for row in session.execute(query)]


def view(line: Usage, project: str, machine: str | None) -> dict[str, Any]:
    """A line as plain data, with the names of its project and machine."""
    return {
        "recorded_at": line.recorded_at,
        "project": project,
        "machine": machine,
        "type": line.resource_type,
        "subtype": line.resource_subtype,
        "model": line.metadata_.get("model"),
        "amount": line.amount,
        "unit": line.unit,
        "cost": line.cost,
        "currency": line.currency,
        "exchange_rate": line.exchange_rate,
        "exchange_rate_date": line.exchange_rate_date,
        "cost_cad": line.cost_cad,
        "reservation": line.reservation_uuid,
        "uuid": line.uuid,
        "metadata": line.metadata_,
    }


BY_MODEL = """
SELECT model, sum(lines)::bigint AS calls, sum(input_tokens)::bigint AS input,
       sum(cache_read_tokens)::bigint AS cache_read, sum(cache_write_tokens)::bigint AS cache_write,
       sum(output_tokens)::bigint AS output, sum(usd) AS usd, sum(cad) AS cad
FROM usage_by_day
WHERE resource_type = 'money' AND model IS NOT NULL AND (project_uuid = :project OR CAST(:project AS uuid) IS NULL)
GROUP BY 1 ORDER BY cad DESC
"""


def by_model(session: Session, project_uuid: UUID | None = None) -> list[dict[str, Any]]:
    """Calls, tokens and money of each model."""
    return [dict(row) for row in session.execute(sa.text(BY_MODEL), {"project": project_uuid}).mappings()]
