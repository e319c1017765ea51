"""Machines that have fallen silent: their VMs are started where they stand still, and get their next identity.

An identity is in its guest's memory. A guest that has rebooted by itself, or with its host, waits for another one, and
its agent goes on with the work then. So does one whose agent or network has hung, or that stopped before its agent came
up. A few times in a row; then it ends.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy.orm import Session

from autovibe import budgets, machine_vms, machines, metering, operations
from autovibe.models import Machine, Operation
from autovibe.settings import Settings

#: In a row, without a model call in between.
TIMES = 3
#: Error classes that no later try mends: the VM is gone, or its id is another one's.
_FOR_GOOD = ("IdentityError", "NotFound")


def revive(session: Session, settings: Settings, machine: Machine) -> Operation | None:
    """Ask that a silent machine go on under its next identity; None when that was tried too often, or is not paid."""
    last = machine.metadata_.get("revived") or {"times": 0, "calls": 0}
    times = last["times"] + 1 if last["calls"] == machine.api_calls else 1
    if times > TIMES:
        return None
    meter = metering.of_vm(session, machine.vm_id)
    if meter is not None and meter.state == "stopped":
        try:
            metering.reopen(session, settings, machine.vm_id)
        except budgets.BudgetExhausted:
            return None
    operation = operations.enqueue(
        session,
        "resume",
        machine_uuid=machine.uuid,
        project_uuid=machine.project_uuid,
        params={"identity": True, "revive": True, "vars": machine_vms.variables(machine)},
    )
    worked = _worked(settings, machine)
    what = "Its agent has not enrolled" if machine.status == "spawning" else "It has sent no heartbeat"
    machines.next_generation(machine)
    revived = {"times": times, "calls": machine.api_calls, "generation": machine.generation, "worked_seconds": worked}
    machine.metadata_ = {**machine.metadata_, "revived": revived}
    machines.say(session, machine.uuid, f"{what} for {settings.machine_revive_seconds} s: it is started again", "error")
    session.flush()
    return operation


def _worked(settings: Settings, machine: Machine) -> float:
    """Seconds since it enrolled, without silence in which nobody looked: a guest wins no time by falling silent.

    One that has not enrolled in this generation has worked as long as it had when that began.
    """
    if machine.status == "spawning":
        return _before(machine)
    if machine.enrolled_at is None or machine.last_heartbeat_at is None:
        return 0.0
    noticed = machine.last_heartbeat_at + timedelta(seconds=settings.machine_revive_seconds)
    return max(0.0, (min(noticed, datetime.now(UTC)) - machine.enrolled_at).total_seconds())


def _before(machine: Machine) -> float:
    """Seconds that it had worked before this generation: a revived one's count on, a restored one begins anew."""
    revived = machine.metadata_.get("revived") or {}
    return revived.get("worked_seconds", 0.0) if revived.get("generation") == machine.generation else 0.0


def began(machine: Machine, now: datetime) -> datetime:
    """Since when a machine that enrols now has worked, for its wall limit: a revived one had worked before."""
    return now - timedelta(seconds=_before(machine))


def is_one(operation: Operation) -> bool:
    """Whether a resume is of a machine that had fallen silent, not of a paused one."""
    return bool(operation.params.get("revive"))


def failed(session: Session, settings: Settings, machine: Machine, operation: Operation) -> None:
    """It is left for the next time: its node may be booting, or Proxmox away. After the last one it ends.

    It keeps what is on its disk. What no other time mends ends it at once.
    """
    times = (machine.metadata_.get("revived") or {}).get("times", TIMES)
    if operation.error_class not in _FOR_GOOD and times < TIMES and machine.stop_requested_at is None:
        left = f"it is tried again in {settings.machine_revive_seconds} s, {TIMES - times} times more at most"
        machines.say(session, machine.uuid, f"It could not be started again: {operation.error}; {left}", "error")
        return
    reason = f"It had fallen silent, and cannot be started again: {operation.error}"
    machines.say(session, machine.uuid, reason, "error")
    machines.terminate(session, settings, machine, outcome="failed", reason=reason)
