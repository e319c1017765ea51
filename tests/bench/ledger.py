"""The ledger: lines a second in bulk, of one project, of many, by two writers; and reports over millions of lines.

Bulk lines are what metering writes: with keys, of many machines of many projects with three budgets each, 5,000 in a
transaction. Reports are asked of a ledger of 10 million lines over 30 days; each is shown with what it takes from the
lines themselves.

    make bench        or: python tests/bench/ledger.py --lines 1000000
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID, uuid4

import sqlalchemy as sa
from autovibe import allocations, db, ledger, projects, reports
from autovibe.ledger import Entry, UsageLine
from autovibe.models import Budget, Machine
from autovibe.settings import Settings
from autovibe.tests import gateway_fixtures as fixtures

PROJECTS, MACHINES, BATCH = 20, 50, 5000
KINDS = (("cpu", "core_hours"), ("memory", "GB_hours"), ("storage", "GB_hours"), ("network", "GB"), ("time", "hours"))
#: Lines of the past, written by the database itself: what is measured is reading them.
FILL = """
INSERT INTO resource_usage (recorded_at, project_uuid, machine_uuid, resource_type, resource_subtype, amount, unit,
                            cost_cad, billing_period_start, billing_period_end, metadata)
SELECT CAST(:day AS date) + interval '1 second' * (n % 86400), m.project_uuid, m.uuid,
       (ARRAY['money', 'cpu', 'memory', 'storage'])[n % 4 + 1], (ARRAY['claude_api', 'vm', 'vm', 'disk'])[n % 4 + 1],
       0.01, (ARRAY['USD', 'core_hours', 'GB_hours', 'GB_hours'])[n % 4 + 1], 0.000123457, :day,
       CAST(:day AS date) + 1,
       CAST(CASE n % 4 WHEN 0 THEN '{"model": "claude-sonnet-5-5", "tokens": {"input": 10}}' ELSE '{}' END AS jsonb)
