"""One identity's life in the guest: enrol, fetch the assignment, run the CLI, report, end."""

import contextlib
import logging
import threading
from collections.abc import Iterator
from dataclasses import asdict

from autovibe_agent.attempt import Attempt, stopped
from autovibe_agent.base import (
    FAILED,
    OUT_OF_BUDGET,
    Assignment,
    CodingAgent,
    Guard,
    Message,
    Outcome,
    find_type,
    make_home,
)
from autovibe_agent.checkpoints import Checkpoints
from autovibe_agent.enrol import Identity, enrol, keep_token
from autovibe_agent.hand_over import TooLarge, hand_over
from autovibe_agent.heartbeat import Heartbeat
from autovibe_agent.hub import Hub, HubRefused, HubUnreachable
from autovibe_agent.manifest import Manifest
from autovibe_agent.paths import Paths, User
from autovibe_agent.process import end_leftovers
from autovibe_agent.progress import Progress
from autovibe_agent.spool import Spool
from autovibe_agent.state import ENDED, FINISHED, NEW, STARTED, WorkStore
from autovibe_agent.workspace import write_files

SUMMARY_CHARS = 4000
#: Between two attempts: doubled from the first to the second.
PAUSE_SECONDS = (0.5, 60.0)
LEAVE_SECONDS = 3600.0

log = logging.getLogger(__name__)


class IdentityIsOver(Exception):
    """The hub no longer knows this machine under this identity."""


