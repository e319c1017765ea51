"""Start, stop and look at a lab: its daemon, what a crash has left, and its state folder.

`down` leaves no process, socket or disk behind, also when the daemon has crashed: QEMU processes are known by the lab's
own run folder on their command line, never by name alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from autovibe_lab.daemon import DEFAULT_HUB_PORT, DEFAULT_PORT, HOST
from autovibe_lab.paths import LabPaths

#: Seconds that a daemon has to answer, and to go.
START_TIMEOUT, STOP_TIMEOUT = 30, 10
#: Bytes that must be free for null guests, and for real ones.
NEEDED, NEEDED_FOR_GUESTS = 64 << 20, 1 << 30
PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils", "socat": "socat"}
MARK = "lab.json"

Progress = Callable[[str], None]


class LabError(Exception):
    """The lab can't do it; one sentence that says what to do. `exit_code` 2: what was asked for is wrong."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def default_state() -> Path:
    """`<state folder>/lab`: by $AUTOVIBE_STATE_DIR, in a checkout `.autovibe`, else under $XDG_STATE_HOME."""
    if named := os.environ.get("AUTOVIBE_STATE_DIR"):
        return Path(named).expanduser().absolute() / "lab"
    checkout = Path(os.environ.get("AUTOVIBE_PROJECT_ROOT") or Path(__file__).resolve().parents[2])
    for root in (checkout, Path.cwd()):
        if (root / "ansible.cfg").exists():
            return root.absolute() / ".autovibe" / "lab"
    state_home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state_home) / "autovibe" / "lab"


def up(
    state: Path | None = None,
    *,
    port: int | None = None,
    hub_port: int | None = None,
    kvm: str = "auto",
    image: bool = True,
    login_delay: float = 3,
    lock_timeout: float = 10,
    latency: str = "off",
    time_scale: float = 1,
    nodes: int = 1,
    site: str = "least",
    pve_version: int = 8,
    progress: Progress = lambda text: None,
) -> dict:
    """Start the lab and return its endpoint as soon as it answers; one that runs already is left as it is.

    `port` None means the default, 0 any free one. `image` builds and installs the guest image. `latency` is a profile
    of module `latency`, `time_scale` multiplies every delay. Raises LabError.
    """
    state = (state or default_state()).absolute()
    _check_state(state)
    with _alone(state):
        found = running(state)
        if found:
            _check_same(found, port, hub_port)
        else:
            _check_room(state, image)
            _check_port(port)
        accel = _install_image(state, nodes, kvm, progress) if image else "tcg"
        if found:
            return found
        settings = ["--port", DEFAULT_PORT if port is None else port]
        settings += ["--hub-port", DEFAULT_HUB_PORT if hub_port is None else hub_port, "--accel", accel]
        settings += ["--login-delay", login_delay, "--lock-timeout", lock_timeout]
        settings += ["--latency", latency, "--time-scale", time_scale, "--nodes", nodes]
        settings += ["--site", site, "--pve-version", pve_version]
        return _start(state, [str(setting) for setting in settings])


def down(state: Path | None = None, *, keep: bool = False) -> bool:
    """Stop the lab with its guests and remove its state, but for `keep`. False when there was none. Raises LabError."""
    state = (state or default_state()).absolute()
    paths = LabPaths(state)
    if not (state / MARK).exists():
        if state.exists() and any(state.iterdir()):
            raise LabError(f"{state} is not a lab's state folder: nothing was touched", 2)
        return False
    with _alone(state):
        for pid in _daemons(state):
            _end(pid)
        _end_guests(paths)
        shutil.rmtree(paths.run, ignore_errors=True)
        for name in ("endpoint.json", "port", "model-port"):
            (state / name).unlink(missing_ok=True)
        if not keep:
            shutil.rmtree(state)
    return True


def running(state: Path) -> dict | None:
    """The endpoint of the lab that answers there, else None."""
    try:
        endpoint = json.loads((state / "endpoint.json").read_text())
    except (OSError, ValueError):
        return None
    if endpoint["pid"] not in _daemons(state):
        return None
    try:
        call(state, endpoint, "guests")
    except (OSError, urllib.error.URLError):
        return None
    return endpoint


def status(state: Path | None = None) -> dict:
    """What stands there: `running`, the endpoint, and how many guests there are and run."""
    state = (state or default_state()).absolute()
    endpoint = running(state)
    found: dict = {"state": str(state), "running": endpoint is not None, "exists": (state / MARK).exists()}
    if endpoint:
        machines = call(state, endpoint, "guests")
        found |= endpoint | {
            "url": f"https://{endpoint['host']}:{endpoint['port']}",
            "guests": sum(not machine["template"] for machine in machines),
            "guests_running": sum(machine["status"] == "running" for machine in machines),
            "templates": sum(machine["template"] for machine in machines),
            "image": (LabPaths(state).imports / "autovibe-guest.qcow2").exists(),
        }
    return found


