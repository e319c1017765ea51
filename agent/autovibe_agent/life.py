"""One identity's life in the guest: enrol, fetch the assignment, run the CLI, report, end."""

import logging
import threading
import time

from autovibe_agent.base import (
    FAILED,
    OUT_OF_BUDGET,
    STOPPED,
    Assignment,
    CodingAgent,
    Message,
    Outcome,
    find_type,
    make_home,
)
from autovibe_agent.checkpoints import Checkpoints
from autovibe_agent.enrol import Identity, enrol, keep_token
from autovibe_agent.heartbeat import Heartbeat
from autovibe_agent.hub import Hub, HubRefused
from autovibe_agent.paths import Paths, User
from autovibe_agent.process import CliProcess, WorkState, end_leftover, start_time
from autovibe_agent.progress import Progress
from autovibe_agent.workspace import Manifest, write_files

FLUSH_SECONDS = 10.0
SUMMARY_CHARS = 4000

log = logging.getLogger(__name__)


class IdentityIsOver(Exception):
    """The hub no longer knows this machine under this identity."""


class Life:
    """Runs once. `run` returns when the result is with the hub; raises IdentityIsOver when nobody wants it."""

    def __init__(self, identity: Identity, paths: Paths, user: User, agent_sha256: str):
        self.identity, self.paths, self.user, self.agent_sha256 = identity, paths, user, agent_sha256
        self.hub = Hub(identity.hub_url, paths.ca, set_clock=paths.is_machine)
        self.state = WorkState(paths.state, identity.machine, identity.generation)
        self.manifest = Manifest(paths.workspace)
        self.process: CliProcess | None = None
        self._stop = threading.Event()
        self._stop_reason: str | None = None
        self._identity_is_over = False

    def run(self) -> None:
        kept = self.state.read()
        if kept is not None and kept["phase"] == "finished":
            return
        try:
            enrolment = enrol(self.hub, self.identity, self.paths, self.user, self.agent_sha256)
            if kept is not None:
                end_leftover(kept)
                outcome = Outcome(FAILED, "the agent died while it worked; what it was doing is not repeated")
            else:
                answer = self.hub.persist("GET", "/agent/v1/assignment")
                outcome = self._work(answer, enrolment.heartbeat_seconds)
            self._report(outcome)
        except HubRefused as error:
            if error.identity_is_over:
                raise IdentityIsOver(str(error)) from error
            raise
        self.state.write("finished")

    def stop(self, reason: str) -> None:
        """Ends the CLI; the first reason counts, and none for a CLI that has ended by itself. From any thread."""
        has_ended = self.process is not None and self.process.ended.is_set()
        if self._stop_reason is None and not has_ended:
            self._stop_reason = reason
        self._stop.set()

    def _work(self, answer: dict, heartbeat_seconds: float) -> Outcome:
        """From the assignment to how it ended. Whatever cannot be begun is a failed outcome, not a crash."""
        self.state.write("started")
        try:
            assignment = Assignment.of(answer)
            agent = find_type(assignment.agent_type)(assignment, self.paths, self.user)
            self.paths.workspace.mkdir(exist_ok=True)
            write_files(self.paths.workspace, assignment.files, self.user)
            make_home(self.user)
            agent.prepare()
            self.process = CliProcess(agent.argv(), agent.environment(), self.paths.workspace, self.user)
        except (LookupError, ValueError, TypeError, OSError) as error:
            return Outcome(FAILED, f"could not begin: {error}")
        self.state.write("started", pid=self.process.pid, pid_start=start_time(self.process.pid))
        return self._attend(agent, heartbeat_seconds)

    def _attend(self, agent: CodingAgent, heartbeat_seconds: float) -> Outcome:
        """Stays with the running CLI until it ends, is told to stop, or its time is up."""
        assignment = agent.assignment
        progress = Progress(self.hub)
        checkpoints = Checkpoints(
            self.hub, self.manifest, assignment.checkpoint_seconds, assignment.checkpoint_calls, agent.context
        )
        heartbeat = Heartbeat(
            self.hub,
            heartbeat_seconds,
            lambda: progress.latest,
            lambda answer: self._heard(answer, checkpoints),
            self._refused,
        )

        def tell(messages: list[Message]) -> None:
            for message in messages:
                progress.add(message)

        progress.start()
        self.process.start(
            agent.stdin(), lambda line: tell(agent.read_output(line)), lambda line: tell(agent.read_error(line))
        )
        heartbeat.start()
        threading.Thread(target=self._stop_when_ended, daemon=True).start()
        if not self._stop.wait(assignment.wall_seconds):
            self.stop("wall_limit")
        if not self.process.ended.is_set():
            self.process.stop()
        heartbeat.stop()
        progress.close(FLUSH_SECONDS)
        if self._identity_is_over:
            raise IdentityIsOver("the hub gave this machine another identity")
        return self._outcome(agent)

    def _stop_when_ended(self) -> None:
        self.process.ended.wait()
        self._stop.set()

    def _heard(self, answer: dict, checkpoints: Checkpoints) -> None:
        if answer.get("token"):
            keep_token(self.hub, self.paths, self.user, str(answer["token"]))
        if answer.get("directive") == "stop":
            self.stop(str(answer.get("reason") or "terminate"))
        elif not self._stop.is_set():
            checkpoints.consider(int(answer.get("api_calls") or 0))

    def _refused(self, error: HubRefused) -> None:
        log.warning("heartbeat refused: %s", error)
        if error.identity_is_over:
            self._identity_is_over = True
            self.stop("superseded")

    def _outcome(self, agent: CodingAgent) -> Outcome:
        """What a stop means, else what the CLI's own ending means."""
        code = self.process.exit_code
        if self._stop_reason is None:
            return agent.outcome(code if code is not None else -9)
        own = agent.outcome(code if code is not None else -9)
        if self._stop_reason == "budget":
            return Outcome(OUT_OF_BUDGET, "stopped: the budget is used up", code, own.details)
        if self._stop_reason == "wall_limit":
            limit = f"{agent.assignment.wall_seconds:g}"
            return Outcome(FAILED, f"stopped at its limit of {limit} seconds", code, own.details)
        return Outcome(STOPPED, f"stopped: {self._stop_reason}", code, own.details)

    def _report(self, outcome: Outcome) -> None:
        """The result with the workspace's manifest; said until the hub has heard it."""
        began = time.monotonic()
        body = {
            "outcome": outcome.outcome,
            "summary": outcome.summary.replace("\0", "\ufffd")[:SUMMARY_CHARS],
            "exit_code": outcome.exit_code,
            "manifest": self.manifest.take() if self.paths.workspace.is_dir() else {"files": [], "truncated": False},
            "details": outcome.details,
        }
        self.hub.persist("POST", "/agent/v1/result", body)
        log.info("result %s reported after %.1f s", outcome.outcome, time.monotonic() - began)
