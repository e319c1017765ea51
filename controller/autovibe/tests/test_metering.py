"""What a machine itself costs is booked once, to the second, and reserved before."""

from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from uuid import UUID

import pytest
import sqlalchemy as sa
from autovibe import allocations, budgets, db, machines, metering, operations, readings, records, vm_costs
from autovibe.models import Reservation, Usage, UsageKey, VmMeter
from autovibe.readings import Reading, Seen
from autovibe.tests import world

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def session(settings):
    with db.session_scope(settings) as session:
        world.template(session)
        yield session


@pytest.fixture
def project(session):
    return world.project(session, time_zone=world.morning())


@pytest.fixture
def machine(session, settings, project):
    """A machine with 2 cores and 1024 MiB whose VM runs; `meter(…)` says since when."""
    made = machines.spawn(session, settings, project=project, prompt="work")
    world.do(session, settings)
    return made


@pytest.fixture
def meter(session, machine):
    return session.get_one(VmMeter, machine.vm_id)


def seen(meter, uptime, *, status="running", machine=None, net=0, cores=2, memory=1024, disk=8192):
    own = machine or meter.machine_uuid
    return Seen(meter.vm_id, own, status, uptime, cores, memory, disk, net)


def disk_hour():
    """What is reserved for 8 GB that are stored for an hour."""
    exact = (8 * (Decimal("0.05") / 730).quantize(Decimal("1e-12"))).quantize(Decimal("1e-9"), ROUND_CEILING)
    return (exact * vm_costs.MARGIN + vm_costs.MARGIN_CAD).quantize(Decimal("1e-9"))


def read(session, settings, meter, at, uptime=None, **what):
    """Take a reading of this VM alone; it has run all the time unless `uptime` says less."""
    one = seen(meter, 1000 * DAY if uptime is None else uptime, **what)
    return metering.take(session, settings, meter.vm_id, Reading(at, {meter.vm_id: one}))


def lines(session, resource=None):
    query = sa.select(Usage).order_by(Usage.recorded_at)
    found = list(session.scalars(query))
    return [line for line in found if resource in (None, line.resource_type)]


def used(session, resource):
    return sum((line.amount for line in lines(session, resource)), Decimal(0))


def held(session, project):
    query = sa.select(sa.func.coalesce(sa.func.sum(Reservation.amount_cad), 0))
    return session.scalar(query.where(Reservation.project_uuid == project.uuid, Reservation.status == "held"))


def holds_to_the_last_digit(session, project):
    """Invariants 1 to 3 for this project."""
    session.flush()
    for row in allocations.present(session, project.uuid):
        spent = sum(
            (line.cost_cad if row.resource_type == "money" else line.amount for line in lines(session)
             if row.resource_type in ("money", line.resource_type)
             and row.period_start <= line.billing_period_start < row.period_end),
            Decimal(0),
        )  # fmt: skip
        assert row.used_amount == spent, row.resource_type
        assert row.used_amount + row.reserved_amount <= row.allocated_amount + row.overrun_amount
    total = allocations.get(session, project.uuid)
    assert total.reserved_amount == held(session, project)


def test_a_spawn_reserves_its_first_minutes(session, settings, project):
    machine = machines.spawn(session, settings, project=project, prompt="work")
    meter = session.get_one(VmMeter, machine.vm_id)
    assert (meter.state, lines(session)) == ("waiting", [])
    five_minutes = (2 * Decimal("0.005") + Decimal("0.001") + 8 * Decimal("0.05") / 730) / 12
    assert five_minutes < held(session, project) < five_minutes * Decimal("1.03")
    (reservation,) = session.scalars(sa.select(Reservation))
    assert (reservation.purpose, reservation.machine_uuid) == ("runtime", machine.uuid)


def test_a_machine_whose_first_minutes_cannot_be_paid_is_not_made(session, settings):
    settings.min_spawn_cad = Decimal(0)
    poor = world.project(session, "poor", "0.0005")
    with pytest.raises(budgets.BudgetExhausted), session.begin_nested():
        machines.spawn(session, settings, project=poor, prompt="work")
    assert session.query(VmMeter).count() == 0


def test_a_minute_is_booked_in_each_resource_and_the_next_ones_reserved(session, settings, project, machine, meter):
    begun = meter.metered_to
    assert read(session, settings, meter, begun + MINUTE, net=3 << 30)
    assert used(session, "time") == Decimal("0.016666667")
    assert used(session, "cpu") == Decimal("0.033333333")
    assert used(session, "memory") == Decimal("0.016666667")
    assert used(session, "storage") == Decimal("0.133333333")
    assert used(session, "network") == 3
    assert {line.unit for line in lines(session)} == {"hours", "core_hours", "GB_hours", "GB"}
    assert all(line.machine_uuid == machine.uuid and line.metadata_["compute_rate"] for line in lines(session))
    assert meter.held_to == begun + MINUTE + timedelta(seconds=settings.runtime_ahead_seconds)
    holds_to_the_last_digit(session, project)


