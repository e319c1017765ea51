"""Spawns, meter runs, a gateway, pauses and top-ups at the same time: nobody waits for each other for ever."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import sqlalchemy as sa
from autovibe import allocations, budgets, db, enforcement, fleet, machines, metering, pools, readings
from autovibe.ledger import UsageLine
from autovibe.models import Machine, Project, Reservation, Usage, VmMeter
from autovibe.tests import world

ROUNDS = 6


def test_everybody_at_once_keeps_every_cent(any_settings, monkeypatch):
    settings = any_settings
    with db.session_scope(settings) as session:
        world.template(session)
        project = world.project(session, cad="50")
        allocations.set_budget(session, project.uuid, Decimal(40), period="daily")
        for _ in range(4):
            machines.spawn(session, settings, project=project, prompt="x")
        world.do(session, settings)

    def read(_settings):
        with db.session_scope(settings) as session:
            ids = session.scalars(sa.select(VmMeter.vm_id)).all()
        seen = {vm: readings.Seen(vm, None, "running", timedelta(days=9), 2, 1024, 8192, 0) for vm in ids}
        return readings.Reading(datetime.now(UTC) + timedelta(seconds=30), seen)

    monkeypatch.setattr(fleet, "read", read)
    settings.meter_seconds = 1
    errors, start = [], threading.Barrier(7)

    def again(work):
        def loop():
            start.wait()
            try:
                for number in range(ROUNDS):
                    work(number)
            except Exception as error:
                errors.append(error)

        return threading.Thread(target=loop)

    def spawn_and_end(_):
        with db.session_scope(settings) as session:
            made = machines.spawn(session, settings, project=session.merge(project), prompt="x")
        with db.session_scope(settings) as session:
            world.do(session, settings)
        with db.session_scope(settings) as session:
            machines.terminate(session, settings, session.get_one(Machine, made.uuid))
        with db.session_scope(settings) as session:
            world.do(session, settings, kind="terminate")

    def call(_):
        with db.session_scope(settings) as session:
            first = session.scalars(sa.select(Machine.uuid).limit(1)).one()
            held = budgets.reserve(
                session, project_uuid=project.uuid, machine_uuid=first, amount_cad=Decimal("0.01"), holder="gateway",
                purpose=budgets.AI_CALL, expires_at=datetime.now(UTC) + timedelta(minutes=5),
            )  # fmt: skip
        with db.session_scope(settings) as session:
            line = UsageLine("money", "claude_api", amount=Decimal("0.005"), cost_cad=Decimal("0.005"))
            budgets.settle(session, held.uuid, lines=[line])

    def top_up(_):
        with db.session_scope(settings) as session:
            allocations.top_up(session, project.uuid, Decimal(1))

    work = [spawn_and_end, call, call, lambda _: fleet.meter(settings), lambda _: fleet.meter(settings)]
    threads = [again(one) for one in (*work, top_up, lambda _: enforcement.run(settings))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert errors == []
    with db.session_scope(settings) as session:
        lines = sum(session.scalars(sa.select(Usage.cost_cad)), Decimal(0))
        held = session.scalars(sa.select(Reservation.amount_cad).where(Reservation.status == "held"))
        reserved = sum(held, Decimal(0))
        for row in allocations.present(session, project.uuid):
            assert (row.used_amount, row.reserved_amount, row.overrun_amount) == (lines, reserved, 0)


def test_around_midnight_nobody_waits_for_who_waits_for_him(any_settings, caplog):
    """Runtimes over both days, calls of both, machines that stop, shares and reaping: none is undone by Postgres."""
    caplog.set_level("INFO", "autovibe.db")
    settings = any_settings
    midnight = (datetime.now(UTC) + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    with db.session_scope(settings) as session:
        world.template(session)
        project = world.project(session, cad="500").uuid
        other = world.project(session, "other", cad="500").uuid
        for period in ("daily", "weekly"):
            allocations.set_budget(session, project, Decimal(100), period=period)
            allocations.set_budget(session, project, Decimal(500), period=period, resource="api_calls")
        pools.set_pool(session, Decimal(50), period="daily")
        made = [machines.spawn(session, settings, project=session.get_one(Project, project), prompt="x") for _ in "123"]
        world.do(session, settings)
        ids, vms = [one.uuid for one in made], [one.vm_id for one in made]
        for meter in session.scalars(sa.select(VmMeter)):
            meter.metered_to = midnight - timedelta(minutes=2)
    begin = threading.Barrier(8)

    def runtime(number):
        def hold(session):
            vm = vms[number % 3]
            at = session.get_one(VmMeter, vm).metered_to + timedelta(seconds=number)
            seen = readings.Seen(vm, None, "running", timedelta(days=9), 2, 1024, 8192, 0)
            return metering.take(session, settings, vm, readings.Reading(at, {vm: seen}))

        return hold

    def call(number):
        at, held = midnight + timedelta(hours=(-1) ** number), uuid4()

        def reserve(session):
            held_by.append(budgets.reserve(
                session, project_uuid=(project, other)[number % 3 == 2], amount_cad=Decimal("0.01"),
                machine_uuid=None if number % 3 == 2 else ids[number % 3],
                holder=str(held), purpose=budgets.AI_CALL, counts={"api_calls": Decimal(1)}, at=at,
                expires_at=datetime.now(UTC) + timedelta(minutes=number % 4 - 1),
            ).uuid)  # fmt: skip

        return reserve

    held_by = []

    def settle(number):
        def end(session):
            if held_by:
                lines = [UsageLine("money", "claude_api", amount=Decimal("0.001"), cost_cad=Decimal("0.001")),
                         UsageLine("api_calls", "claude_api", amount=Decimal(1), unit="count")]  # fmt: skip
                budgets.settle(session, held_by[-1 - number % len(held_by)], lines=lines)

        return end

    def stop(number):
        def touch(session):
            machine = machines.locked(session, ids[number % 3])
            meter = metering.of_vm(session, machine.vm_id)
            metering.hold(session, meter, midnight + timedelta(minutes=3))
            budgets.available(session, project)
            machine.current_progress = str(number)

        return touch

    work = [runtime, runtime, call, call, settle, settle, stop, lambda _: budgets.reap]

    def again(make):
        begin.wait()
        for number in range(12):
            with contextlib.suppress(budgets.BudgetExhausted):
                db.transact(settings, make(number))
            db.transact(settings, lambda session: pools.share_all(session))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(again, work))
    assert [record.getMessage() for record in caplog.records if "undid" in record.getMessage()] == []
    assert len(held_by) > 12
    with db.session_scope(settings) as session:
        for day in (midnight - timedelta(hours=1), midnight):
            for row in [*allocations.present(session, project, day), *allocations.present(session, other, day)]:
                span = (row.project_uuid, row.resource_type, row.period_start, row.period_end)
                used, held = session.execute(sa.select(sa.func.used_on(*span), sa.func.held_on(*span))).one()
                assert (row.used_amount, row.reserved_amount, row.overrun_amount) == (used, held, 0)
