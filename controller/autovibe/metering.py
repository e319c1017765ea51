"""Metering: what VMs cost by themselves, booked from where the last line ended, and reserved a few minutes ahead.

Each VM has a meter (`vm_meters`). What a run of Ansible starts and stops moves it (`started`, `stopped`), and so does
each reading of the fleet (`take`). Whoever moves a meter holds its row, books from `metered_to` on and moves that: so
every second is booked once, whatever dies or repeats. A VM's runtime is proven by Proxmox's own uptime: of a gap in
which nobody looked, no more is booked than the VM has been up.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.orm import Session

from autovibe import budgets, ledger, periods, vm_costs
from autovibe.ledger import UsageLine
from autovibe.models import Machine, Project, Reservation, VmMeter
from autovibe.readings import LAG, Reading, Seen
from autovibe.settings import Settings

log = logging.getLogger(__name__)

PURPOSE = "runtime"
#: A clock that went back by less is waited for; by more: it had leapt, and nothing would be booked until then.
CLOCK_PATIENCE = timedelta(hours=2)
#: A reservation outlives what it is for by so long: the meter may be late.
GRACE = timedelta(hours=1)


def open_meter(session: Session, settings: Settings, machine: Machine, at: datetime | None = None) -> VmMeter:
    """A meter for the VM of a machine that is asked for, with its first minutes reserved.

    Raises BudgetExhausted when these are not there.
    """
    now = at or datetime.now(UTC)
    meter = VmMeter(
        vm_id=machine.vm_id,
        project_uuid=machine.project_uuid,
        machine_uuid=machine.uuid,
        state="waiting",
        changed_at=now,
        metered_to=now,
        cores=machine.resource_constraints["cores"],
        memory_mib=machine.resource_constraints["memory"],
        disk_mib=settings.assumed_disk_gb * 1024,
    )
    session.add(meter)
    session.flush()
    _ahead(session, meter, now + timedelta(seconds=settings.runtime_ahead_seconds))
    return meter


def reopen(session: Session, settings: Settings, vm_id: int | None) -> None:
    """A stopped VM is to run again: reserve its first minutes. Raises BudgetExhausted when these are not there."""
    meter, now = of_vm(session, vm_id), datetime.now(UTC)
    if meter is None:
        return
    until = now + timedelta(seconds=settings.runtime_ahead_seconds)
    _lock(session, meter, until)
    advance(session, meter, now)
    _change(meter, "waiting", now)
    _release(session, meter)
    _ahead(session, meter, until)
    session.flush()


def of_vm(session: Session, vm_id: int | None) -> VmMeter | None:
    """The VM's meter, held for this transaction."""
    return session.get(VmMeter, vm_id, with_for_update=True, populate_existing=True) if vm_id else None


def renumber(session: Session, before: int, after: int) -> None:
    """The VM that was asked for gets another id: it has not been made yet."""
    session.execute(sa.update(VmMeter).where(VmMeter.vm_id == before).values(vm_id=after))
    held = sa.update(Reservation).where(Reservation.holder == _holder(before), Reservation.status == "held")
    session.execute(held.values(holder=_holder(after)))


def started(session: Session, settings: Settings, vm_id: int | None, at: datetime | None = None) -> None:
    """The VM runs since then, as the run that started it has seen."""
    meter, now = of_vm(session, vm_id), at or datetime.now(UTC)
    if meter is None or meter.state in ("running", "ended"):
        return
    until = now + timedelta(seconds=settings.runtime_ahead_seconds)
    _lock(session, meter, until)
    if meter.state == "waiting":
        meter.metered_to = max(meter.metered_to, now)
    else:
        advance(session, meter, now, ran=timedelta(0))
    _change(meter, "running", now)
    _hold(session, meter, until)


