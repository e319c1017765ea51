"""What a VM's time costs: the ledger's lines of it by the project's own days, and the most that it can come to."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID
from zoneinfo import ZoneInfo

from sqlalchemy.orm import Session

from autovibe import compute
from autovibe.ledger import UsageLine
from autovibe.models import Machine, Project, VmMeter

RUNS = ("waiting", "running")
#: More than lines rounded up and a new day's exchange rate can add to what was reserved.
MARGIN, MARGIN_CAD = Decimal("1.02"), Decimal("0.000001")
NOTHING = timedelta(0)


def lines(
    session: Session, meter: VmMeter, start: datetime, end: datetime, runs_from: datetime, traffic: int
) -> list[UsageLine]:
    """The ledger lines of [start, end); it runs from `runs_from` on. What is zero has no line."""
    by = _tariff(session, meter.machine_uuid, start.date())
    span, ran = _seconds(end - start), _seconds(max(NOTHING, end - runs_from))
    gib = Decimal(1024)
    disk = "vm_disk" if meter.state != "stored" else "storage_checkpoint"
    amounts = {
        ("time", "vm_runtime"): compute.hours(ran),
        ("cpu", "vm_cpu"): compute.hours(ran * meter.cores),
        ("memory", "vm_memory"): compute.hours(ran * meter.memory_mib / gib),
        ("storage", disk): compute.hours(span * meter.disk_mib / gib),
        ("network", "vm_network"): (Decimal(traffic) / compute.GIB).quantize(compute.QUANTUM),
    }
    period = f"{start.isoformat()}/{end.isoformat()}"
    return [
        by.line(resource, subtype, amount, f"vm:{meter.vm_id}:{period}:{resource}", vm_id=meter.vm_id, period=period)
        for (resource, subtype), amount in amounts.items()
        if amount
    ]


def days(session: Session, project_uuid: UUID, begin: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
    """The parts of [begin, end) that lie on one day of the project each."""
    zone = ZoneInfo(session.get_one(Project, project_uuid).time_zone)
    start = begin.astimezone(UTC)
    while start < end:
        day = start.astimezone(zone).date()
        midnight = datetime.combine(day + timedelta(days=1), datetime.min.time(), zone).astimezone(UTC)
        until = min(end.astimezone(UTC), midnight)
        yield start, until
        start = until


def most(session: Session, meter: VmMeter, begin: datetime, end: datetime) -> list[tuple[datetime, Decimal]]:
    """What that time costs at most, by the project's days: (when the part begins, CAD)."""
    costs = []
    for start, until in days(session, meter.project_uuid, begin, end):
        written = lines(session, meter, start, until, start if meter.state in RUNS else until, 0)
        cad = sum((line.cost_cad or Decimal(0) for line in written), Decimal(0))
        if cad:
            costs.append((start, (cad * MARGIN + MARGIN_CAD).quantize(compute.QUANTUM)))
    return costs


def _tariff(session: Session, machine_uuid: UUID, day: date) -> compute.Tariff:
    """Asked for once in a session: rates are never changed."""
    machine_type = session.get_one(Machine, machine_uuid).machine_type
    known: dict[tuple[str, date], compute.Tariff] = session.info.setdefault("compute tariffs", {})
    if (machine_type, day) not in known:
        known[machine_type, day] = compute.tariff(session, machine_type, day)
    return known[machine_type, day]


def _seconds(span: timedelta) -> Decimal:
    """Exact: microseconds are whole."""
    return Decimal(span // timedelta(microseconds=1)) / 1_000_000
