"""/api/v1/pools, /prices, /rates and /reconciliation: what all projects share, and what money costs."""

from __future__ import annotations

import hashlib
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from autovibe import jsonform, pools, prices, rates, reconcile
from autovibe.access import Level
from autovibe.api.v1 import paging, schemas
from autovibe.api.v1.calls import Answer, ApiRoute, Call, doc, needs
from autovibe.api.v1.routes import PREFIX
from autovibe.errors import Conflict, Invalid
from autovibe.models import Pool, Project

router = APIRouter(prefix=PREFIX, tags=["money"], route_class=ApiRoute)

Currency = Annotated[str, Path(max_length=16, description="Three capital letters, such as CAD.")]
_POOL = "/pools/{resource}/{each}"
#: As much as the provider's report is asked for at once.
MOST_DAYS = 366
_MOST_RATES = 10_000


class HasChanged(Conflict):
    """The differences are not those any more that you have seen."""

    code = "reconciliation_changed"
    default_hint = "Look at them again, then book."


@router.get("/pools", response_model=schemas.Page[schemas.Pool], **doc())
@needs(Level.READ)
def list_pools(call: Call, limit: paging.Limit = 100, cursor: paging.Cursor = None):
    """The pools, and each project's share of the present period. A project's own share is one of its budgets, too."""
    call.everything("A project's budgets show its share.")
    return paging.of_list([pools.view(call.session, one) for one in pools.all_of(call.session)], cursor, limit)


@router.put(_POOL, response_model=schemas.Pool, **doc(409))
@needs(Level.ADMIN)
def set_pool(call: Call, resource: schemas.Shared, each: schemas.Each, body: schemas.PoolSet):
    """Share an amount of each period among the projects, from the present one on."""
    before = _amount(pools.find(call.session, each, resource))
    made = pools.set_pool(
        call.session, body.amount, period=each, resource=resource, week_start=call.settings.week_start
    )
    call.session.refresh(made)
    _audit(call, "set", resource, each, before=before, after=_amount(made))
    return pools.view(call.session, made)


@router.delete(_POOL, **doc(404, status=204))
@needs(Level.ADMIN)
def remove_pool(call: Call, resource: schemas.Shared, each: schemas.Each):
    """End a pool; the projects' own budgets stay."""
    before = _amount(pools.find(call.session, each, resource))
    pools.remove(call.session, period=each, resource=resource)
    _audit(call, "remove", resource, each, before=before)
    return Answer(None, 204)


@router.put(f"{_POOL}/limits/{{project}}", response_model=schemas.Pool, **doc(404, 409))
@needs(Level.ADMIN)
def limit_share(
    call: Call,
    resource: schemas.Shared,
    each: schemas.Each,
    project: str,
    body: schemas.PoolLimit,
):
    """Set what a project's share of a pool is at least and at most."""
    found = call.project(project)
    before = pools.limits_of(call.session, pools.find(call.session, each, resource), found.uuid)
    pools.limit(call.session, found.uuid, period=each, resource=resource, floor=body.floor, cap=body.cap)
    _audit(call, "limit", resource, each, project=found, before=before, after=body.model_dump())
    return pools.view(call.session, pools.find(call.session, each, resource))


def _amount(pool: Pool | None) -> dict[str, Any] | None:
    return None if pool is None else {"amount": pool.amount}


def _audit(call: Call, action: str, resource: str, each: str, project: Project | None = None, **what: Any) -> None:
    only = {"uuid": project.uuid, "project_uuid": project.uuid} if project is not None else {}
    call.audit(action, "pool", name=f"{each} {resource}", **only, **what)


@router.get("/prices", response_model=schemas.Page[schemas.Price], **doc())
@needs(Level.READ)
def list_prices(
    call: Call,
    model: Annotated[str | None, Query(max_length=200, description="Whose names have this in them.")] = None,
    on: Annotated[schemas.Day | None, Query(description="On this day instead of today.")] = None,
    limit: paging.Limit = 100,
    cursor: paging.Cursor = None,
):
    """The prices of models that hold on a day."""
    return paging.of_list(prices.views(call.session, model, on), cursor, limit)


