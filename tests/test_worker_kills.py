"""The worker is killed while Proxmox has executed a call and not answered it yet: everything still happens once."""

from __future__ import annotations

import contextlib
import json
import ssl
import time
import urllib.request
from collections import Counter
from typing import Any
from uuid import uuid4

import psutil
import pytest


class Aids:
    """The lab's test aids: answers held back, and what it has done."""

    def __init__(self, site: Any) -> None:
        self.folder = site.state / "lab"
        self.port = site.lab_port
        self.context = ssl.create_default_context(cafile=self.folder / "ca.pem")

    def ask(self, method: str, what: str, /, **body: Any) -> Any:
        request = urllib.request.Request(
            f"https://127.0.0.1:{self.port}/lab/{what}",
            method=method,
            data=json.dumps(body).encode() if body else None,
            headers={
                "Authorization": f"Bearer {(self.folder / 'lab-token').read_text().strip()}",
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, context=self.context, timeout=60) as answer:
            return json.load(answer)

    def tasks(self, vm_id: int) -> Counter:
        return Counter(task["type"] for task in self.ask("GET", "tasks") if str(task["id"]) == str(vm_id))

    def vms(self, machine_uuid: str) -> list[int]:
        """The VMs whose description names this machine."""
        found = []
        for path in (self.folder / "qemu-server").glob("*.conf"):
            with contextlib.suppress(FileNotFoundError):  # removed while we look
                found += [int(path.stem)] if machine_uuid in path.read_text().split("\n[", 1)[0] else []
        return found

    def snapshots(self, vm_id: int) -> list[str]:
        text = (self.folder / "qemu-server" / f"{vm_id}.conf").read_text()
        return [line[1:-1] for line in text.splitlines() if line.startswith("[av-")]


def wait_for(condition: Any, what: str, seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s for {what}")


def worker_of(site: Any) -> psutil.Process:
    """The worker process under this site's supervisor."""
    return next(child for child in site.supervisor().children() if "autovibe.worker" in " ".join(child.cmdline()))


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def kill_worker_while_held(site: Any, aids: Aids, held: str, ask: Any) -> Any:
    hold = aids.ask("POST", "holds", method="*", path=held)["id"]
    asked = ask()
    wait_for(lambda: aids.ask("GET", f"holds/{hold}")["state"] == "holding", f"a call of {held}")
    victim = worker_of(site)
    victim.kill()
    wait_for(lambda: is_gone(victim), "the worker's end")
    return asked


def operation(site: Any, machine: str, kind: str) -> dict[str, Any]:
    """The machine's last operation of this kind, when it has ended."""

    def ended() -> Any:
        found = [one for one in site.json("machine", "show", machine)["operations"] if one["kind"] == kind]
        return found[-1] if found and found[-1]["status"] in ("succeeded", "failed") else None

    return wait_for(ended, f"the end of the {kind}", 180)


@pytest.fixture(scope="module")
def site(null_site: Any) -> Any:
    null_site.autovibe("template", "build", "--null")
    null_site.autovibe("project", "create", "kills", "--budget", "5")
    return null_site


@pytest.fixture(scope="module")
def aids(site: Any) -> Aids:
    return Aids(site)


def spawn(site: Any) -> dict[str, Any]:
    arguments = ("kills", "--command", "true", "--template", "autovibe-null", "--no-wait", "--key", str(uuid4()))
    return site.json("machine", "spawn", *arguments)


@pytest.fixture
def machine(site: Any) -> dict[str, Any]:
    made = spawn(site)
    assert operation(site, made["uuid"], "spawn")["status"] == "succeeded"
    return made


@pytest.mark.parametrize("held", [r"/nodes/pve1/qemu/\d+/clone", r"/nodes/pve1/qemu/\d+/status/start"])
def test_a_spawn_goes_on_after_the_worker_was_killed(site: Any, aids: Aids, held: str) -> None:
    made = kill_worker_while_held(site, aids, held, lambda: spawn(site))
    done = operation(site, made["uuid"], "spawn")
    assert (done["status"], done["attempts"]) == ("succeeded", 2), done
    assert aids.vms(made["uuid"]) == [made["vm_id"]]
    assert aids.tasks(made["vm_id"])["qmstart"] == 1
    template = site.json("template", "list")[0]["vm_id"]
    assert aids.tasks(template)["qmclone"] == len(site.json("machine", "list", "--all")), "a clone was made twice"


def test_a_checkpoint_goes_on_after_the_worker_was_killed(site: Any, aids: Aids, machine: dict[str, Any]) -> None:
    held = rf"/nodes/pve1/qemu/{machine['vm_id']}/snapshot"
    made = kill_worker_while_held(
        site, aids, held, lambda: site.json("machine", "checkpoint", machine["uuid"], "--no-wait")
    )
    done = operation(site, machine["uuid"], "checkpoint")
    assert (done["status"], done["attempts"]) == ("succeeded", 2), done
    assert aids.snapshots(machine["vm_id"]) == [f"av-{made['uuid'].replace('-', '')}"]
    assert aids.tasks(machine["vm_id"])["qmsnapshot"] == 1
    assert site.json("checkpoint", "show", made["uuid"])["status"] == "verified"


@pytest.mark.parametrize("held", ["/status/(shutdown|stop)", "/snapshot"])
def test_an_end_goes_on_after_the_worker_was_killed(site: Any, aids: Aids, machine: dict[str, Any], held: str) -> None:
    site.autovibe("machine", "checkpoint", machine["uuid"])
    path = rf"/nodes/pve1/qemu/{machine['vm_id']}{held}"
    kill_worker_while_held(
        site, aids, path, lambda: site.autovibe("machine", "terminate", machine["uuid"], "--no-wait")
    )
    done = operation(site, machine["uuid"], "terminate")
    assert (done["status"], done["attempts"]) == ("succeeded", 2), done
    tasks = aids.tasks(machine["vm_id"])
    assert tasks["qmshutdown"] + tasks["qmstop"] == 1, tasks
    assert tasks["qmsnapshot"] == 2
    ended = site.json("machine", "show", machine["uuid"])
    assert (ended["status"], ended["outcome"], ended["checkpoint_count"]) == ("terminated", "stopped", 2)
    assert operation(site, machine["uuid"], "promote")["status"] == "succeeded"


def test_nothing_of_a_killed_run_is_left(site: Any) -> None:
    """After all that, no process of Ansible runs, and no secret stands in a run's folder."""

    def leftover() -> list[str]:
        marked = []
        for process in psutil.process_iter(["pid", "name"]):
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
                if "AUTOVIBE_RUN" in environment and environment.get("AUTOVIBE_STATE_DIR") == str(site.state):
                    marked.append(process.info["name"])
        return marked

    # One condition: the scheduler reads the fleet every minute, in a run that has a folder before it has processes.
    wait_for(lambda: not leftover() and not list(site.state.glob("runs/*/secrets")), "the end of all runs")