def test_the_same_reading_twice_counts_once(session, settings, project, meter):
    at = meter.metered_to + MINUTE
    assert [read(session, settings, meter, at) for _ in range(2)] == [True, False]
    assert used(session, "time") == Decimal("0.016666667")
    holds_to_the_last_digit(session, project)


def test_a_line_that_is_there_already_is_not_written_again(session, settings, project, meter):
    """Also when the meter was set back, as by a restored table: the key says which time was counted."""
    begun = meter.metered_to
    read(session, settings, meter, begun + MINUTE)
    meter.metered_to = begun
    read(session, settings, meter, begun + MINUTE)
    assert used(session, "time") == Decimal("0.016666667")
    assert session.query(UsageKey).count() == len(lines(session)) == 4
    holds_to_the_last_digit(session, project)


def test_a_gap_is_filled_once_as_far_as_the_uptime_proves_it(session, settings, project, meter):
    begun = meter.metered_to
    read(session, settings, meter, begun + 5 * HOUR)
    assert used(session, "time") == 5
    read(session, settings, meter, begun + 10 * HOUR, uptime=2 * HOUR)  # it was restarted meanwhile
    assert used(session, "time") == 7
    assert used(session, "storage") == 80
    holds_to_the_last_digit(session, project)


def test_three_weeks_of_nobody_are_booked_on_their_own_days(session, settings, project, meter):
    allocations.set_budget(session, project.uuid, Decimal(5), period="daily")
    begun = meter.metered_to
    read(session, settings, meter, begun + 21 * DAY)
    hours = {}
    for line in lines(session, "time"):
        hours[line.billing_period_start] = hours.get(line.billing_period_start, 0) + line.amount
    assert sum(hours.values()) == pytest.approx(Decimal(21 * 24), abs=Decimal("1e-6"))
    assert len(hours) == 22 or (len(hours) == 21 and begun.time() == datetime.min.time())
    assert max(hours.values()) == 24
    holds_to_the_last_digit(session, project)


def test_a_day_is_23_hours_long_when_the_clocks_go_forward(session, settings, project, meter):
    project.time_zone = "America/Toronto"
    session.flush()
    meter.metered_to = datetime(2027, 3, 14, 5, 0, tzinfo=UTC)  # midnight there
    read(session, settings, meter, meter.metered_to + DAY)
    assert [line.amount for line in lines(session, "time")] == [23, 1]
    assert {str(line.billing_period_start) for line in lines(session)} == {"2027-03-14", "2027-03-15"}


def test_a_clock_that_goes_back_is_waited_for(session, settings, project, meter):
    begun = meter.metered_to
    read(session, settings, meter, begun + MINUTE)
    assert not read(session, settings, meter, begun - HOUR)
    read(session, settings, meter, begun + 2 * MINUTE)
    assert used(session, "time") == Decimal("0.033333334")


def test_a_clock_that_leaps_a_year_books_no_more_than_the_uptime(session, settings, meter):
    read(session, settings, meter, meter.metered_to + 365 * DAY, uptime=2 * MINUTE)
    assert used(session, "time") == Decimal("0.033333333")


def test_a_clock_that_leaps_books_nothing_twice_and_is_not_waited_for_when_it_is_right_again(session, settings, meter):
    begun, leap = meter.changed_at, 7 * DAY

    def hours(minutes, leapt=timedelta(0)):
        at, uptime = begun + minutes * MINUTE, minutes * MINUTE
        assert meter.vm_id in metering.due(session, settings, at + leapt)
        assert read(session, settings, meter, at + leapt, uptime=uptime)
        # A line for each day, each in billionths of an hour.
        return round(used(session, "time"), 6)

    five_days = 5 * 24 * 60
    assert hours(five_days) == 120
    assert hours(five_days + 60, leap) == 121
    assert hours(five_days + 120, leap) == 122
    # Of the hour in which it is set right again nobody knows how long it was.
    assert hours(five_days + 180) == 122
    assert hours(five_days + 240) == 123
    assert hours(five_days + 300, -leap) == 123
    assert hours(five_days + 360, -leap) == 124
    assert hours(five_days + 420) == 125


def test_what_the_list_says_of_a_vm_that_was_just_started_is_too_old(session, settings, meter):
    at = meter.changed_at + timedelta(seconds=5)
    assert not read(session, settings, meter, at, uptime=timedelta(0), status="stopped")
    assert meter.state == "running"