@router.get("/rates", response_model=schemas.Page[schemas.Rate], **doc())
@needs(Level.READ)
def list_rates(call: Call, limit: paging.Limit = 100, cursor: paging.Cursor = None):
    """The exchange rates that are known, the newest first."""
    return paging.of_list(rates.views(call.session, _MOST_RATES), cursor, limit)


@router.put("/rates/{base}/{quote}", response_model=schemas.Rate, **doc())
@needs(Level.ADMIN)
def set_rate(call: Call, base: Currency, quote: Currency, body: schemas.RateSet):
    """Use a rate until a newer one is known; what holds now is answered."""
    day = max(body.on or date.min, datetime.now(UTC).date())
    try:
        held = rates.rate_of(call.session, base, quote, day)
        before = {"rate": held.rate, "on": held.day, "source": held.source}
    except rates.NoRate:
        before = None
    rates.set_manual(call.session, base, quote, body.rate, body.on)
    now = rates.rate_of(call.session, base, quote, day)
    call.audit("set", "rate", name=f"{base}/{quote}", before=before, after=body.model_dump())
    return {"base": base, "quote": quote, "rate": now.rate, "day": now.day, "source": now.source}


@router.get("/reconciliation", response_model=schemas.Reconciliation, **doc(404))
@needs(Level.ADMIN)
def preview(
    call: Call,
    first: Annotated[schemas.Day, Query(description="First day, in UTC.")],
    last: Annotated[schemas.Day, Query(description="Last day, in UTC; it is included.")],
    charge_to: Annotated[
        str | None, Query(max_length=255, description="The project that pays what no line explains.")
    ] = None,
):
    """The ledger beside the provider's own usage report, and the corrections that would put it right."""
    call.everything("Ask an admin of all projects.")
    return _view(_compared(call, first, last, charge_to))


@router.post("/reconciliation", response_model=schemas.Reconciliation, **doc(404, 409))
@needs(Level.ADMIN)
def book(call: Call, body: schemas.ReconcileBook):
    """Book the corrections that GET has shown; refused when they are not those any more."""
    call.everything("Ask an admin of all projects.")
    found = _compared(call, body.first, body.last, body.charge_to)
    view = _view(found)
    if view["fingerprint"] != body.fingerprint:
        raise HasChanged()
    reconcile.book(call.session, found)
    said = {name: view[name] for name in ("corrections", "corrections_cad", "unexplained_cad")}
    call.audit("book", "reconciliation", name=f"{body.first} to {body.last}", after=said)
    return view | {"booked": bool(found.corrections)}


def _compared(call: Call, first: date, last: date, charge_to: str | None) -> reconcile.Reconciled:
    if first > last:
        raise Invalid(f"The range ends on {last}, before it begins on {first}")
    if (last - first).days >= MOST_DAYS or last > datetime.now(UTC).date() + timedelta(days=1):
        raise Invalid(f"From {first} to {last} is no range", f"At most {MOST_DAYS} days, none of them to come.")
    owner = call.project(charge_to).uuid if charge_to else None
    reported = reconcile.report(call.settings, first, last)
    return reconcile.compare(call.session, reported, first, last, prices.Policy.of(call.settings), owner)


def _view(found: reconcile.Reconciled) -> dict[str, Any]:
    corrections = [
        [entry.project_uuid, entry.machine_uuid, entry.day, entry.line.cost_cad, entry.line.metadata]
        for entry in found.corrections
    ]
    return {
        "days": [
            {"model": one.model, "day": day, "reported": vars(theirs), "in_ledger": vars(ours)}
            for one in found.models
            for day, (theirs, ours) in sorted(one.days.items())
        ],
        "models": [
            {
                "model": one.model,
                "missing": {name: count for name, count in one.missing.items() if count},
                "booked_without_usage_cad": one.uncertain_cad,
                "remainder_cad": one.cad,
            }
            for one in found.models
        ],
        "corrections_cad": sum((entry.line.cost_cad for entry in found.corrections), start=Decimal(0)),
        "corrections": len(found.corrections),
        "unexplained_cad": found.unexplained_cad,
        "booked": False,
        "fingerprint": hashlib.sha256(jsonform.dumps(corrections)).hexdigest(),
    }