FROM generate_series(1, :each) AS n JOIN intelligent_machines m ON true
"""


def world(settings: Settings) -> dict[UUID, list[UUID]]:
    """Projects with a total, a monthly and a daily budget, and their machines."""
    made: dict[UUID, list[UUID]] = {}
    with db.session_scope(settings) as session:
        for number in range(PROJECTS):
            project = projects.create(session, f"bench-{number}", budget_cad=Decimal(10**9))
            for period in ("monthly", "daily"):
                allocations.set_budget(session, project.uuid, Decimal(10**9), period=period)
            machines = [
                Machine(name=f"m{place}", machine_type="command", project_uuid=project.uuid)
                for place in range(MACHINES)
            ]
            session.add_all(machines)
            session.flush()
            made[project.uuid] = [machine.uuid for machine in machines]
    return made


def batch(owners: dict[UUID, list[UUID]]) -> list[Entry]:
    """One minute of metering, or several."""
    at, run = datetime.now(UTC), uuid4().hex
    entries: list[Entry] = []
    while len(entries) < BATCH:
        for project, machines in owners.items():
            for machine in machines:
                for kind, unit in KINDS:
                    key = f"meter:{run}:{len(entries)}"
                    line = UsageLine(
                        kind, "vm", Decimal("0.016666667"), unit, Decimal("0.000123457"), "CAD", Decimal("0.000123457"),
                        idempotency_key=key, metadata={"seconds": 60},
                    )  # fmt: skip
                    entries.append(Entry(project, line, machine, at))
    return entries[:BATCH]


def write(settings: Settings, owners: dict[UUID, list[UUID]], seconds: float) -> tuple[float, int]:
    """(lines a second, lines): batches one after the other."""
    lines, took = 0, 0.0
    while took < seconds:
        entries = batch(owners)
        began = time.perf_counter()
        with db.session_scope(settings) as session:
            ledger.write_many(session, entries)
        took += time.perf_counter() - began
        lines += len(entries)
    return lines / took, lines


def write_together(settings: Settings, owners: dict[UUID, list[UUID]], count: int) -> tuple[float, int]:
    """(lines a second, lines) of two processes at once, each with half of the projects and so many batches."""
    items = list(owners.items())
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(3)

    def writer(mine: dict[UUID, list[UUID]]) -> None:
        batches = [batch(mine) for _ in range(count)]
        ready.wait()
        for entries in batches:
            with db.session_scope(settings) as session:
                ledger.write_many(session, entries)

    processes = [context.Process(target=writer, args=(dict(items[half::2]),)) for half in (0, 1)]
    for process in processes:
        process.start()
    ready.wait()
    began = time.perf_counter()
    for process in processes:
        process.join()
    assert all(process.exitcode == 0 for process in processes)
    lines = 2 * count * BATCH
    return lines / (time.perf_counter() - began), lines


def timed(settings: Settings, ask: Callable[[db.Session], object]) -> float:
    with db.session_scope(settings) as session:
        began = time.perf_counter()
        ask(session)
        return time.perf_counter() - began


def check(settings: Settings) -> None:
    """What was written is what the budgets have used and what the sums say."""
    with db.session_scope(settings) as session:
        lines = session.scalar(sa.text("SELECT sum(cost_cad) FROM resource_usage"))
        sums = session.scalar(sa.text("SELECT sum(cad) FROM usage_by_day"))
        used = session.scalar(sa.select(sa.func.sum(Budget.used_amount)).where(Budget.budget_period == "total"))
    assert lines == sums == used, (lines, sums, used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement of writing")
    parser.add_argument(
        "--lines", type=int, default=10_000_000, help="in the ledger that reports are asked of; 0: none"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="autovibe-bench-") as folder, fixtures.migrated(Path(folder)) as settings:
        owners = world(settings)
        for name, some in (("one project", dict([next(iter(owners.items()))])), (f"{PROJECTS} projects", owners)):
            rate, lines = write(settings, some, args.seconds)
            print(f"bulk lines a second, {name:<26} {rate:>9,.0f}   ({lines} lines)", flush=True)
        rate, lines = write_together(settings, owners, max(1, round(args.seconds * 2)))
        print(
            f"bulk lines a second, {f'{PROJECTS} projects, 2 writers':<26} {rate:>9,.0f}   ({lines} lines)", flush=True
        )
        check(settings)
        if args.lines:
            read(settings, owners, args.lines)


def read(settings: Settings, owners: dict[UUID, list[UUID]], lines: int) -> None:
    each = max(1, lines // 30 // (PROJECTS * MACHINES))
    today = datetime.now(UTC).date()
    began = time.perf_counter()
    for back in range(30):
        with db.session_scope(settings) as session:
            session.execute(sa.text(FILL), {"day": today - timedelta(days=back), "each": each})
            session.execute(sa.text("SELECT compact_usage_sums()"))
    with db.engine(settings).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM ANALYZE usage_sums"))
        connection.execute(sa.text("VACUUM usage_sums_new"))
        count = connection.scalar(sa.text("SELECT sum(lines) FROM usage_by_day"))
    print(f"{count:,} lines in the ledger ({time.perf_counter() - began:.0f} s to make them)", flush=True)
    project = next(iter(owners))
    for by in reports.GROUPS:
        whole, one = (timed(settings, lambda s, b=by, p=p: reports.sums(s, b, p)) for p in (None, project))
        print(
            f"usage --by {by:<12} all projects {whole * 1000:>9.1f} ms   one project {one * 1000:>9.1f} ms", flush=True
        )
    took = timed(settings, lambda session: ledger.by_model(session))
    print(f"usage, by model and tokens          {took * 1000:>9.1f} ms")
    took = timed(settings, lambda session: ledger.views(session, None, 50))
    print(f"usage, the last 50 lines            {took * 1000:>9.1f} ms")
    took = timed(settings, lambda session: session.execute(sa.text("SELECT sum(cost_cad) FROM resource_usage")).all())
    print(f"beside: one sum over the lines      {took * 1000:>9.1f} ms")


if __name__ == "__main__":
    main()
