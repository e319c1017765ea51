"""`autovibe up`: the hub's processes, started together, restarted when they crash, stopped together.

One supervisor per state folder, held by a lock on `<state>/run/up.lock` (JSON: pid, port). Its
children die with it, even when it is killed; what they leave of Ansible is ended by the next worker.
"""

import contextlib
import ctypes
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autovibe import embedded, listening, processes, sockets
from autovibe.errors import AutovibeError
from autovibe.settings import Settings

log = logging.getLogger(__name__)

_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
_BACKOFF_FIRST, _BACKOFF_MOST = 0.2, 30.0
_STABLE_SECONDS = 30.0
_STOP_SECONDS = 20.0
_PR_SET_PDEATHSIG = 1
_METRICS = "PROMETHEUS_MULTIPROC_DIR"


class AlreadyUp(AutovibeError):
    """The hub is already up."""

    code = "already_up"
    http_status = 409
    default_hint = "Stop it with `autovibe down`."


class NotReady(AutovibeError):
    """The hub did not start."""

    code = "not_ready"
    default_hint = "See log/ in the state folder."


@dataclass
class Child:
    """One process of the hub and how often it has failed in a row. `later`: only once machines are answered."""

    name: str
    module: str
    later: bool = False
    process: subprocess.Popen | None = None
    started: float = 0.0
    failures: int = 0
    due: float = 0.0


def children(settings: Settings) -> list[Child]:
    """The APIs and the worker at once; the scheduler's work can wait until the processors are free.

    The machines' API and the gateway are served by several processes on one port.
    """
    more = range(2, settings.hub_processes + 1)
    return [
        Child("api", "autovibe.api"),
        *(Child(f"api-{number}", "autovibe.api") for number in more),
        Child("people", "autovibe.api.v1"),
        Child("worker", "autovibe.worker"),
        Child("scheduler", "autovibe.scheduler", later=True),
    ]


