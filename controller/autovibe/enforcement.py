"""Enforcement: machines whose project has used up what it may use are paused, and go on when there is money again.

The gateway has refused their calls before (402). What is left to do is to stop what costs money by running: each
machine's runtime is reserved some minutes ahead, so it is stopped while that still pays for it. Where a pool is too
small for all that run, who comes first in `pools.preemption_order` is paused for the others.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from autovibe import alerts, allocations, budgets, db, machines, metering, pools, throttle
from autovibe.errors import AutovibeError
from autovibe.models import HUB, Machine, Operation, Project, VmMeter
from autovibe.settings import Settings

log = logging.getLogger(__name__)

LIVING = ("spawning", "active", "working", "checkpointing")
NOT_PAID = "the next minutes of its runtime are not paid for"
PREEMPTED = "a pool is too small for all that run, and it is the first to be paused"
#: Without the hub nobody would start it again.
_STOPPABLE = Machine.machine_type != HUB
_RETRY_FIRST, _RETRY_MOST = timedelta(seconds=30), timedelta(hours=1)


def run(settings: Settings) -> None:
    """Reserve ahead, pause what is not paid for, resume what is: each machine in a transaction of its own."""
    hold_runtimes(settings)
    take_back_shares(settings)
    with db.session_scope(settings) as session:
        used_up = {project.uuid: why for project in _with_machines(session, LIVING) if (why := _why(session, project))}
        order = _order(session)
        stops = {machine: used_up[project] for machine, project in _of(session, used_up, LIVING).items()}
        stops = _unpaid(session, settings, order, bool(stops)) | stops
        paused = _of(session, {project.uuid for project in _with_machines(session, ("paused",))}, ("paused",))
    for machine_uuid in sorted(stops, key=lambda uuid: order.get(uuid, 0)):
        stop(settings, machine_uuid, stops[machine_uuid])
    for machine_uuid in paused:
        resume(settings, machine_uuid)


def hold_runtimes(settings: Settings) -> None:
    """Reserve each running VM's next minutes, whether it could be read or not; for who is paused first at last."""
    ahead = timedelta(seconds=settings.runtime_ahead_seconds)
    # Not each time anew: only what has been used up by a fifth.
    lasts = datetime.now(UTC) + ahead * 4 / 5
    with db.session_scope(settings) as session:
        runs = (VmMeter.state == "running", sa.or_(VmMeter.held_to.is_(None), VmMeter.held_to < lasts))
        vms = session.execute(sa.select(VmMeter.vm_id, VmMeter.machine_uuid).where(*runs).order_by(VmMeter.vm_id)).all()
        order = _order(session) if len(vms) > 1 else {}
    for vm_id, _ in sorted(vms, key=lambda row: -order.get(row.machine_uuid, len(order))):
        _hold_runtime(settings, vm_id, ahead)


@db.again
def _hold_runtime(settings: Settings, vm_id: int, ahead: timedelta) -> None:
    with db.session_scope(settings) as session:
        meter = metering.of_vm(session, vm_id)
        if meter is not None and meter.state == "running":
            metering.hold(session, meter, datetime.now(UTC) + ahead)


def take_back_shares(settings: Settings) -> None:
    """Give the projects with machines their shares of the pools: who has lent his seems to have used it up."""
    with db.session_scope(settings) as session:
        owners = [one.uuid for one in _with_machines(session, (*LIVING, "paused"))] if pools.all_of(session) else []
    for project_uuid in owners:
        db.transact(settings, lambda session, owner=project_uuid: pools.claim(session, owner))


@db.again
def stop(settings: Settings, machine_uuid: UUID, why: str) -> None:
    """Pause a machine, or end it, as its project wants it; what is under way for it comes first."""
    with db.session_scope(settings) as session:
        machine = machines.locked(session, machine_uuid)
        if (
            machine.machine_type == HUB
            or machine.status not in LIVING
            or machine.stop_requested_at is not None
            or not _may_ask(session, machine)
        ):
            return
        project = session.get_one(Project, machine.project_uuid)
        with contextlib.suppress(machines.MachineEnded, machines.MachinePaused):
            if project.when_exhausted == "end":
                machines.terminate(session, settings, machine, outcome="out_of_budget", reason="budget")
            else:
                is_short = _money(session, project) is not None or throttle.stopping(session, project) is None
                machines.pause(session, settings, machine, reason="budget", short_of_money=is_short)
            alerts.used_up(session, machine, why)
            log.warning("machine %s is stopped: %s", machine.name, why)


@db.again
def resume(settings: Settings, machine_uuid: UUID, *, paid: bool = False) -> bool:
    """Go on with a machine that was paused for its budget, if there is more money than then; returns whether it does.

    `paid`: somebody has just raised the budget, so a little more is enough.
    """
    try:
        with db.session_scope(settings) as session:
            machine = machines.locked(session, machine_uuid)
            metering.of_vm(session, machine.vm_id)  # before budgets, as everybody does
            if machine.status != "paused" or machine.pause_reason != "budget":
                return False
            project = session.get_one(Project, machine.project_uuid)
            if _why(session, project) is not None:
                return False
            needed = settings.min_spawn_cad + (Decimal(0) if paid else _left_then(machine))
            if budgets.available(session, project.uuid) < needed:
                return False
            machines.resume(session, settings, machine)
            log.info("machine %s goes on: there is money again", machine.name)
            return True
    except (budgets.BudgetExhausted, machines.ProjectNotActive, machines.MachineEnded):
        return False
    except AutovibeError as error:
        log.warning("machine %s is not resumed: %s", machine_uuid, error)
        return False


