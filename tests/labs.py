"""A lab of its own for a module's tests, with null guests, and ansible-playbook on it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import requests
from autovibe.tests.ports import free_port

ROOT = Path(__file__).parents[1]
LAB = [sys.executable, "-c", "from autovibe_lab.cli import lab; lab()"]
#: For one command, in seconds: a play may have a guest boot without KVM, on a machine that is busy.
PATIENCE = 480


@dataclass
class Run:
    rc: int
    results: list[dict[str, Any]]
    output: str
    #: The results by the tasks' names, and when each task began and ended (seconds since the epoch).
    named: dict[str, dict[str, Any]] = field(default_factory=dict)
    spans: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        return any(result.get("changed") for result in self.results)

    @property
    def message(self) -> str:
        return next(result["msg"] for result in reversed(self.results) if result.get("failed"))

    def fact(self, key: str) -> dict[str, Any]:
        return next(result[key] for result in reversed(self.results) if key in result)


class Lab:
    """One lab of its own, and ansible-playbook on it."""

    def __init__(self, state: Path):
        self.state = state
        self.folder = state / "lab"
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"

    def command(self, verb: str, *options: str) -> None:
        argv = [*LAB, verb, "--state", str(self.folder), *options]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def aid(self, verb: str, where: str, /, **body: Any) -> Any:
        token = (self.folder / "lab-token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        ca = str(self.folder / "ca.pem")
        return requests.request(
            verb, f"{self.url}/lab/{where}", json=body or None, headers=headers, verify=ca, timeout=60
        ).json()

    def writes(self) -> list[str]:
        """What was written so far, but for the guest agent's calls."""
        calls = self.aid("GET", "calls")
        return [f"{c['method']} {c['path']}" for c in calls if c["method"] != "GET" and "/agent/" not in c["path"]]

    def tasks(self, vmid: int, kind: str) -> int:
        return sum(1 for task in self.aid("GET", "tasks") if task["id"] == str(vmid) and task["type"] == kind)

    def connection(self) -> dict[str, Any]:
        """The collection's options that lead here, for module_defaults."""
        user, _, token = (self.folder / "token-id").read_text().strip().partition("!")
        return {
            "api_host": "127.0.0.1",
            "api_port": self.port,
            "api_user": user,
            "api_token_id": token,
            "api_token_secret_file": str(self.folder / "token-secret"),
            "ca_path": str(self.folder / "ca.pem"),
            "node": "pve1",
        }

    def argv(self, playbook: str, extra: dict[str, Any], options: tuple[str, ...]) -> list[str]:
        tool = str(Path(sys.executable).with_name("ansible-playbook"))
        path = playbook if playbook.endswith(".json") else f"playbooks/{playbook}.yml"
        return [tool, path, "-e", json.dumps(extra), *options]

    def tasks_run(self, *tasks: dict[str, Any], options: tuple[str, ...] = ("--diff",), **play: Any) -> Run:
        """One ansible-playbook run of a play with these tasks, on localhost and with this lab's connection."""
        book = {
            "hosts": "localhost",
            "gather_facts": False,
            "module_defaults": {"group/autovibe.proxmox.all": self.connection()},
            "tasks": list(tasks),
            **play,
        }
        with tempfile.NamedTemporaryFile("w", suffix=".json", dir=self.state) as file:
            json.dump([book], file)
            file.flush()
            return self.play(file.name, *options)

    def environment(self, callback: str = "ansible.posix.json") -> dict[str, str]:
        quiet = {"ANSIBLE_STDOUT_CALLBACK": callback, "ANSIBLE_LOCALHOST_WARNING": "false", "ANSIBLE_NOCOLOR": "1"}
        return {**os.environ, "AUTOVIBE_STATE_DIR": str(self.state), **quiet}

    def play(self, playbook: str, *options: str, **extra: Any) -> Run:
        argv = self.argv(playbook, extra, options)
        done = subprocess.run(
            argv, cwd=ROOT, env=self.environment(), capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        output = done.stdout + done.stderr
        document = json.loads(done.stdout[done.stdout.index("{\n") :])
        tasks = [task for play in document["plays"] for task in play["tasks"]]
        named = {task["task"]["name"]: next(iter(task["hosts"].values()), {}) for task in tasks}
        spans = {task["task"]["name"]: _span(task["task"]["duration"]) for task in tasks}
        results = [result for task in tasks for result in task["hosts"].values()]
        return Run(done.returncode, results, output, named, spans)

    def ok(self, playbook: str, *options: str, **extra: Any) -> Run:
        run = self.play(playbook, *options, **extra)
        assert run.rc == 0, run.output
        return run

    def text(self, playbook: str, *options: str, **extra: Any) -> str:
        """All that a person sees of a run."""
        argv, env = self.argv(playbook, extra, options), self.environment("ansible.builtin.default")
        done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)
        return done.stdout + done.stderr

    def kill_held(self, playbook: str, method: str, path: str, **extra: Any) -> None:
        """Runs a playbook until the lab has executed a call and holds its answer; then kills all of its processes."""
        hold = self.aid("POST", "holds", method=method, path=path, count=1)["id"]
        run = subprocess.Popen(
            self.argv(playbook, extra, ()),
            cwd=ROOT,
            env=self.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            until(lambda: self.aid("GET", f"holds/{hold}")["state"] == "holding" or run.poll() is not None)
            assert run.poll() is None, f"{playbook} ended without a {method} {path}"
        finally:
            processes = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):  # Ansible's workers come and go
                    process.kill()
            run.wait()
            psutil.wait_procs(processes)
            self.aid("DELETE", f"holds/{hold}")


def _span(duration: dict[str, str]) -> tuple[float, float]:
    began, ended = (datetime.fromisoformat(duration[end]).timestamp() for end in ("start", "end"))
    return began, ended


@contextlib.contextmanager
def running_lab(state: Path, *options: str, site: str = "full") -> Iterator[Lab]:
    """A lab without an image, and on it the template `null`, whose machines are null guests.

    Its token may do everything, unless `site` is `least`: then what is made needs a pool.
    """
    lab = Lab(state)
    lab.command("up", "--no-image", "--port", str(lab.port), "--site", site, *options)
    try:
        lab.ok("templates", template_name="null", template_disk_source="null:1")
        yield lab
    finally:
        lab.command("down")


def until(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