def stopped(
    session: Session,
    settings: Settings,
    vm_id: int | None,
    at: datetime | None = None,
    *,
    state: str = "stopped",
    size_bytes: int | None = None,
) -> None:
    """The VM has run until then, and does not any more: what it used is booked, what was reserved is given back.

    What it stores costs on: the time until it is read next is reserved, as far as there is money.

    state: stopped; stored (it holds checkpoints from now on, as large as `size_bytes` if that is known); ended (it is
    gone).
    """
    meter, now = of_vm(session, vm_id), at or datetime.now(UTC)
    if meter is None or meter.state == "ended":
        return
    until = now + timedelta(seconds=settings.storage_meter_seconds)
    _lock(session, meter, until)
    if meter.state == "waiting":
        meter.metered_to = max(meter.metered_to, now)
    advance(session, meter, now)
    _change(meter, state, now)
    _release(session, meter)
    meter.held_to = None
    if size_bytes is not None:
        meter.disk_mib = -(-size_bytes // (1 << 20))
    if state != "ended":
        _hold(session, meter, until)
    session.flush()


def store(
    session: Session,
    settings: Settings,
    vm_id: int,
    machine: Machine,
    at: datetime | None = None,
    *,
    disk_mib: int | None = None,
) -> None:
    """Count what is stored only, such as a template that was made of one of the machine's checkpoints.

    Its disk is that of the machine's VM, if its size is not given. A meter that has ended begins again: a hub came back
    to a VM that it had left.
    """
    meter = of_vm(session, vm_id)
    if meter is not None and meter.state != "ended":
        return
    now, origin = at or datetime.now(UTC), session.get(VmMeter, machine.vm_id)
    disk = disk_mib or (origin.disk_mib if origin else settings.assumed_disk_gb * 1024)
    values = {"cores": 0, "memory_mib": 0, "disk_mib": disk, "changed_at": now, "metered_to": now}
    values |= {"project_uuid": machine.project_uuid, "machine_uuid": machine.uuid, "state": "stored"}
    meter = meter or VmMeter(vm_id=vm_id)
    for name, value in values.items():
        setattr(meter, name, value)
    session.add(meter)
    session.flush()
    hold(session, meter, now + timedelta(seconds=settings.storage_meter_seconds))


def due(session: Session, settings: Settings, at: datetime | None = None) -> list[int]:
    """The VMs that are to be read now: those that run each minute, the others each hour; none before one is due.

    One that is due takes with it what has half of its time behind it, so that one reading serves them all.
    """
    now = at or datetime.now(UTC)
    often, seldom = (timedelta(seconds=value) for value in (settings.meter_seconds, settings.storage_meter_seconds))
    moves = VmMeter.state.in_(("waiting", "running"))
    age = sa.literal(now) - VmMeter.metered_to
    is_due = age >= sa.case((moves, often), else_=seldom)
    is_half = age >= sa.case((moves, often / 2), else_=seldom / 2)
    went_back = age < -CLOCK_PATIENCE
    wanted = (VmMeter.state != "ended", sa.or_(is_half, went_back))
    query = sa.select(VmMeter.vm_id, sa.or_(is_due, went_back)).where(*wanted).order_by(VmMeter.vm_id)
    found = session.execute(query).all()
    return [vm_id for vm_id, _ in found] if any(due_now for _, due_now in found) else []


def take(session: Session, settings: Settings, vm_id: int, reading: Reading) -> bool:
    """Book what a VM has used until it was read, and reserve its next minutes; returns whether it was moved.

    A VM that the reading does not have, or not as this machine's, is left alone, and so is one in a state that Proxmox
    does not know yet. A clock that went back is waited for, but not for long.
    """
    meter, seen = of_vm(session, vm_id), reading.vms.get(vm_id)
    if meter is None or meter.state == "ended":
        return False
    went_back = meter.metered_to - reading.at > CLOCK_PATIENCE
    if not went_back and reading.at <= meter.metered_to:
        return False
    if seen is None or seen.status not in ("running", "stopped"):
        return False
    if seen.machine not in (None, meter.machine_uuid):
        log.error("VM %d is tagged as machine %s, not %s; it is not booked", vm_id, seen.machine, meter.machine_uuid)
        return False
    if went_back:
        meter.metered_to, meter.changed_at = reading.at, reading.at - max(seen.uptime, LAG)
    runs = seen.status == "running" and meter.state != "stored"
    if runs != (meter.state == "running") and reading.at - meter.changed_at < LAG:
        return False  # the list is older than what a run has just done
    if meter.state == "waiting" and not runs:
        return False
    ahead = settings.runtime_ahead_seconds if runs else settings.storage_meter_seconds
    until = reading.at + timedelta(seconds=ahead)
    _lock(session, meter, until)
    gap = reading.at - meter.metered_to
    booked = meter.metered_to - meter.changed_at if meter.state == "running" else timedelta(0)
    ran = seen.ran(gap, booked) if runs else timedelta(0)
    if runs and ran < gap:
        meter.changed_at = reading.at - seen.uptime  # it was started anew, or the clock has leapt
    if meter.state == "waiting":
        # It was not there before; its disk counts from its start on.
        meter.metered_to = reading.at - ran
    # What is only stored has not sent it: a hub's VM runs, on nobody's account.
    traffic = _traffic(meter, seen) if meter.state != "stored" else 0
    advance(session, meter, reading.at, ran=ran, traffic=traffic)
    if meter.state != "stored":
        _change(meter, "running" if runs else "stopped", reading.at)
    _learn(meter, seen)
    if not runs:
        meter.held_to = None
    _hold(session, meter, until)
    return True


def advance(
    session: Session, meter: VmMeter, to: datetime, *, ran: timedelta | None = None, traffic: int = 0
) -> Decimal:
    """Book the time from `metered_to` until `to`, and move it there; returns the CAD.

    The VM ran for the last `ran` of it: None is all of it for one that runs, nothing for others. What the time costs
    is taken from what was reserved for it. Each part counts on the project's own day.
    """
    begin = meter.metered_to
    if to <= begin:
        return Decimal(0)
    if ran is None:
        ran = to - begin if meter.state == "running" else timedelta(0)
    _release(session, meter)
    entries = []
    for start, end in vm_costs.days(session, meter.project_uuid, begin, to):
        lines = vm_costs.lines(session, meter, start, end, max(start, to - ran), traffic if end == to else 0)
        if meter.state != "running":
            lines = _payable(session, meter, lines, start)
        entries += [ledger.Entry(meter.project_uuid, line, meter.machine_uuid, start) for line in lines]
    # What `_payable` holds of several days is held until now, or a total budget would pay for each day anew.
    _release(session, meter)
    booked = ledger.write_many(session, entries)
    if ran < to - begin and meter.state == "running":
        log.warning("VM %d: of %s no more than %s is proven by its uptime", meter.vm_id, to - begin, ran)
    meter.metered_to = to
    session.flush()
    for one in booked:
        for budget in one.froze:
            log.error("VM %d: the %s is frozen: what has run was not there", meter.vm_id, budget)
    return sum((one.cad for one in booked), Decimal(0))


def hold(session: Session, meter: VmMeter, until: datetime) -> bool:
    """Reserve what it costs from `metered_to` until then, instead of what is reserved; returns whether all of it is.

    When the money for that is not there, what was reserved before stays so, as far as it has not been used.
    """
    _lock(session, meter, until)
    return _hold(session, meter, until)


def _hold(session: Session, meter: VmMeter, until: datetime) -> bool:
    _release(session, meter)
    try:
        _ahead(session, meter, until)
    except budgets.BudgetExhausted:
        _release(session, meter)
        _hold_the_rest(session, meter)
        return False
    session.flush()
    return True


def _ahead(session: Session, meter: VmMeter, until: datetime) -> None:
    """Reserve what it costs from `metered_to` until then. Raises BudgetExhausted."""
    _reserve(session, meter, vm_costs.most(session, meter, meter.metered_to, until), until)
    meter.held_to = until


def _lock(session: Session, meter: VmMeter, until: datetime) -> None:
    """Before any step: all that the steps until then will move is locked at once, in everybody's order."""
    periods.lock(session)
    zone = ZoneInfo(session.get_one(Project, meter.project_uuid).time_zone)
    first, last = (moment.astimezone(zone).date() for moment in (min(meter.metered_to, until), until))
    held = set(session.scalars(_mine(meter).with_only_columns(Reservation.day)))
    days = {first + timedelta(days=number) for number in range((last - first).days + 1)} | held
    periods.roll_all(session, {(meter.project_uuid, day) for day in days})
    session.execute(_mine(meter).with_for_update())
    periods.lock_rows(session, meter.project_uuid, days)


def _hold_the_rest(session: Session, meter: VmMeter) -> None:
    """Reserve again what was reserved ahead, or as much of it as there is."""
    if meter.held_to is None or meter.held_to <= meter.metered_to:
        meter.held_to = None
        return
    for start, amount in vm_costs.most(session, meter, meter.metered_to, meter.held_to):
        try:
            _reserve(session, meter, [(start, amount)])
        except budgets.BudgetExhausted as error:
            if error.available <= 0:
                continue
            with contextlib.suppress(budgets.BudgetExhausted):
                _reserve(session, meter, [(start, error.available)])


def _reserve(
    session: Session, meter: VmMeter, costs: Sequence[tuple[datetime, Decimal]], until: datetime | None = None
) -> None:
    for start, amount in costs:
        budgets.reserve(
            session,
            project_uuid=meter.project_uuid,
            machine_uuid=meter.machine_uuid,
            amount_cad=amount,
            holder=_holder(meter.vm_id),
            purpose=PURPOSE,
            expires_at=max(until or start, datetime.now(UTC)) + GRACE,
            at=start,
        )


def _release(session: Session, meter: VmMeter) -> None:
    """Give back what is reserved."""
    for uuid in session.scalars(_mine(meter).with_for_update()).all():
        budgets.release(session, uuid)


def _mine(meter: VmMeter) -> sa.Select[tuple[UUID]]:
    """The reservations that it holds."""
    held = (Reservation.holder == _holder(meter.vm_id), Reservation.status == "held")
    return sa.select(Reservation.uuid).where(*held).order_by(Reservation.uuid)


def _payable(session: Session, meter: VmMeter, lines: list[UsageLine], at: datetime) -> list[UsageLine]:
    """The lines of what cannot be stopped, a checkpoint's storage, with no more money than is there.

    The amounts are whole; what was not paid stands in the line. The money is held; the caller releases it.
    """
    paid = []
    for line in lines:
        wanted = line.cost_cad or Decimal(0)
        got = _hold_at_most(session, meter, wanted, at)
        if got < wanted:
            share = {"unpaid_cad": str(wanted - got)}
            line = replace(line, cost_cad=got, currency="CAD", cost=got, metadata=line.metadata | share)
            line = replace(line, exchange_rate=None, exchange_rate_date=None)
        paid.append(line)
    return paid


def _hold_at_most(session: Session, meter: VmMeter, wanted: Decimal, at: datetime) -> Decimal:
    if wanted <= 0:
        return Decimal(0)
    for amount in (wanted, None):
        if amount is None:
            amount = min(wanted, budgets.available(session, meter.project_uuid, at))
        if amount <= 0:
            break
        with contextlib.suppress(budgets.BudgetExhausted):
            _reserve(session, meter, [(at, amount)])
            return amount
    return Decimal(0)


def _traffic(meter: VmMeter, seen: Seen) -> int:
    """Bytes since the last reading; a counter that is lower than before began anew with the VM."""
    before = meter.net_bytes or 0
    return seen.net_bytes - before if seen.net_bytes >= before else seen.net_bytes


def _learn(meter: VmMeter, seen: Seen) -> None:
    """What the VM has now counts from now on; what is stored is as large as it was when it was made."""
    meter.net_bytes = seen.net_bytes
    if meter.state != "stored":
        meter.cores, meter.memory_mib = seen.cores or meter.cores, seen.memory_mib or meter.memory_mib
        meter.disk_mib = seen.disk_mib or meter.disk_mib


def _change(meter: VmMeter, state: str, at: datetime) -> None:
    if meter.state != state:
        meter.state, meter.changed_at = state, at


def _holder(vm_id: int) -> str:
    return f"vm:{vm_id}"
