"""The ledger: one immutable line for each thing used. A correction is a new line.

Only `budgets` writes here, for a line and the budget that it is taken from belong to one transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from autovibe.errors import Invalid
from autovibe.models import Machine, Project, Usage, UsageKey
from autovibe.periods import UNITS

#: Below this NUMERIC(24,9) holds every amount.
LIMIT = Decimal("1e15")
QUANTUM = Decimal("1e-9")


class InvalidAmount(Invalid):
    """That is not an amount."""

    code = "invalid_amount"


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
        if line.resource_type != "money" and line.unit != UNITS.get(line.resource_type):
            raise InvalidAmount(f"{line.resource_type} is counted in {UNITS.get(line.resource_type)}, not {line.unit}")
    new = _claim(session, [(line, uuid4()) for line in lines])
    rows = [
        {
            "uuid": uuid,
            "project_uuid": project_uuid,
            "machine_uuid": machine_uuid,
            "reservation_uuid": reservation_uuid,
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
            "billing_period_start": day,
            "billing_period_end": day + timedelta(days=1),
            "metadata_": line.metadata,
        }
        for line, uuid in new
    ]
    if rows:
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
    query = sa.select(sa.func.coalesce(sa.func.sum(Usage.cost_cad), 0)).where(Usage.project_uuid == project_uuid)
    if machine_uuid is not None:
        query = query.where(Usage.machine_uuid == machine_uuid)
    return session.scalar(query) or Decimal(0)


def views(session: Session, project_uuid: UUID | None = None, limit: int | None = None) -> list[dict[str, Any]]:
    """The ledger's last lines as plain data, oldest first, with the names that a person knows."""
    query = (
        sa.select(Usage, Project.name, Machine.name)
        .join(Project, Project.uuid == Usage.project_uuid)
        .outerjoin(Machine, Machine.uuid == Usage.machine_uuid)
        .order_by(Usage.recorded_at.desc(), Usage.uuid)
        .limit(limit)
    )
    if project_uuid is not None:
        query = query.where(Usage.project_uuid == project_uuid)
    return [_view(*row) for row in reversed(session.execute(query).all())]


def _view(line: Usage, project: str, machine: str | None) -> dict[str, Any]:
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
SELECT metadata ->> 'model' AS model, count(*) AS calls,
       coalesce(sum((metadata #>> '{tokens,input}')::bigint), 0)::bigint AS input,
       coalesce(sum((metadata #>> '{tokens,cache_read}')::bigint), 0)::bigint AS cache_read,
       coalesce(sum(coalesce((metadata #>> '{tokens,cache_write_5m}')::bigint, 0)
                  + coalesce((metadata #>> '{tokens,cache_write_1h}')::bigint, 0)), 0)::bigint AS cache_write,
       coalesce(sum((metadata #>> '{tokens,output}')::bigint), 0)::bigint AS output,
       sum(cost) FILTER (WHERE currency = 'USD') AS usd, sum(cost_cad) AS cad
FROM resource_usage
WHERE resource_type = 'money' AND metadata ? 'model' AND (project_uuid = :project OR CAST(:project AS uuid) IS NULL)
GROUP BY 1 ORDER BY cad DESC
"""


def by_model(session: Session, project_uuid: UUID | None = None) -> list[dict[str, Any]]:
    """Calls, tokens and money of each model."""
    return [dict(row) for row in session.execute(sa.text(BY_MODEL), {"project": project_uuid}).mappings()]