class Supervisor:
    """Starts the children and keeps them running until it is told to stop."""

    def __init__(self, settings: Settings, members: list[Child] | None = None) -> None:
        self.settings = settings
        self.members = children(settings) if members is None else members
        self._stopping = False

    def run(self, on_ready: Callable[[], None]) -> None:
        """Until SIGTERM or SIGINT. `on_ready` is called once, when machines and people are answered."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        shutil.rmtree(self.settings.metrics_dir, ignore_errors=True)
        private_folder(self.settings.metrics_dir)
        try:
            with embedded.kept_running(self.settings):
                try:
                    self._serve(on_ready)
                finally:
                    self._stop_all()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def _serve(self, on_ready: Callable[[], None]) -> None:
        ready = False
        for child in self.members:
            if child.later:
                child.due = float("inf")
            else:
                self._start(child)
        while not self._stopping:
            self._wait(0.05 if not ready else self._pause())
            self._restart_the_dead()
            # The scheduler watches the money: it does not wait for people's API.
            if not ready and self._answers_machines():
                self._start_the_later()
                ready = sockets.answers(self.settings.api_socket)
                if ready:
                    on_ready()

    def _wait(self, seconds: float) -> None:
        received = signal.sigtimedwait(_SIGNALS, seconds)
        if received and received.si_signo != signal.SIGCHLD:
            self._stopping = True

    def _pause(self) -> float:
        dues = [child.due - time.monotonic() for child in self.members if child.process is None]
        return max(0.01, min([60.0, *dues]))

    def _restart_the_dead(self) -> None:
        now = time.monotonic()
        for child in self.members:
            if child.process is not None and child.process.poll() is not None:
                if now - child.started > _STABLE_SECONDS:
                    child.failures = 0
                pause = min(_BACKOFF_FIRST * 2**child.failures, _BACKOFF_MOST)
                log.error("%s ended (%s); starting it again in %.1f s", child.name, child.process.returncode, pause)
                child.failures += 1
                child.due = now + pause
                child.process = None
            if child.process is None and child.due <= now and not self._stopping:
                self._start(child)

    def _start_the_later(self) -> None:
        for child in self.members:
            if child.due == float("inf"):
                child.due = 0.0
        self._restart_the_dead()

    def _start(self, child: Child) -> None:
        folder = private_folder(self.settings.log_dir)
        descriptor = os.open(folder / f"{child.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            child.process = subprocess.Popen(
                [sys.executable, "-m", child.module],
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env=self._environment(child),
                preexec_fn=_follow_parent(os.getpid()),
            )
        finally:
            os.close(descriptor)
        child.started = time.monotonic()
        log.info("%s started, pid %d", child.name, child.process.pid)

    def _environment(self, child: Child) -> dict[str, str]:
        """Only the API needs the provider's key: nobody else gets it, not even in the environment."""
        environment = {**os.environ, "AUTOVIBE_STATE_DIR": str(self.settings.state_dir), "PYTHONUNBUFFERED": "1"}
        environment["AUTOVIBE_HUB_PORT"] = str(self.settings.hub_port)
        # prometheus_client's own; where it is set, figures are kept there.
        environment.pop(_METRICS, None)
        if child.module == "autovibe.api":
            environment[_METRICS] = str(self.settings.metrics_dir)
        else:
            for name in list(environment):
                if "ANTHROPIC" in name.upper():
                    del environment[name]
        return environment

    def _answers_machines(self) -> bool:
        address = listening.reachable(self.settings.hub_bind), self.settings.hub_port
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
            return True
        return False

    def _stop_all(self) -> None:
        running = [child.process for child in self.members if child.process is not None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        end_leftover_runs(self.settings)


def up(settings: Settings, on_ready: Callable[[dict], None]) -> None:
    """Start the hub in this process and stay until told to stop; leaves nothing behind.

    Raises AlreadyUp, CannotListen for the machines' address, and whatever the database says.
    """
    with held_lock(settings) as state:
        listening.check_machines(settings)
        try:
            listening.check(settings)
        except listening.CannotListen as error:
            # It may come, as after a boot; until then the machines, and what they cost, are looked after.
            log.error("People's API: %s It is tried again and again.", error)
        embedded.ensure(settings)
        try:
            Supervisor(settings).run(lambda: on_ready(state))
        finally:
            embedded.stop(settings)


def up_detached(settings: Settings, timeout: float = 60.0) -> dict:
    """Start the hub in the background; returns {"pid", "port", "bind"} as soon as it answers."""
    held = status(settings)
    if held:
        raise _already(held)
    listening.check(settings)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _become_daemon(settings, write_end)
    os.close(write_end)
    os.waitpid(pid, 0)
    with os.fdopen(read_end) as pipe:
        answer = _read_answer(pipe, timeout)
    if "error" in answer:
        raise NotReady(answer["error"], answer.get("hint"))
    return answer


def _become_daemon(settings: Settings, pipe: int) -> None:
    """The forked child: leaves the terminal, runs `up`, tells the parent through the pipe. Never returns."""
    code = 1
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        folder = private_folder(settings.log_dir)
        target = os.open(folder / "up.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, number in ((null, 0), (target, 1), (target, 2)):
            os.dup2(source, number)
        log_to_stderr()
        os.set_inheritable(pipe, False)
        up(settings, lambda state: _tell(pipe, state))
        code = 0
    except AutovibeError as error:
        log.error("%s", error)
        _tell(pipe, {"error": error.message, "hint": error.hint})
    except BaseException as error:
        log.exception("the hub ended")
        _tell(pipe, {"error": f"The hub did not start: {error}"})
    finally:
        os._exit(code)


def _tell(pipe: int, answer: dict) -> None:
    with contextlib.suppress(OSError):
        os.write(pipe, (json.dumps(answer) + "\n").encode())
        os.close(pipe)


def _read_answer(pipe: Any, timeout: float) -> dict:
    import select

    if not select.select([pipe], [], [], timeout)[0]:
        raise NotReady(f"The hub did not answer within {timeout:.0f} s")
    line = pipe.readline()
    return json.loads(line) if line else {"error": "The hub did not start"}


def down(settings: Settings, timeout: float = _STOP_SECONDS + 15) -> bool:
    """Stop the hub and the embedded database; False when nothing ran. Returns when all is gone."""
    held = status(settings)
    if held:
        _end(settings, timeout)
    end_leftover_runs(settings)
    stopped = embedded.stop(settings)
    return bool(held) or stopped


def _end(settings: Settings, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    told = None
    while held := status(settings):
        pid = held.get("pid")
        if pid and pid != told:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            told = pid
        if time.monotonic() > deadline:
            raise NotReady(f"The hub (pid {pid}) does not stop")
        time.sleep(0.05)


def status(settings: Settings) -> dict | None:
    """{"pid", "port", "bind"} of the running hub, or None."""
    path = _lock_path(settings)
    try:
        with path.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _read_state(file)
    except FileNotFoundError:
        pass
    return None


@contextlib.contextmanager
def held_lock(settings: Settings):
    """The state folder's lock, for as long as the hub is up."""
    private_folder(_lock_path(settings).parent)
    descriptor = os.open(_lock_path(settings), os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _already(_read_state(file)) from None
        state = {"pid": os.getpid(), "port": settings.hub_port, "bind": settings.hub_bind}
        file.truncate()
        file.write(json.dumps(state))
        file.flush()
        try:
            yield state
        finally:
            file.seek(0)
            file.truncate()


def end_leftover_runs(settings: Settings) -> None:
    """End what Ansible's workers have left of the runs of this state folder."""
    if not settings.runs_dir.is_dir():
        return
    known = {path.name for path in settings.runs_dir.iterdir()}
    for run_uuid in processes.marked_runs() & known:
        processes.end_run(run_uuid, grace=0)


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner can enter."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def log_to_stderr() -> None:
    """What each process of the hub writes to its log file."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)


def _follow_parent(parent: int) -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def _lock_path(settings: Settings) -> Path:
    return settings.run_dir / "up.lock"


def _read_state(file: Any) -> dict:
    text = file.read()
    return json.loads(text) if text else {}


def _already(held: dict) -> AlreadyUp:
    return AlreadyUp(f"The hub is already up (pid {held.get('pid')}, port {held.get('port')})")
