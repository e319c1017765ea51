"""Whatever starts, stops, is metered, is away, dies or repeats: every second is booked once, and none that is not paid.

A machine lives through a random sequence on a clock of its own, beside a gateway that spends from the same budgets. The
rules after each step are the invariants of money; what the ledger says at the end is what a stopwatch says.
"""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import sqlalchemy as sa
from autovibe import allocations, budgets, db, machines, metering
from autovibe.ledger import UsageLine
from autovibe.models import Reservation, Usage, VmMeter
from autovibe.readings import Reading, Seen
from autovibe.tests import world
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

MINUTE = timedelta(minutes=1)
STEPS = st.one_of(
    st.tuples(st.just("read"), st.integers(1, 60)),
    st.tuples(st.just("read twice"), st.integers(1, 60)),
    st.tuples(st.just("killed"), st.integers(1, 60)),
    st.tuples(st.just("toggle"), st.integers(1, 60)),
    st.tuples(st.just("clock back"), st.integers(1, 4000)),
    st.tuples(st.just("call"), st.decimals("0.0001", "0.02", places=9)),
    st.tuples(st.just("top up"), st.decimals("0.001", "0.02", places=9)),
    st.tuples(st.just("away"), st.integers(1, 21 * 24)),
    st.tuples(st.just("reap"), st.just(0)),
)


class Life:
    """A machine, its budgets, and a stopwatch that knows for how long it has really run."""

    def __init__(self, session, settings):
        self.session, self.settings = session, settings
        self.project = world.project(session, uuid4().hex, "0.05")
        self.project.time_zone = "America/Toronto"
        allocations.set_budget(session, self.project.uuid, Decimal("0.04"), period="daily")
        allocations.set_budget(session, self.project.uuid, Decimal(1), resource="time")
        machine = machines.spawn(session, settings, project=self.project, prompt="work")
        machine.status = "working"
        self.vm_id, self.machine_uuid = machine.vm_id, machine.uuid
        self.now = datetime.now(UTC)
        self.ran, self.booked_to, self.was_away = timedelta(0), self.now, False
        metering.started(session, settings, self.vm_id, self.now)

    @property
    def meter(self):
        return self.session.get_one(VmMeter, self.vm_id)

    @property
    def runs(self):
        return self.meter.state == "running"

    def step(self, what, arg):
        if what == "call":
            self.call(arg)
        elif what == "top up":
            allocations.top_up(self.session, self.project.uuid, arg, at=self.now)
        elif what == "reap":
            budgets.reap(self.session, self.now)
        elif what == "clock back":
            self.read(self.now - timedelta(seconds=arg))
        elif what == "away":
            self.was_away = self.was_away or self.runs
            self.read(self.now + timedelta(hours=arg))
        else:
            self.move(what, self.now + timedelta(seconds=arg))
        if self.runs and (self.meter.held_to is None or self.meter.held_to < self.now + 3 * MINUTE):
            self.toggle(self.now + timedelta(seconds=30))  # enforcement
        self.session.flush()
        self.check()

    def move(self, what, at):
        if what == "toggle":
            self.toggle(at)
        elif what == "killed":
            before = self.session.begin_nested()
            self.read(at, counts=False)
            before.rollback()
            self.session.expire_all()
        else:
            self.read(at)
            if what == "read twice":
                self.read(at)

    def read(self, at, counts=True):
        uptime = timedelta(days=1000) if self.runs else timedelta(0)
        status = "running" if self.runs else "stopped"
        seen = Seen(self.vm_id, self.machine_uuid, status, uptime, 2, 1024, 8192, 0)
        ran = at - self.booked_to if self.runs else timedelta(0)
        if metering.take(self.session, self.settings, self.vm_id, Reading(at, {self.vm_id: seen})) and counts:
            self.ran, self.booked_to = self.ran + ran, at
        if counts:
            self.now = max(self.now, at)

    def toggle(self, at):
        if self.runs:
            self.ran, self.booked_to = self.ran + (at - self.booked_to), at
            metering.stopped(self.session, self.settings, self.vm_id, at)
        elif budgets.available(self.session, self.project.uuid, at) > Decimal("0.01"):
            metering.started(self.session, self.settings, self.vm_id, at)
            self.booked_to = at
        self.now = at

    def call(self, bound):
        try:
            held = budgets.reserve(
                self.session, project_uuid=self.project.uuid, amount_cad=bound, holder="gateway",
                purpose=budgets.AI_CALL, expires_at=self.now + MINUTE, at=self.now,
            )  # fmt: skip
        except budgets.BudgetExhausted:
            return
        if bound.as_tuple().digits[-1] % 3 == 0:
            return  # its gateway dies
        half = (bound / 2).quantize(Decimal("1e-9"))
        line = UsageLine("money", "claude_api", amount=half, cost_cad=half)
        budgets.settle(self.session, held.uuid, lines=[line])

    def check(self):
        held = self.session.scalars(sa.select(Reservation).where(
            Reservation.project_uuid == self.project.uuid, Reservation.status == "held")).all()  # fmt: skip
        lines = self.session.scalars(sa.select(Usage).where(Usage.project_uuid == self.project.uuid)).all()
        for row in allocations.history(self.session, self.project.uuid, 1000):
            mine = [line for line in lines if row.period_start <= line.billing_period_start < row.period_end]
            if row.resource_type == "money":
                used = sum((line.cost_cad or Decimal(0) for line in mine), Decimal(0))
                on_hold = sum(
                    (one.amount_cad for one in held if row.period_start <= one.day < row.period_end), Decimal(0)
                )
                assert row.reserved_amount == on_hold
                assert row.overrun_amount == 0 or self.was_away
                assert row.overrun_amount == 0 or row.frozen_at is not None
            else:
                used = sum((line.amount for line in mine if line.resource_type == row.resource_type), Decimal(0))
            assert row.used_amount == used
            assert row.used_amount + row.reserved_amount <= row.allocated_amount + row.overrun_amount

    def end(self):
        at = self.now + timedelta(seconds=1)
        if self.runs:
            self.ran += at - self.booked_to
        metering.stopped(self.session, self.settings, self.vm_id, at, state="ended")
        budgets.reap(self.session, self.now + timedelta(days=1))
        self.session.flush()
        self.check()
        lines = self.session.scalars(
            sa.select(Usage).where(Usage.project_uuid == self.project.uuid, Usage.resource_type == "time")
        ).all()
        booked, really = sum((line.amount for line in lines), Decimal(0)), Decimal(self.ran.total_seconds()) / 3600
        assert abs(booked - really) <= Decimal("1e-9") * (len(lines) + 1)
        spans = sorted(line.metadata_["period"].split("/") for line in lines)
        assert all(before[1] <= after[0] for before, after in zip(spans, spans[1:], strict=False)), "booked twice"
        left = sa.select(sa.func.count()).where(
            Reservation.project_uuid == self.project.uuid, Reservation.status == "held"
        )
        assert self.session.scalar(left) == 0


@given(steps=st.lists(STEPS, min_size=3, max_size=25))
# Not shrunk: that takes longer than to read the steps.
@hypothesis_settings(
    max_examples=25,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_every_second_is_booked_once_and_nothing_is_spent_that_is_not_there(settings, steps):
    settings.min_spawn_cad = Decimal(0)
    with db.session_scope(settings) as session:
        if not session.query(VmMeter).count():
            world.template(session)
        life = Life(session, settings)
        for what, arg in steps:
            life.step(what, arg)
        life.end()