class Life:
    """Runs once. `run` returns when the result is with the hub; raises IdentityIsOver when nobody wants it."""

    def __init__(self, identity: Identity, paths: Paths, user: User, agent_sha256: str):
        self.identity, self.paths, self.user, self.agent_sha256 = identity, paths, user, agent_sha256
        self.hub = Hub(identity.hub_url, paths.ca, set_clock=paths.is_machine)
        self.store = WorkStore(paths.state, identity.machine)
        self.work = self.store.read()
        self.manifest = Manifest(paths.workspace)
        self.progress = Progress(self.hub, Spool(paths.spool, identity.machine))
        self.checkpoints = Checkpoints(
            self.hub, self.manifest, lambda: self._attempt.agent.context() if self._attempt else {}
        )
        self._attempt: Attempt | None = None
        self._stop = threading.Event()
        self._stop_reason: str | None = None
        self._answered = threading.Event()
        self._identity_is_over = False

    def run(self) -> None:
        """Does the work of this machine, or goes on with it when this disk knows of it already."""
        work = self.work
        if work.phase == FINISHED and work.generation == self.identity.generation:
            return
        try:
            enrolment = enrol(self.hub, self.identity, self.paths, self.user, self.agent_sha256)
            if work.generation != self.identity.generation:
                work.generation, work.resumes = self.identity.generation, 0
                if work.result is not None and work.result["outcome"] == OUT_OF_BUDGET:
                    self._take_up()  # a new identity: there is money again
            self.progress.start()
            if work.result is None:
                answer = self.hub.persist("GET", "/agent/v1/assignment")
                work.result = asdict(self._do(answer, enrolment.heartbeat_seconds))
                work.phase = ENDED
                self.store.write(work)
            with self._sign_of_life(enrolment.heartbeat_seconds):
                manifest = self._leave()
                # All that was said before the result; with the result the machine ends.
                self.progress.close(None)
                is_paused = self._report(Outcome(**work.result), manifest)
            if is_paused:
                self._take_up()
                return
        except HubRefused as error:
            if error.identity_is_over:
                raise IdentityIsOver(str(error)) from error
            raise
        finally:
            self.progress.close(0)
        work.phase = FINISHED
        self.store.write(work)

    def _take_up(self) -> None:
        """The work has not ended after all: it is gone on with by the machine's next identity."""
        self.work.result, self.work.phase = None, STARTED
        self.store.write(self.work)

    def stop(self, reason: str) -> None:
        """Ends the work; the first reason counts. From any thread."""
        self._stop_reason = self._stop_reason or reason
        self._stop.set()
        if self._attempt is not None:
            self._attempt.stop(reason)

    def _do(self, answer: dict, heartbeat_seconds: float) -> Outcome:
        """From the assignment to how it ended. Whatever cannot be begun is a failed outcome, not a crash."""
        end_leftovers(f"AUTOVIBE_TOKEN_FILE={self.paths.token}")
        try:
            assignment = Assignment.of(answer)
            kind = find_type(assignment.agent_type)
            if self.work.phase == NEW:
                self.paths.workspace.mkdir(exist_ok=True)
                write_files(self.paths.workspace, assignment.files, self.user)
            make_home(self.user)
        except (LookupError, ValueError, TypeError, OSError) as error:
            return Outcome(FAILED, f"could not begin: {error}")
        with self._last_checkpoint(), self._company(assignment, heartbeat_seconds):
            outcome = self._try(kind, assignment)
            while outcome.passing and self._may_try_again(assignment):
                self.progress.add(Message("error", outcome.summary))
                outcome = self._try(kind, assignment)
        if self._identity_is_over:
            raise IdentityIsOver("the hub gave this machine another identity")
        if outcome.passing and self._stop_reason is not None:
            return stopped(self._stop_reason, assignment, outcome.exit_code, outcome.details)
        return outcome

    def _try(self, kind: type[CodingAgent], assignment: Assignment) -> Outcome:
        """One attempt: the first, or one that goes on with what an earlier one has begun."""
        work = self.work
        agent = kind(assignment, self.paths, self.user)
        if work.phase == STARTED:
            if work.resumes >= assignment.max_resumes:
                often = f"it had been resumed {work.resumes} times" if work.resumes else "it is not to be resumed"
                return Outcome(FAILED, f"the work was interrupted, and {often}")
            work.resumes += 1
            agent.resume(work.session)
            self.progress.add(Message("system", "the work was interrupted: going on with it"))
        try:
            if agent.NEEDS_LOCAL_GATEWAY:
                agent.local_gateway = self._local_gateway(agent.turns_left)
            if agent.HAS_HOOKS and assignment.guard:
                agent.hooks = self._hooks(assignment.guard)
            agent.prepare()
            work.phase, work.session = STARTED, agent.session()
            self.store.write(work)
            self._attempt = Attempt(agent, self.progress.add, work.worked_seconds)
        except (ValueError, OSError) as error:
            return Outcome(FAILED, f"could not begin: {error}")
        if self._stop_reason is not None:
            self._attempt.stop(self._stop_reason)
        try:
            return self._attempt.run()
        finally:
            self._keep(self._attempt)
            for server in (agent.local_gateway, agent.hooks):
                if server is not None:
                    server.close()

    def _hooks(self, guard: Guard):
        """Imported here, as the local gateway is."""
        from autovibe_agent.hooks import Hooks

        return Hooks(guard, self.checkpoints, self.progress.add)

    def _local_gateway(self, max_answers: int | None):
        """Imported here: most types need none, and a machine's start is short of time."""
        from autovibe_agent.local_gateway import LocalGateway

        return LocalGateway(self.hub, max_answers)

    def _keep(self, attempt: Attempt) -> None:
        """Keeps how far the work has come; a new answer of the model makes up for all resumes before."""
        self.work.session, self.work.worked_seconds = attempt.agent.session(), attempt.worked_seconds
        if attempt.has_new_turns:
            self.work.resumes = 0
        self.store.write(self.work)

    def _may_try_again(self, assignment: Assignment) -> bool:
        """Waits a little, and until the hub answers; False when the work is to stop, or has been resumed enough."""
        if self.work.resumes >= assignment.max_resumes:
            return False
        self._answered.clear()
        self._stop.wait(min(PAUSE_SECONDS[0] * 2**self.work.resumes, PAUSE_SECONDS[1]))
        while not self._stop.is_set() and not self._answered.wait(1):
            pass
        return not self._stop.is_set()

    @contextlib.contextmanager
    def _last_checkpoint(self) -> Iterator[None]:
        """Told to end (SIGTERM) while it works: asks for a checkpoint, once the CLI has ended. Nobody waits for it."""
        try:
            yield
        except SystemExit:
            context = self._attempt.agent.context() if self._attempt else {}
            body = {"type": "automatic", "description": "told to end", "context": context}
            with contextlib.suppress(HubRefused, HubUnreachable):
                self.hub.call("POST", "/agent/v1/checkpoints", {**body, "manifest": self.manifest.take()})
            raise

    @contextlib.contextmanager
    def _company(self, assignment: Assignment, heartbeat_seconds: float) -> Iterator[None]:
        """What goes on beside the CLI: heartbeats and checkpoints."""
        heartbeat = Heartbeat(
            self.hub,
            heartbeat_seconds,
            lambda: self.progress.latest,
            self._heard,
            self._refused,
        )
        heartbeat.start()
        try:
            yield
        finally:
            heartbeat.stop()

    def _heard(self, answer: dict) -> None:
        calls = int(answer.get("api_calls") or 0)
        if answer.get("token"):
            keep_token(self.hub, self.paths, self.user, str(answer["token"]))
        if self._attempt is not None:
            self._attempt.note_calls(calls)
            self._keep(self._attempt)
        if answer.get("directive") == "stop":
            self.stop(str(answer.get("reason") or "terminate"))
        elif not self._stop.is_set():
            self.checkpoints.consider(answer.get("checkpoint"))
        self._answered.set()

    def _refused(self, error: HubRefused) -> None:
        log.warning("heartbeat refused: %s", error)
        if error.identity_is_over:
            self._identity_is_over = True
            self.stop("superseded")

    @contextlib.contextmanager
    def _sign_of_life(self, heartbeat_seconds: float) -> Iterator[None]:
        """Heartbeats after the work: the hub is to know that a machine lives while it leaves what it has made.

        They say nothing, and what they hear but the token is of no more use. Not for ever: a hub that takes nothing of
        it, whatever the reason, is to end the machine as one that is silent.
        """

        def heard(answer: dict) -> None:
            if answer.get("token"):
                keep_token(self.hub, self.paths, self.user, str(answer["token"]))

        heartbeat = Heartbeat(self.hub, heartbeat_seconds, lambda: None, heard, lambda _: None)
        heartbeat.start()
        silence = threading.Timer(LEAVE_SECONDS, heartbeat.stop)
        silence.daemon = True
        silence.start()
        try:
            yield
        finally:
            silence.cancel()
            heartbeat.stop()

    def _leave(self) -> dict:
        """Leaves the workspace's files with the hub, and returns its manifest; without them the work still counts."""
        manifest = self.manifest.take()
        names = [file["path"] for file in manifest["files"]]
        try:
            if names:
                hand_over(self.hub, self.paths.workspace, names, self.user, self.paths.lib)
        except (OSError, TooLarge, HubRefused) as error:
            if isinstance(error, HubRefused) and error.identity_is_over:
                raise
            text = f"the hub has none of the workspace's files, they are on the checkpoint's disk only: {error}"
            self.progress.add(Message("error", text))
        return manifest

    def _report(self, outcome: Outcome, manifest: dict) -> bool:
        """The result with the workspace's manifest; said until the hub has heard it.

        Returns whether the hub pauses the machine instead of ending it.
        """
        body = {
            "outcome": outcome.outcome,
            "summary": outcome.summary.replace("\0", "\ufffd")[:SUMMARY_CHARS],
            "exit_code": outcome.exit_code,
            "manifest": manifest,
            "details": outcome.details,
        }
        answer = self.hub.persist("POST", "/agent/v1/result", body)
        log.info("result %s reported", outcome.outcome)
        return bool(answer.get("paused"))
