"""The worker: claims operations, runs Ansible for them, several at a time, until SIGTERM.

Woken by LISTEN/NOTIFY and, slowly, by itself. Stops have a lane of their own. When it begins, and now and then, it
takes over what dead workers of this host have left: it ends the rest of their runs, then queues their operations again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
import threading
import time
from datetime import timedelta
from uuid import UUID

from sqlalchemy import select as sql_select
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from autovibe import db, hubs, machine_vms, operations, processes, records, runner
from autovibe.errors import AutovibeError
from autovibe.models import Machine, Operation, Run
from autovibe.recorder import Recorder
from autovibe.settings import Settings, load_settings

log = logging.getLogger(__name__)

POLL_SECONDS = 10.0
#: How long a claim waits for more of the same kind, so that one run serves them all.
GATHER_SECONDS = 0.03
STOP_LANE_RUNS = 2
STOP_GRACE_SECONDS = 8.0


def worker_id() -> str:
    """Names this process for good: host, boot, pid and the process's start."""
    return f"{processes.host_id()}/{os.getpid()}/{processes.start_time(os.getpid())}"


def is_dead(worker: str) -> bool:
    """Whether that worker is certainly gone. Of another host nothing is certain."""
    try:
        host, boot, pid, started = worker.split("/")
        here_host, here_boot = processes.host_id().split("/")
        if host != here_host:
            return False
        return boot != here_boot or not processes.is_alive(int(pid), float(started))
    except ValueError:
        return False


