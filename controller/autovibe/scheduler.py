"""The scheduler: what has to be done now and then, by one process at a time (a Postgres advisory lock decides which).

It meters machines, enforces budgets, reaps reservations whose holder is gone, sends alerts, makes the ledger's
partitions ahead, ends machines that have gone silent, asks again for an end that has failed, and for the hub's daily
checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Select, and_, exists, func, or_, select, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.orm import Session

from autovibe import (
    alerts,
    budgets,
    compute,
    db,
    enforcement,
    file_retention,
    fleet,
    hubs,
    jobs,
    logins,
    machines,
    pools,
    pruning,
    revival,
    runner,
    verification,
)
from autovibe.api.v1 import replays
from autovibe.errors import AutovibeError
from autovibe.models import HUB, Checkpoint, Machine, MachineSlot, Operation, Project
from autovibe.settings import Settings, load_settings

log = logging.getLogger(__name__)

_LOCK = "SELECT pg_try_advisory_lock(hashtext('autovibe scheduler'))"
#: For a job in a thread, when the scheduler is told to stop.
STOP_SECONDS = 5.0
_RETRY_FIRST, _RETRY_MOST = timedelta(seconds=30), timedelta(hours=1)


@dataclass(frozen=True)
class Job:
    """What is done every so many seconds: `do(session)` in one transaction with the record of its success.

    Without a session (`apart`) it makes its own transactions, in a thread: it may take its time.
    """

    name: str
    every: float
    do: Callable[..., None]
    apart: bool = False


class Scheduler:
    """Runs each job at its interval until `stop`; one that was missed while nobody ran is run once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.began = datetime.now(UTC)
        self._stopping = threading.Event()
        self._apart: dict[str, threading.Thread] = {}
        self._meter_at = 0.0
        self.jobs = [
            Job("reap reservations", 5, self.reap),
            Job("enforce budgets", 10, self.enforce, apart=True),
            Job("meter machines", min(10, settings.meter_seconds), self.meter, apart=True),
            Job("end silent machines", 15, self.end_silent),
            Job("ask again for ends", 15, self.end_again),
            Job("report expired leases", 60, self.report_leases),
            Job("send alerts", 5, self.send_alerts),
            Job("make partitions", 6 * 3600, self.make_partitions),
            Job("forget answered requests", 3600, self.forget),
            Job("add up usage", 60, self.add_up),
            Job("share pools", 5, self.share_pools),
            Job("load compute rates", 3600, self.load_rates),
            Job("verify checkpoints", settings.verify_seconds, self.verify),
            Job("prune checkpoints", settings.prune_seconds, self.prune),
            Job("remove files of pruned machines", 3600, self.collect_files),
            Job("checkpoint the hub", 300, self.checkpoint_hub),
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
        for thread in self._apart.values():
            thread.join(STOP_SECONDS)

    def _lead(self, check: Callable[[], object]) -> None:
        due = self._first()
        while not self._stopping.is_set():
            check()
            now = time.monotonic()
            for job in self.jobs:
                if due[job.name] <= now:
                    self._begin(job)
                    due[job.name] = now + job.every
            self._stopping.wait(max(0.1, min(due.values()) - time.monotonic()))

    def _first(self) -> dict[str, float]:
        """When each job is due first, by the monotonic clock: one interval after its last success, or now."""
        with db.session_scope(self.settings) as session:
            last = jobs.last_successes(session)
        now, clock = datetime.now(UTC), time.monotonic()
        due = {}
        for job in self.jobs:
            ago = (now - last[job.name]).total_seconds() if job.name in last else job.every
            # A time to come was written by a clock that has gone back.
            due[job.name] = clock + (job.every - ago if 0 <= ago < job.every else 0.0)
        return due

    def _begin(self, job: Job) -> None:
        if not job.apart:
            self._do(job)
            return
        under_way = self._apart.get(job.name)
        if under_way is None or not under_way.is_alive():
            self._apart[job.name] = threading.Thread(target=self._do_apart, args=(job,), name=job.name, daemon=True)
            self._apart[job.name].start()

    def _do(self, job: Job) -> None:
        def once(session: Session) -> None:
            job.do(session)
            jobs.succeeded(session, job.name, job.every)

        try:
            db.transact(self.settings, once)
        except (OperationalError, InterfaceError):
            raise
        except AutovibeError as error:
            log.error("%s: %s", job.name, error)
            self._failed(job, error)
        except Exception as error:
            # Also what the database refuses: the other jobs, such as metering, do not wait until somebody mends it.
            log.exception("%s: failed", job.name)
            self._failed(job, error)

    def _do_apart(self, job: Job) -> None:
        try:
            job.do()
            with db.session_scope(self.settings) as session:
                jobs.succeeded(session, job.name, job.every)
        except AutovibeError as error:
            log.error("%s: %s", job.name, error)
            self._failed(job, error)
        except Exception as error:
            log.exception("%s: failed", job.name)
            self._failed(job, error)

    def _failed(self, job: Job, error: Exception) -> None:
        with contextlib.suppress(DBAPIError, AutovibeError), db.session_scope(self.settings) as session:
            jobs.failed(session, job.name, job.every, f"{type(error).__name__}: {error}")

    def meter(self) -> None:
        """Book what the machines themselves cost, and what their checkpoints' storage does."""
        if time.monotonic() >= self._meter_at and fleet.meter(self.settings) is not None:
            # Also when a VM cannot be booked and stays due: one reading a minute is enough.
            self._meter_at = time.monotonic() + self.settings.meter_seconds * 0.9

    def enforce(self) -> None:
        """Stop what is not paid for, go on with what is again."""
        enforcement.run(self.settings)

    def load_rates(self, session: Session) -> None:
        """Compute rates of a file that was changed."""
        compute.load(session, self.settings)

    def reap(self, session: Session) -> None:
        """Give back what is reserved by holders that are gone."""
        reaped = budgets.reap(session)
        if reaped:
            log.warning("reaped %d reservations", len(reaped))

    def send_alerts(self, session: Session) -> None:
        """Tell the webhook which levels budgets have reached."""
        alerts.send(session, self.settings)

    def verify(self, session: Session) -> None:
        """Look whether what is called verified still exists; not while nothing could be missing."""
        if session.scalar(select(exists().where(Checkpoint.verification_status.in_(("verified", "missing"))))):
            verification.ask(session)

    def prune(self, session: Session) -> None:
        """Remove the checkpoints that their projects' policies do not keep."""
        for project in session.scalars(select(Project).order_by(Project.uuid)).all():
            queued = pruning.prune(session, project)
            if queued:
                log.info("project %s: pruning by %d operations", project.name, len(queued))

    def checkpoint_hub(self, session: Session) -> None:
        """The daily checkpoint of the VM that this hub runs in, once it is adopted."""
        if hubs.daily(session, self.settings) is not None:
            log.info("the hub's daily checkpoint is asked for")

    def collect_files(self, session: Session) -> None:
        """Remove what machines have left behind whose checkpoints are gone."""
        file_retention.collect(session, self.settings)

    def forget(self, session: Session) -> None:
        """Answers that were kept for repeated requests, and logins that have ended."""
        replays.forget(session)
        logins.forget(session)

    def make_partitions(self, session: Session) -> None:
        """The ledger's partitions of the months to come."""
        session.execute(text("SELECT ensure_usage_partitions(:months)"), {"months": self.settings.usage_months_ahead})

    def add_up(self, session: Session) -> None:
        """Keep the ledger's sums few, so that reports are fast; they are right without it."""
        session.execute(text("SELECT compact_usage_sums()"))

    def share_pools(self, session: Session) -> None:
        """Lend on what idle projects leave of the pools; whoever wants its share takes it back by itself."""
        pools.share_all(session)

    def end_silent(self, session: Session) -> None:
        """Revive, then end machines that have sent no heartbeat for long; end those that have never enrolled."""
        now = datetime.now(UTC)
        silent = now - timedelta(seconds=self.settings.machine_silence_seconds)
        stalled = now - timedelta(seconds=self.settings.machine_revive_seconds)
        unborn = now - timedelta(seconds=self.settings.machine_boot_seconds)
        # While no hub was up nobody could send a heartbeat: silence counts from this scheduler's beginning.
        seen = func.coalesce(Machine.last_heartbeat_at, Machine.enrolled_at, Machine.spawned_at)
        alive, booting = Machine.status.in_(("active", "working", "checkpointing")), Machine.status == "spawning"
        begun = (
            select(func.max(Operation.finished_at))
            .where(Operation.machine_uuid == Machine.uuid, Operation.kind.in_(("spawn", "restore", "resume")))
            .scalar_subquery()
        )
        if silent > self.began:
            quiet = select(Machine).where(alive, seen < silent)
            self._end(session, quiet, f"It has sent no heartbeat for {self.settings.machine_silence_seconds} s")
        if stalled > self.began:
            stuck = or_(and_(alive, seen < stalled), and_(booting, begun < stalled))
            for machine in self._idle(session, select(Machine).where(stuck, Machine.stop_requested_at.is_(None))):
                if revival.revive(session, self.settings, machine) is not None:
                    log.warning("machine %s has fallen silent: it is started again", machine.name)
        if unborn > self.began:
            lost = select(Machine).where(booting, begun < unborn)
            self._end(session, lost, f"Its agent has not enrolled within {self.settings.machine_boot_seconds} s")

    @staticmethod
    def _idle(session: Session, query: Select[tuple[Machine]]) -> Sequence[Machine]:
        """Those of them for which nothing is under way, held for this transaction. A hub's own VM has no agent."""
        held = query.where(~_unfinished(), Machine.machine_type != HUB).order_by(Machine.uuid)
        return session.scalars(held.with_for_update(skip_locked=True, key_share=True, of=Machine)).all()

    def _end(self, session: Session, query: Select[tuple[Machine]], reason: str) -> None:
        for machine in self._idle(session, query):
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
            select(Machine).where(wanted, ~_unfinished()).with_for_update(skip_locked=True, key_share=True, of=Machine)
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
