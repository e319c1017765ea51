"""The scheduler: what has to be done now and then, by one process at a time (a Postgres advisory lock decides which).

It reaps reservations whose holder is gone, sends alerts, makes the ledger's partitions ahead, ends machines that have
gone silent, and asks again for an end that has failed.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import exists, func, or_, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from autovibe import alerts, budgets, db, machines, runner
from autovibe.errors import AutovibeError
from autovibe.models import Machine, MachineSlot, Operation
from autovibe.settings import Settings, load_settings

log = logging.getLogger(__name__)

_LOCK = "SELECT pg_try_advisory_lock(hashtext('autovibe scheduler'))"
_RETRY_FIRST, _RETRY_MOST = timedelta(seconds=30), timedelta(hours=1)


class Scheduler:
    """Runs each job at its interval until `stop`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.began = datetime.now(UTC)
        self._stopping = threading.Event()
        self.jobs: list[tuple[str, float, Callable[[Session], None]]] = [
            ("reap reservations", 5, self.reap),
            ("end silent machines", 15, self.end_silent),
            ("ask again for ends", 15, self.end_again),
            ("report expired leases", 60, self.report_leases),
            ("send alerts", 5, self.send_alerts),
            ("make partitions", 6 * 3600, self.make_partitions),
        ]

    def stop(self) -> None:
        """End after the present job; may be called from a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Until `stop`; waits while another process is the scheduler, or the database is away."""
        pause = 0.5
        while not self._stopping.is_set():
            try:
                with db.engine(self.settings).connect() as connection:
                    pause = 0.5
                    # The lock is this connection's: it ends with it, also when this process is killed.
                    if connection.execution_options(isolation_level="AUTOCOMMIT").scalar(text(_LOCK)):
                        self._lead(lambda held=connection: held.execute(text("SELECT 1")))
                    else:
                        self._stopping.wait(10)
            except (DBAPIError, AutovibeError) as error:
                log.warning("cannot reach the database, trying again: %s", error)
                self._stopping.wait(pause)
                pause = min(pause * 2, 10.0)

    def _lead(self, check: Callable[[], object]) -> None:
        due = dict.fromkeys((name for name, _, _ in self.jobs), 0.0)
        while not self._stopping.is_set():
            check()
            now = time.monotonic()
            for name, every, job in self.jobs:
                if due[name] <= now:
                    self._do(name, job)
                    due[name] = now + every
            self._stopping.wait(max(0.1, min(due.values()) - time.monotonic()))

    def _do(self, name: str, job: Callable[[Session], None]) -> None:
        try:
            with db.session_scope(self.settings) as session:
                job(session)
        except DBAPIError:
            raise
        except Exception:
            log.exception("%s: failed", name)

    def reap(self, session: Session) -> None:
        """Give back what is reserved by holders that are gone."""
        reaped = budgets.reap(session)
        if reaped:
            log.warning("reaped %d reservations", len(reaped))

    def send_alerts(self, session: Session) -> None:
        """Tell the webhook which levels budgets have reached."""
        alerts.send(session, self.settings)

    def make_partitions(self, session: Session) -> None:
        """The ledger's partitions of the months to come."""
        session.execute(text("SELECT ensure_usage_partitions(:months)"), {"months": self.settings.usage_months_ahead})

    def end_silent(self, session: Session) -> None:
        """End machines that have sent no heartbeat for long, and those that have never enrolled."""
        now = datetime.now(UTC)
        silent = now - timedelta(seconds=self.settings.machine_silence_seconds)
        unborn = now - timedelta(seconds=self.settings.machine_boot_seconds)
        # While no hub was up nobody could send a heartbeat: silence counts from this scheduler's beginning.
        if silent > self.began:
            seen = func.coalesce(Machine.last_heartbeat_at, Machine.enrolled_at, Machine.spawned_at)
            quiet = select(Machine).where(Machine.status.in_(("active", "working", "checkpointing")), seen < silent)
            self._end(session, quiet, f"It has sent no heartbeat for {self.settings.machine_silence_seconds} s")
        if unborn > self.began:
            last = select(func.max(Operation.finished_at)).where(
                Operation.machine_uuid == Machine.uuid, Operation.kind.in_(("spawn", "restore"))
            )
            lost = select(Machine).where(Machine.status == "spawning", last.scalar_subquery() < unborn)
            self._end(session, lost, f"Its agent has not enrolled within {self.settings.machine_boot_seconds} s")

    def _end(self, session: Session, query: object, reason: str) -> None:
        for machine in session.scalars(query.where(~_unfinished()).with_for_update(skip_locked=True, of=Machine)):
            log.warning("ending machine %s: %s", machine.name, reason)
            with contextlib.suppress(machines.MachineEnded):
                machines.terminate(session, self.settings, machine, outcome="failed", reason=reason)
                machines.say(session, machine.uuid, reason, "error")

    def end_again(self, session: Session) -> None:
        """Ask again for an end that has failed: the machine still has its VM, or its place on the network."""
        wanted = or_(
            (Machine.status != "terminated") & Machine.stop_requested_at.is_not(None),
            (Machine.status == "terminated") & exists().where(MachineSlot.machine_uuid == Machine.uuid),
        )
        for machine in session.scalars(
            select(Machine).where(wanted, ~_unfinished()).with_for_update(skip_locked=True, of=Machine)
        ):
            failed = session.scalars(
                select(Operation)
                .where(Operation.machine_uuid == machine.uuid, Operation.kind == "terminate")
                .order_by(Operation.seq)
            ).all()
            if failed and _is_due(failed):
                log.warning("asking again for the end of machine %s", machine.name)
                machines.end(session, machine, "none" if machines.is_empty(machine) else "auto")

    def report_leases(self, session: Session) -> None:
        """A lease that has long expired belongs to a worker of a host that is away: only that host can know."""
        expired = session.scalars(
            select(Operation).where(
                Operation.status == "running", Operation.lease_expires_at < func.now() - timedelta(minutes=5)
            )
        ).all()
        for operation in expired:
            log.error(
                "operation %s (%s) is held by a worker that does not answer: %s; start a worker on its host",
                operation.uuid,
                operation.kind,
                operation.lease_owner,
            )


def _unfinished() -> object:
    return exists().where(Operation.machine_uuid == Machine.uuid, Operation.status.in_(("queued", "running")))


def _is_due(ends: list[Operation]) -> bool:
    """Twice as long after each failure."""
    if ends[-1].status != "failed":
        return False
    pause = min(_RETRY_FIRST * 2 ** min(len(ends), 10), _RETRY_MOST)
    return datetime.now(UTC) - ends[-1].finished_at > pause


def main() -> int:
    """`python -m autovibe.scheduler`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = load_settings()
    except AutovibeError as error:
        print(error, file=sys.stderr)
        return 1
    runner.scrub_environment()
    scheduler = Scheduler(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: scheduler.stop())
    scheduler.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