@pytest.mark.parametrize("status", ["unknown", "io-error", ""])
def test_a_vm_in_an_unknown_state_is_left_for_the_next_reading(session, settings, meter, status):
    assert not read(session, settings, meter, meter.metered_to + MINUTE, status=status)


def test_a_vm_of_another_machine_is_not_booked(session, settings, meter):
    assert not read(session, settings, meter, meter.metered_to + MINUTE, machine=UUID(int=1))
    assert lines(session) == []


def test_a_vm_that_is_not_listed_is_left_alone(session, settings, meter):
    assert not metering.take(session, settings, meter.vm_id, Reading(meter.metered_to + MINUTE, {}))


def test_a_guest_that_shut_itself_down_costs_no_more_than_its_disk(session, settings, project, meter):
    begun = meter.metered_to
    read(session, settings, meter, begun + MINUTE)
    read(session, settings, meter, begun + HOUR, uptime=timedelta(0), status="stopped")
    # The disk costs on: until it is read next that is reserved.
    assert (meter.state, held(session, project)) == ("stopped", disk_hour())
    assert meter.held_to == begun + 2 * HOUR
    assert used(session, "time") == Decimal("0.016666667")
    assert used(session, "storage") == pytest.approx(8, abs=Decimal("1e-8"))


def test_the_end_books_the_last_part_once_and_gives_the_rest_back(session, settings, project, machine, meter):
    begun = meter.metered_to
    machine.enrolled_at = begun
    read(session, settings, meter, begun + MINUTE)
    machines.terminate(session, settings, machine)
    (ending,) = world.claim(session)
    stopped = begun + 2 * MINUTE
    result = world.made(ending, "template") | {"machine_at": stopped.isoformat()}
    meter.metered_to, before = begun + MINUTE, used(session, "time")
    real_now, records.datetime = records.datetime, _Later
    try:
        for _ in range(2):
            records.end(session, settings, ending.uuid, run_uuid=ending.run_uuid, result=result)
    finally:
        records.datetime = real_now
    assert used(session, "time") - before == Decimal("0.016666667")
    assert (meter.state, meter.metered_to) == ("stored", stopped)
    assert 0 < held(session, project) < disk_hour()
    holds_to_the_last_digit(session, project)


class _Later(datetime):
    """An hour from now."""

    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + HOUR


def test_a_failed_spawn_gives_its_minutes_back_when_its_vm_is_gone(session, settings, project):
    machine = machines.spawn(session, settings, project=project, prompt="work")
    world.do(session, settings, error="no disk space")
    assert held(session, project) > 0, "its VM may run until it is removed"
    world.do(session, settings)
    assert (session.get_one(VmMeter, machine.vm_id).state, held(session, project)) == ("ended", 0)


def test_a_spawn_that_takes_another_vm_id_takes_its_reservation_along(session, settings, project):
    machine = machines.spawn(session, settings, project=project, prompt="work")
    before = held(session, project)
    world.do(session, settings, error="not ours", error_class="IdentityError")
    assert [row.vm_id for row in session.query(VmMeter)] == [machine.vm_id]
    world.do(session, settings)
    assert session.get_one(VmMeter, machine.vm_id).state == "running"
    assert held(session, project) == pytest.approx(before, abs=Decimal("1e-6"))


def test_a_stored_checkpoint_costs_its_disk_each_hour_and_never_more_than_is_there(session, settings, project, machine):
    machine.enrolled_at = datetime.now(UTC)
    machines.terminate(session, settings, machine)
    world.do(session, settings, carrier="template")
    meter = session.get_one(VmMeter, machine.vm_id)
    at, meter.disk_mib = meter.metered_to, 8192
    assert metering.due(session, settings, at + MINUTE) == []
    assert metering.due(session, settings, at + HOUR) == [meter.vm_id]
    read(session, settings, meter, at + HOUR, uptime=timedelta(0), status="stopped")
    (line,) = [one for one in lines(session) if one.resource_subtype == "storage_checkpoint" and one.amount > 7]
    assert line.cost_cad > 0
    # The next hour is reserved: others cannot spend it.
    allocations.set_budget(session, project.uuid, allocations.get(session, project.uuid).used_amount + disk_hour())
    assert (held(session, project), budgets.available(session, project.uuid)) == (disk_hour(), 0)
    read(session, settings, meter, at + 2 * HOUR, uptime=timedelta(0), status="stopped")
    assert ("unpaid_cad" in lines(session, "storage")[-1].metadata_, held(session, project)) == (False, 0)
    budgets.reap(session, at + 50 * HOUR)
    allocations.set_budget(session, project.uuid, allocations.get(session, project.uuid).used_amount)
    read(session, settings, meter, at + 4 * HOUR, uptime=timedelta(0), status="stopped")
    last = max(lines(session, "storage"), key=lambda one: one.metadata_["period"])
    assert (last.amount, last.cost_cad) == (16, 0)
    assert Decimal(last.metadata_["unpaid_cad"]) > 0
    holds_to_the_last_digit(session, project)
    assert allocations.get(session, project.uuid).overrun_amount == 0


