"""A whole site for tests that span rooms: a lab and, on it, a hub, each in a state folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from autovibe.tests.ports import free_port
from autovibe_lab.paths import LabPaths

ROOT = Path(__file__).resolve().parents[1]
BINARIES = Path(sys.executable).parent
CONSOLE_LINES = 50
#: The sites that are up now, in this process.
RUNNING: list[Site] = []


class Site:
    """One state folder, its ports, and the `autovibe` command on it."""

    def __init__(self, state: Path, environment: dict[str, str] | None = None) -> None:
        self.state = state
        self.hub_port = free_port()
        self.lab_port = free_port()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AUTOVIBE_", "ANTHROPIC"))}
        self.environment = {
            **kept,
            "AUTOVIBE_STATE_DIR": str(state),
            "AUTOVIBE_HUB_PORT": str(self.hub_port),
            "PATH": f"{BINARIES}{os.pathsep}{os.environ['PATH']}",
            **(environment or {}),
        }

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """`autovibe …`, whatever comes of it."""
        environment = {**self.environment, **options.pop("env", {})}
        return subprocess.run(
            [str(BINARIES / "autovibe"), *arguments],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            **options,
        )

    def autovibe(self, *arguments: str, **options: Any) -> str:
        """What `autovibe …` prints; it has to succeed."""
        done = self.run(*arguments, **options)
        assert done.returncode == 0, f"autovibe {' '.join(arguments)}: {done.stdout}\n{done.stderr}\n{self.logs()}"
        return done.stdout

    def json(self, *arguments: str, **options: Any) -> Any:
        """What `autovibe … --json` says."""
        return json.loads(self.autovibe(*arguments, "--json", **options))

    def lab_up(self, *arguments: str) -> None:
        self.autovibe("lab", "up", "--port", str(self.lab_port), "--hub-port", str(self.hub_port), *arguments)

    def supervisor(self) -> psutil.Process:
        """The process under which the hub's own run."""
        return psutil.Process(json.loads((self.state / "run" / "up.lock").read_text())["pid"])

    def service(self, module: str) -> psutil.Process | None:
        """The hub's process of this module; None while it is just being started anew."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return next((one for one in self.supervisor().children() if one.cmdline()[1:3] == ["-m", module]), None)
        return None

    @contextlib.contextmanager
    def nothing_booked(self) -> Iterator[None]:
        """The scheduler stands still, so that two questions about money are answered from one state of the books."""
        scheduler = self.service("autovibe.scheduler")
        assert scheduler is not None
        scheduler.suspend()
        try:
            yield
        finally:
            scheduler.resume()

    def logs(self) -> str:
        """The tails of the hub's, the lab's and the guests' logs, for a failure's message."""
        found = sorted([*self.state.glob("log/*.log"), *self.state.glob("lab/*.log")])
        tails = [f"--- {path}\n{path.read_text(errors='replace')[-2000:]}" for path in found]
        return "\n".join([*tails, *(f"--- {title}\n{text}" for title, text in self.guests())])

    def guests(self) -> list[tuple[str, str]]:
        """(title, text) of each real guest that has run: its process, its console's last lines, what QEMU said."""
        consoles = sorted(LabPaths((self.state / "lab").absolute()).run.glob("*.console"))
        load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
        machine = f"load {load}; {psutil.virtual_memory().available >> 20} MiB of memory left"
        found = []
        for console in consoles:
            said = console.read_text(errors="replace").splitlines()[-CONSOLE_LINES:]
            with contextlib.suppress(FileNotFoundError):
                said += ["QEMU's own log:", *console.with_suffix(".log").read_text(errors="replace").splitlines()[-20:]]
            title = f"guest {console.stem}: {_process(console.with_suffix('.pid'))}; {machine}"
            found.append((title, "\n".join(said)))
        return found

    def down(self) -> None:
        for arguments in (("down",), ("lab", "down")):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.run(*arguments, timeout=120)
        subprocess.run(
            [
                sys.executable,
                "-c",
                "from autovibe import postgres, settings; postgres.remove(settings.load_settings())",
            ],
            env=self.environment,
            check=False,
            capture_output=True,
        )


def _process(pid_file: Path) -> str:
    """What a guest's QEMU does."""
    try:
        process = psutil.Process(int(pid_file.read_text()))
        used, age = process.cpu_times(), time.time() - process.create_time()
        return f"{process.status()}, {used.user + used.system:.0f} s of processor in {age:.0f} s"
    except (OSError, ValueError, psutil.Error):
        return "does not run"


@contextlib.contextmanager
def running_site(*lab_arguments: str, environment: dict[str, str] | None = None, hub: bool = True) -> Iterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="autovibe-site-"))
    folder.chmod(0o711)  # the embedded database's user has to get to its own folder in it
    if "--no-image" in lab_arguments:
        # Null guests have no agent that could enrol.
        environment = {"AUTOVIBE_MACHINE_REVIVE_SECONDS": "3600", **(environment or {})}
    site = Site(folder / "state", environment)
    site.state.mkdir(mode=0o711)
    RUNNING.append(site)
    try:
        site.lab_up(*lab_arguments)
        if hub:
            site.autovibe("up", "--detach")
        yield site
    finally:
        RUNNING.remove(site)
        site.down()
        shutil.rmtree(folder, ignore_errors=True)