class Worker:
    """One worker process. `run` returns after `stop`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.id = worker_id()
        self.hostname = processes.host_id().split("/")[0]
        self.lease = timedelta(seconds=settings.lease_seconds)
        self.recorder = Recorder(settings, self._recorded)
        self.active: dict[UUID, tuple[str, runner.Run]] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)
        self._listener = None
        self._recover_at = 0.0
        self._extend_at = 0.0

    def stop(self) -> None:
        """End after what is under way; may be called from a signal handler."""
        self._stopping.set()
        self.wake()

    def wake(self) -> None:
        """Look for work now; may be called from any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"w")

    def run(self) -> None:
        """Serve until `stop`. A database that is away is waited for."""
        self.recorder.start()
        pause = 0.2
        while not self._stopping.is_set():
            try:
                self._listen()
                due = self._turn()
                pause = 0.2
                self._wait(min(POLL_SECONDS, self.settings.lease_seconds / 3, due))
            except (DBAPIError, AutovibeError) as error:
                log.warning("cannot reach the database, trying again: %s", error)
                self._hang_up()
                self._stopping.wait(pause)
                pause = min(pause * 2, 10.0)
        self._finish()

    def _turn(self) -> float:
        """Everything that may have to be done now; returns in how many seconds something is due."""
        now = time.monotonic()
        if now >= self._recover_at:
            self._recover()
            self._recover_at = now + POLL_SECONDS
        if now >= self._extend_at:
            with db.session_scope(self.settings) as session:
                operations.extend(session, self.id, self.lease)
            self._extend_at = now + self.settings.lease_seconds / 3
        with db.session_scope(self.settings) as session:
            for operation, reason in operations.hopeless(session):
                records.end(session, self.settings, operation.uuid, error=reason, error_class="DependencyFailed")
        for lane, kinds in operations.LANES.items():
            while self._has_room(lane) and self._claim(lane, kinds):
                pass
        with db.session_scope(self.settings) as session:
            # What is due and was not claimed waits for room, or for its machine: their end wakes this worker.
            return operations.next_due(session) or POLL_SECONDS

    def _has_room(self, lane: str) -> bool:
        most = STOP_LANE_RUNS if lane == "stop" else self.settings.worker_concurrency
        with self._lock:
            return not self._stopping.is_set() and sum(1 for name, _ in self.active.values() if name == lane) < most

    def _claim(self, lane: str, kinds: tuple[str, ...]) -> bool:
        with db.session_scope(self.settings) as session:
            found = operations.claim(
                session, self.id, self.hostname, kinds=kinds, limit=self.settings.worker_batch, lease=self.lease
            )
            if found is None:
                return False
            playbook = operations.PLAYBOOKS.get(found.kind, found.kind)
            run = runner.Run(self.settings, found.uuid, playbook)
            found.artifact_dir = str(run.folder)
        with self._lock:
            self.active[found.uuid] = (lane, run)
        threading.Thread(target=self._serve, args=(run,), name=f"run-{found.uuid}", daemon=True).start()
        return True

    def _serve(self, run: runner.Run) -> None:
        """One run, in a thread of its own."""
        outcome = runner.Outcome("error", 1)
        try:
            self._prepare(run)
            outcome = run.execute(lambda event: self.recorder.event(run.uuid, event))
        except (AutovibeError, OSError) as error:
            log.error("run %s: %s", run.uuid, error)
            outcome = runner.Outcome("error", 1, tail=str(error))
        except Exception as error:
            log.exception("run %s", run.uuid)
            outcome = runner.Outcome("error", 1, tail=f"{type(error).__name__}: {error}")
        finally:
            # Ansible's workers may outlive it; only when they are gone may the operations go back to the queue.
            while not processes.end_run(run.uuid):
                log.error("run %s has processes that do not end", run.uuid)
            run.clean()
            log.info("run %s: %s (%s)", run.uuid, outcome.status, outcome.rc)
            self.recorder.ended(run.uuid, outcome)

    def _prepare(self, run: runner.Run) -> None:
        run.prepare()
        with db.session_scope(self.settings) as session:
            served = operations.of_run(session, run.uuid, unfinished=True)
            installation = str(machine_vms.installation_id(session))
            hosts = [self._host(session, run, operation, installation) for operation in served]
            awaited = {str(operation.uuid): records.awaited(operation) for operation in served}
        log.info("run %s: %s of %d", run.uuid, run.playbook.stem, len(hosts))
        self.recorder.begin(run.uuid, awaited)
        run.write_inventory(hosts)
        if run.playbook.stem == "hub_checkpoint":
            hubs.flush_database(self.settings)

    def _host(self, session: Session, run: runner.Run, operation: Operation, installation: str) -> runner.Host:
        variables = {
            **operation.params["vars"],
            "machine_installation": installation,
            "machine_operation": str(operation.uuid),
        }
        if operation.kind == "template":
            variables = {**operation.params["vars"], "vm_template_installation": installation}
        if operation.params.get("identity"):
            from autovibe.identity import write_identity

            machine = session.get_one(Machine, operation.machine_uuid)
            path = write_identity(self.settings, machine, run.secret_path(operation.uuid))
            variables["machine_identity_file"] = str(path)
        records.begin(session, operation)
        return runner.Host(operation.uuid, variables)

    def _recorded(self, run_uuid: UUID) -> None:
        """A run has been recorded to its end (called by the recorder)."""
        with self._lock:
            self.active.pop(run_uuid, None)
            in_use = set(self.active)
        self.wake()
        runner.prune(self.settings, self.settings.runs_kept, in_use)

    def _recover(self) -> None:
        """Take over what dead workers of this host have left."""
        with db.session_scope(self.settings) as session:
            left = [run.uuid for run in operations.open_runs(session, self.hostname) if is_dead(run.worker)]
        for run_uuid in left:
            if not processes.end_run(run_uuid, grace=0):
                log.error("run %s of a dead worker still has processes that do not end; it stays theirs", run_uuid)
                continue
            runner.Run(self.settings, run_uuid, "none").clean()
            with db.session_scope(self.settings) as session:
                self._take_over(session, run_uuid)

    def _take_over(self, session: Session, run_uuid: UUID) -> None:
        # Another worker may be doing the same; the one that has the run's row does it.
        row = session.scalars(
            sql_select(Run).where(Run.uuid == run_uuid, Run.status == "running").with_for_update(skip_locked=True)
        ).one_or_none()
        if row is None:
            return
        left = operations.of_run(session, run_uuid, unfinished=True)
        for operation in operations.put_back(session, left, "Its worker died"):
            message = f"The worker died {operation.attempts} times while it was being done"
            records.end(session, self.settings, operation.uuid, error=message, error_class="Interrupted")
        operations.end_run(session, run_uuid, "lost")
        log.warning("took over %d operations of run %s, whose worker died", len(left), run_uuid)

    def _listen(self) -> None:
        if self._listener is None:
            connection = db.engine(self.settings).connect().execution_options(isolation_level="AUTOCOMMIT")
            connection.execute(text(f"LISTEN {operations.CHANNEL}"))
            connection.detach()
            self._listener = connection

    def _hang_up(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(DBAPIError):
                self._listener.close()
            self._listener = None

    def _wait(self, seconds: float) -> None:
        """Until something is to be done: a notification, a wake, or the time is up."""
        raw = self._listener.connection.dbapi_connection
        ready, _, _ = select.select([raw, self._wake_read], [], [], seconds)
        if self._wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
        if raw in ready:
            if not self._stopping.is_set():
                time.sleep(GATHER_SECONDS)
            try:
                raw.poll()
            except Exception as error:
                raise AutovibeError(f"The database has closed the connection: {error}".strip()) from error
            raw.notifies.clear()

    def _finish(self) -> None:
        """Give what is under way a little time, then interrupt it: it is queued again and goes on where it was."""
        deadline = time.monotonic() + STOP_GRACE_SECONDS
        while self.active and time.monotonic() < deadline:
            select.select([self._wake_read], [], [], 0.1)
        with self._lock:
            left = [run for _, run in self.active.values()]
        for run in left:
            run.cancel()
        deadline = time.monotonic() + STOP_GRACE_SECONDS
        while self.active and time.monotonic() < deadline:
            time.sleep(0.05)
        self.recorder.close()
        self._hang_up()


def main() -> int:
    """`python -m autovibe.worker`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = load_settings()
        runner.scrub_environment()
        worker = Worker(settings)
    except AutovibeError as error:
        print(error, file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop())
    # Loaded now, so that the first operation does not wait for it.
    import ansible_runner.interface  # noqa: F401

    worker.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