def call(state: Path, endpoint: dict, path: str) -> object:
    """GET one of the lab's own aids: they answer whoever may see what in its API."""
    context = ssl.create_default_context(cafile=state / "ca.pem")
    secret = (state / "lab-token").read_text()
    url = f"https://{endpoint['host']}:{endpoint['port']}/lab/{path}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {secret}"})
    with urllib.request.urlopen(request, context=context, timeout=10) as response:
        return json.load(response)


# Before the start ---------------------------------------------------------------------------------------------------


def _check_state(state: Path) -> None:
    if state.exists() and not state.is_dir():
        raise LabError(f"{state} is not a folder: choose another with --state", 2)
    if state.exists() and any(state.iterdir()) and not (state / MARK).exists():
        raise LabError(f"{state} is not empty and not a lab's state folder: choose another with --state", 2)
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        state.chmod(0o700)
        if not (state / MARK).exists():
            (state / MARK).write_text(json.dumps({"version": 1}))
    except OSError as error:
        raise LabError(f"{state} can't be written ({error.strerror}): choose another with --state") from None


def _check_same(endpoint: dict, port: int | None, hub_port: int | None) -> None:
    for name, asked in (("port", port), ("hub_port", hub_port)):
        if asked not in (None, 0, endpoint[name]):
            option = name.replace("_", "-")
            raise LabError(
                f"this lab runs already, with {option} {endpoint[name]}: stop it first with `autovibe lab down`", 2
            )


def _check_room(state: Path, image: bool) -> None:
    needed, free = NEEDED_FOR_GUESTS if image else NEEDED, shutil.disk_usage(state).free
    if free < needed:
        raise LabError(f"no disk space: {free >> 20} MiB are free at {state}, the lab needs {needed >> 20} MiB")
    missing = sorted(package for program, package in PROGRAMS.items() if image and not shutil.which(program))
    if missing:
        raise LabError(
            f"QEMU is missing: run `apt install {' '.join(missing)}`, or start with --no-image for null guests only"
        )


def _check_port(port: int | None) -> None:
    port = DEFAULT_PORT if port is None else port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            reason = "is taken by another program" if error.errno == 98 else f"can't be used ({error.strerror})"
            raise LabError(f"port {port} on {HOST} {reason}: choose another with --port", 2) from None


def _install_image(state: Path, nodes: int, kvm: str, progress: Progress) -> str:
    """Build the guest image and install it on every node; returns the accelerator for guests."""
    from autovibe_lab import accel, image

    paths = LabPaths(state)
    paths.make()
    try:
        folder = image.build(progress)
        for one in (paths, *(paths.of_node(f"pve{number}") for number in range(2, nodes + 1))):
            one.make()
            image.install(folder, one)
    except image.ImageError as error:
        raise LabError(str(error)) from None
    found = "tcg" if kvm == "off" else accel.probe(folder)
    if kvm == "on" and found != "kvm":
        raise LabError("KVM does not boot guests here: start without --kvm on")
    return found


# Processes ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _alone(state: Path) -> Iterator[None]:
    """One `up` or `down` at a time."""
    with open(state / "control.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _start(state: Path, settings: list[str]) -> dict:
    for name in ("endpoint.json", "port", "model-port"):
        (state / name).unlink(missing_ok=True)
    log = state / "daemon.log"
    with log.open("ab") as output:
        begin = output.tell()
        argv = [sys.executable, "-m", "autovibe_lab.daemon", "--state", str(state), *settings]
        # A session of its own: it outlives the terminal that started it.
        daemon = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/"
        )
    end, delay = time.monotonic() + START_TIMEOUT, 0.02
    while time.monotonic() < end:
        if daemon.poll() is not None:
            said = log.read_bytes()[begin:].decode(errors="replace").strip().splitlines()
            raise LabError(f"the lab's daemon has ended: {said[-1] if said else f'exit code {daemon.returncode}'}")
        if endpoint := running(state):
            return endpoint
        time.sleep(delay)
        delay = min(delay * 1.3, 0.2)
    _end(daemon.pid)
    raise LabError(f"the lab's daemon does not answer: see {log}")


def _daemons(state: Path) -> list[int]:
    """The processes that serve this state folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            argv = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"autovibe_lab.daemon" in argv and os.fsencode(state) in argv:
            found.append(int(folder.name))
    return found


def _end(pid: int) -> None:
    """SIGTERM, and SIGKILL to one that does not go."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for number, timeout in ((signal.SIGTERM, STOP_TIMEOUT), (signal.SIGKILL, STOP_TIMEOUT)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
            if _gone(descriptor, timeout):
                return
    finally:
        os.close(descriptor)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    raise LabError(f"process {pid} of the lab does not end")


def _gone(descriptor: int, timeout: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def _end_guests(paths: LabPaths) -> None:
    """Kill what runs with this lab's run folder on its command line: QEMU and the relays to the hub."""
    from autovibe_lab.qemu import orphans

    end = time.monotonic() + STOP_TIMEOUT
    while pids := orphans(paths):
        if time.monotonic() > end:
            raise LabError(f"guests of the lab do not end: processes {pids}")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