def resume_project(settings: Settings, project_uuid: UUID) -> list[UUID]:
    """Go on with all machines of a project that were paused for its budget; returns those that do."""
    with db.session_scope(settings) as session:
        paused = _of(session, {project_uuid}, ("paused",))
    return [machine_uuid for machine_uuid in paused if resume(settings, machine_uuid, paid=True)]


def _why(session: Session, project: Project) -> str | None:
    """Why the project's machines may not run now; None when they may."""
    if why := _money(session, project):
        return why
    worst = throttle.stopping(session, project)
    return None if worst is None else str(worst)


def _money(session: Session, project: Project) -> str | None:
    rows = [row for row in allocations.present(session, project.uuid) if row.resource_type == "money"]
    if not rows:
        return "the project has no budget of money"
    for row in rows:
        if row.frozen_at is not None:
            return f"the budget is frozen: {row.freeze_reason}"
        if row.used_amount >= row.allocated_amount:
            return f"the {row.budget_period} budget is used up"
    return None


def _order(session: Session) -> dict[UUID, int]:
    """The place of each running machine in the order in which they are paused."""
    return {one.machine_uuid: place for place, one in enumerate(pools.preemption_order(session))}


def _unpaid(session: Session, settings: Settings, order: Mapping[UUID, int], others: bool) -> dict[UUID, str]:
    """Machines to stop, and why, because VMs run and are paid for no longer than half of the time that they should be.

    One that lacks a pool's money only is let run on for a while, for another one that comes before it: for one at a
    time, whose money goes back to the pool when it has stopped. `others`: some are being stopped anyway.
    """
    now, ahead = datetime.now(UTC), timedelta(seconds=settings.runtime_ahead_seconds)
    query = (
        sa.select(Machine.uuid, Machine.project_uuid, VmMeter.held_to)
        .join(VmMeter, VmMeter.vm_id == Machine.vm_id)
        .where(VmMeter.state == "running", _STOPPABLE)
    )
    running = session.execute(query).all()
    unpaid = [one for one in running if one.held_to is None or one.held_to < now + ahead / 2]
    lent = {one.uuid for one in unpaid if one.held_to and one.held_to > now + ahead / 4 and _lacks_pool(session, one)}
    stops = {one.uuid: NOT_PAID for one in unpaid if one.uuid not in lent}
    if lent and not stops and not others and not _stopping(session):
        first = min((one.uuid for one in running if one.uuid in order), key=lambda uuid: order[uuid], default=None)
        if first is not None:
            stops[first] = PREEMPTED
    return stops


def _lacks_pool(session: Session, machine: Any) -> bool:
    """Whether its project's share of a pool is what is too small, not a budget of its own."""
    rows = [row for row in allocations.present(session, machine.project_uuid) if row.resource_type == "money"]
    left = {True: [], False: []}
    for row in rows:
        left[row.pooled].append(row.allocated_amount - row.used_amount - row.reserved_amount)
    return (
        bool(left[True])
        and all(row.frozen_at is None for row in rows)
        and min(left[True]) < min(left[False], default=Decimal("Infinity"))
    )


def _stopping(session: Session) -> bool:
    """Whether a machine is being stopped just now: that gives money back."""
    stops = (Operation.kind.in_(("pause", "terminate")), Operation.status.in_(("queued", "running")))
    return session.scalar(sa.select(sa.exists().where(*stops))) or False


def _with_machines(session: Session, statuses: tuple[str, ...]) -> list[Project]:
    has = sa.exists().where(Machine.project_uuid == Project.uuid, Machine.status.in_(statuses), _STOPPABLE)
    return list(session.scalars(sa.select(Project).where(has).order_by(Project.uuid)))


def _of(session: Session, projects: object, statuses: tuple[str, ...]) -> dict[UUID, UUID]:
    """Machine → project, the oldest first."""
    query = (
        sa.select(Machine.uuid, Machine.project_uuid)
        .where(Machine.project_uuid.in_(list(projects)), Machine.status.in_(statuses), _STOPPABLE)
        .order_by(Machine.spawned_at, Machine.uuid)
    )
    return dict(session.execute(query).all())


def _left_then(machine: Machine) -> Decimal:
    try:
        return Decimal(machine.metadata_.get("available_when_paused_cad", "0"))
    except InvalidOperation:
        return Decimal(0)


def _may_ask(session: Session, machine: Machine) -> bool:
    """Not while a stop is under way, and after failed ones later each time."""
    kinds = ("pause", "terminate")
    asked = sa.select(Operation).where(Operation.machine_uuid == machine.uuid, Operation.kind.in_(kinds))
    ends = session.scalars(asked.order_by(Operation.seq.desc()).limit(10)).all()
    if any(one.status in ("queued", "running") for one in ends):
        return False
    failed = 0
    for one in ends:
        if one.status != "failed":
            break
        failed += 1
    pause = min(_RETRY_FIRST * 2 ** max(failed - 1, 0), _RETRY_MOST)
    return failed == 0 or datetime.now(UTC) - ends[0].finished_at > pause