def test_a_promoted_checkpoint_is_counted_beside_its_machine(session, settings, machine):
    machine.enrolled_at = datetime.now(UTC)
    machines.terminate(session, settings, machine)
    world.do(session, settings, carrier="snapshot")
    world.do(session, settings, kind="promote")
    (promotion,) = session.query(operations.Operation).filter_by(kind="promote")
    made = session.get_one(VmMeter, promotion.params["vars"]["machine_promote_vm_id"])
    assert (made.state, made.disk_mib, made.machine_uuid) == ("stored", 8192, machine.uuid)


def test_what_cannot_be_reserved_ahead_keeps_what_it_had(session, settings, project, meter):
    allocations.set_budget(session, project.uuid, held(session, project) + Decimal("0.000001"))
    before, until = held(session, project), meter.held_to
    assert not metering.hold(session, meter, until + HOUR)
    assert (held(session, project), meter.held_to) == (pytest.approx(before, abs=Decimal("0.00001")), until)
    begun = meter.metered_to
    for minute in range(1, 5):
        read(session, settings, meter, begun + minute * MINUTE)
        assert meter.held_to == until
        holds_to_the_last_digit(session, project)
    assert allocations.get(session, project.uuid).overrun_amount == 0


def test_the_next_days_budget_is_reserved_before_midnight(session, settings, project, meter):
    project.time_zone = "UTC"
    allocations.set_budget(session, project.uuid, Decimal("0.5"), period="daily")
    tomorrow = (datetime.now(UTC) + DAY).replace(hour=0, minute=0, second=0, microsecond=0)
    meter.metered_to = tomorrow - MINUTE
    assert metering.hold(session, meter, tomorrow + 4 * MINUTE)
    held_by_day = {row.day: row.amount_cad for row in session.query(Reservation).filter_by(status="held")}
    assert set(held_by_day) == {(tomorrow - MINUTE).date(), tomorrow.date()}
    assert held_by_day[tomorrow.date()] > held_by_day[(tomorrow - MINUTE).date()]


def test_runtime_while_no_hub_was_up_is_an_overrun_that_freezes(session, settings, project, meter):
    allocations.set_budget(session, project.uuid, Decimal("0.01"))
    read(session, settings, meter, meter.metered_to + 3 * HOUR)
    budget = allocations.get(session, project.uuid)
    assert budget.used_amount > Decimal("0.03")
    assert budget.overrun_amount == budget.used_amount - budget.allocated_amount
    assert budget.frozen_at is not None
    holds_to_the_last_digit(session, project)


def test_a_project_without_a_budget_of_money_has_used_it_all_the_same(session, settings, project, meter):
    allocations.remove(session, project.uuid, resource="money", period="total")
    read(session, settings, meter, meter.metered_to + HOUR)
    assert used(session, "time") == 1
    assert meter.held_to is None or meter.held_to <= meter.metered_to or held(session, project) == 0
    budget = allocations.set_budget(session, project.uuid, Decimal(5))
    assert budget.used_amount == sum(line.cost_cad for line in lines(session))


def test_budgets_of_counted_resources_count(session, settings, project, meter):
    for resource in ("time", "cpu", "memory", "storage"):
        allocations.set_budget(session, project.uuid, Decimal("0.5"), resource=resource)
    read(session, settings, meter, meter.metered_to + HOUR)
    rows = {row.resource_type: row for row in allocations.present(session, project.uuid)}
    assert {name: rows[name].used_amount for name in ("time", "cpu", "memory", "storage")} == {
        "time": 1, "cpu": 2, "memory": 1, "storage": 8,
    }  # fmt: skip
    assert rows["storage"].overrun_amount == Decimal("7.5")
    assert rows["storage"].frozen_at is None


def test_a_reading_is_what_usage_info_returns():
    uuid = UUID(int=7)
    one = {
        "vm_id": 10000,
        "status": "running",
        "tags": ["autovibe", f"id-{uuid.hex}"],
        "allocated": {"cores": 2, "memory_mib": 512, "disk_mib": 64},
        "billed": {"running_seconds": 90, "core_seconds": 180, "memory_mib_seconds": 1, "disk_mib_seconds": 1},
        "measured": {"net_in_bytes": 1, "net_out_bytes": 2},
    }
    reading = readings.reading_of({"measured_at": "2026-01-31T12:00:00+00:00", "usage": [one]})
    assert reading.at == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert reading.vms == {10000: Seen(10000, uuid, "running", timedelta(seconds=90), 2, 512, 64, 3)}
