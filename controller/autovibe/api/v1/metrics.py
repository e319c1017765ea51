"""What Prometheus reads: the time of requests; machines, money and operations, from the database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import Scope

from autovibe import db, periods
from autovibe.api import metrics
from autovibe.settings import Settings

requests = CollectorRegistry()
_seconds = Histogram(
    "autovibe_api_duration_seconds",
    "Time from a request of the people's API to the end of its answer.",
    ("method", "route", "status"),
    registry=requests,
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)

_MACHINES = sa.text("""
SELECT p.name AS project, m.machine_type AS type, m.status, count(*) AS n
FROM intelligent_machines m JOIN projects p ON p.uuid = m.project_uuid
WHERE m.status <> 'terminated' AND m.machine_type <> 'hub' GROUP BY 1, 2, 3
""")
_BUDGETS = sa.text("""
SELECT p.name AS project, b.resource_type AS resource, b.budget_period AS period, b.unit,
       b.allocated_amount AS allocated, b.used_amount AS used, b.reserved_amount AS reserved
FROM resource_budgets b JOIN projects p ON p.uuid = b.project_uuid
WHERE b.removed_at IS NULL AND now() >= b.period_start AND now() < b.period_end
""")
# Of the ledger's sums: it may have millions of lines.
_USAGE = sa.text("""
SELECT p.name AS project, u.resource_type AS resource, sum(u.amount) AS amount, sum(u.cad) AS cad
FROM usage_by_day u JOIN projects p ON p.uuid = u.project_uuid GROUP BY 1, 2
""")
_OPERATIONS = sa.text("SELECT kind, status, count(*) AS n FROM operations GROUP BY 1, 2")


def observe(scope: Scope, status: int, seconds: float) -> None:
    """Count a request of the people's API."""
    metrics.observe(_seconds, scope, status, seconds)


class Database(Collector):
    """What the database says, asked at each scrape."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def collect(self) -> Iterator[Any]:
        with db.session_scope(self.settings) as session:
            machines = session.execute(_MACHINES).mappings().all()
            budgets = session.execute(_BUDGETS).mappings().all()
            usage = session.execute(_USAGE).mappings().all()
            operations = session.execute(_OPERATIONS).mappings().all()
        active = GaugeMetricFamily(
            "autovibe_active_machines_total", "Machines that have not ended.", labels=("project", "type", "status")
        )
        for row in machines:
            active.add_metric((row["project"], row["type"], row["status"]), row["n"])
        yield active
        used = CounterMetricFamily(
            "autovibe_resource_usage", "What the ledger says was used.", labels=("project", "resource_type", "unit")
        )
        spent = CounterMetricFamily("autovibe_cost_cad", "What it cost, in CAD.", labels=("project", "resource_type"))
        for row in usage:
            amount = row["cad"] if row["resource"] == "money" else row["amount"]
            used.add_metric((row["project"], row["resource"], periods.UNITS[row["resource"]]), float(amount))
            spent.add_metric((row["project"], row["resource"]), float(row["cad"]))
        yield used
        yield spent
        for name in ("allocated", "used", "reserved"):
            family = GaugeMetricFamily(
                f"autovibe_budget_{name}",
                f"Of a present budget: {name}.",
                labels=("project", "resource_type", "period", "unit"),
            )
            for row in budgets:
                family.add_metric((row["project"], row["resource"], row["period"], row["unit"]), float(row[name]))
            yield family
        queue = GaugeMetricFamily("autovibe_operations", "Operations by state.", labels=("kind", "status"))
        for row in operations:
            queue.add_metric((row["kind"], row["status"]), row["n"])
        yield queue
