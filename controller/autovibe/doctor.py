"""What is missing, what cannot be reached, and what to do about it. Nothing is changed, nothing is left running.

The controller never speaks Proxmox's API: whether Proxmox answers is found out by an Ansible run with the module
`autovibe.proxmox.machine_info`, with the very settings that real runs use.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from autovibe import listening, runner
from autovibe.errors import AutovibeError
from autovibe.settings import Settings

DISK_LEAST, DISK_GOOD = 2 << 30, 10 << 30
#: What the lab's guests and their image need: program -> Debian package.
LAB_PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "socat": "socat",
}
_CONNECTION = {
    "api_host": "proxmox_api_host",
    "api_port": "proxmox_api_port",
    "api_user": "proxmox_api_user",
    "api_token_id": "proxmox_api_token_id",
    "api_token_secret_file": "proxmox_api_token_secret_file",
    "ca_path": "proxmox_ca_path",
    "validate_certs": "proxmox_validate_certs",
    "node": "proxmox_node",
}


@dataclass
class Finding:
    """One thing that was looked at. `state`: ok, warning (works without it), missing."""

    name: str
    state: str
    message: str
    hint: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything, one finding after the other; an error of a check is its finding."""
    checks: list[tuple[str, Callable[[Settings], Finding]]] = [
        ("state folder", _state_folder),
        ("ansible", _ansible),
        ("inventory", _inventory),
        ("database", _database),
        ("hub", _hub),
        ("scheduler", _scheduler),
        ("hub's VM", _own_vm),
        ("machines' files", _files),
        ("provider", _provider),
    ]
    if _is_lab(settings):
        checks.insert(3, ("lab programs", _lab_programs))
    for name, check in checks:
        try:
            yield check(settings)
        except AutovibeError as error:
            yield Finding(name, "missing", error.message, error.hint)
        except OSError as error:
            yield Finding(name, "missing", f"{error.filename or ''} {error.strerror or error}".strip())
    yield _proxmox(settings)


def _state_folder(settings: Settings) -> Finding:
    folder = settings.state_dir
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding("state folder", "missing", f"{existing} is not writable", "Set AUTOVIBE_STATE_DIR.")
    free = shutil.disk_usage(existing).free
    said = f"{folder}, {free / (1 << 30):.1f} GiB free"
    if free < DISK_LEAST:
        return Finding("state folder", "missing", said, f"At least {DISK_LEAST >> 30} GiB have to be free.")
    if free < DISK_GOOD:
        return Finding("state folder", "warning", said, f"With guests, {DISK_GOOD >> 30} GiB are better.")
    return Finding("state folder", "ok", said)


def _ansible(settings: Settings) -> Finding:
    program = Path(sys.executable).parent / "ansible-playbook"
    if not program.exists():
        return Finding("ansible", "missing", f"There is no {program}", "Install this project with pip, in a venv.")
    collection = settings.project_root / "collections/ansible_collections/autovibe/proxmox"
    if not (collection / "plugins").is_dir() or not (settings.project_root / "playbooks").is_dir():
        return Finding(
            "ansible",
            "missing",
            f"{settings.project_root} has no collection or playbooks",
            "Set AUTOVIBE_PROJECT_ROOT.",
        )
    from importlib.metadata import version

    return Finding("ansible", "ok", f"ansible-core {version('ansible-core')}")


def _inventory(settings: Settings) -> Finding:
    if not settings.inventory.exists():
        return Finding("inventory", "missing", f"There is no {settings.inventory}", "Set AUTOVIBE_INVENTORY.")
    return Finding("inventory", "ok", str(settings.inventory))


def _is_lab(settings: Settings) -> bool:
    return settings.inventory.name == "lab"


def _lab_programs(settings: Settings) -> Finding:
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    missing = [package for program, package in LAB_PROGRAMS.items() if not shutil.which(program, path=search)]
    if missing:
        hint = f"apt install {' '.join(missing)}; without them the lab has null guests only."
        return Finding("lab programs", "warning", f"{', '.join(missing)} not installed", hint)
    return Finding("lab programs", "ok", "QEMU and what builds the guest image")


def _database(settings: Settings) -> Finding:
    from autovibe import db, postgres

    if settings.database_url is None:
        programs = postgres.find_programs(settings)
        if not postgres.is_running(settings):
            return Finding("database", "ok", f"embedded, not running ({programs}); `autovibe up` starts it")
    where = "embedded" if settings.database_url is None else "AUTOVIBE_DATABASE_URL"
    with db.engine(settings).connect() as connection:
        version = connection.exec_driver_sql("SHOW server_version").scalar()
    return Finding("database", "ok", f"{where}, PostgreSQL {version}, schema {db.SCHEMA_REVISION}")


def _files(settings: Settings) -> Finding:
    """What machines have left with the hub: it grows until their checkpoints are removed."""
    from autovibe import db, file_retention, postgres

    if settings.database_url is None and not postgres.is_running(settings):
        return Finding("machines' files", "ok", "the database is not running")
    with db.session_scope(settings) as session:
        kept = file_retention.kept(session)
    said = f"{kept.size_bytes / (1 << 20):.1f} MiB of {kept.machines} machines, kept as long as their checkpoints"
    return Finding("machines' files", "ok", said)


def _hub(settings: Settings) -> Finding:
    from autovibe import supervise

    held = supervise.status(settings)
    if held:
        return Finding("hub", "ok", f"up, port {held.get('port')}, pid {held.get('pid')}")
    listening.check(settings)
    return Finding("hub", "warning", f"not up; port {settings.hub_port} is free", "Start it with `autovibe up`.")


def _scheduler(settings: Settings) -> Finding:
    from autovibe import db, jobs, postgres, supervise

    if not supervise.status(settings):
        return Finding("scheduler", "ok", "not up")
    if settings.database_url is None and not postgres.is_running(settings):
        return Finding("scheduler", "warning", "the database is not running")
    with db.session_scope(settings) as session:
        found = jobs.views(session)
    wrong = [job for job in found if job["overdue"] or job["error"]]
    if not wrong:
        return Finding("scheduler", "ok", f"{len(found)} jobs, none overdue")
    named = "; ".join(f"{job['name']}: {job['error'] or 'overdue'}" for job in wrong)
    return Finding("scheduler", "warning", named, f"See {settings.log_dir / 'scheduler.log'}.")


def _own_vm(settings: Settings) -> Finding:
    """Whether the hub's own VM is adopted, and how old its last checkpoint is."""
    from autovibe import db, hubs, postgres

    if settings.database_url is None and not postgres.is_running(settings):
        return Finding("hub's VM", "ok", "the database is not running")
    with db.session_scope(settings) as session:
        found = hubs.view(session)
    if found is None:
        return Finding("hub's VM", "ok", "not adopted: no checkpoints of the hub itself are made (docs/hub.md)")
    if found["late"]:
        hint = "`autovibe hub checkpoint` makes one now and says what is wrong."
        return Finding("hub's VM", "warning", f"{hubs.said(found)}; one a day is to be made", hint)
    return Finding("hub's VM", "ok", hubs.said(found))


def _provider(settings: Settings) -> Finding:
    if settings.anthropic_api_key is not None:
        return Finding("provider", "ok", f"an API key is set, for {settings.upstream_url}")
    return Finding(
        "provider", "warning", "no ANTHROPIC_API_KEY: machines talk to the demo model", "Set it for real work."
    )


def _proxmox(settings: Settings) -> Finding:
    """One small Ansible run."""
    said: list[tuple[str, dict[str, Any]]] = []

    def note(event: dict[str, Any]) -> None:
        if event.get("event") in ("runner_on_ok", "runner_on_failed", "runner_on_unreachable"):
            said.append((event["event"], event["event_data"].get("res") or {}))

    try:
        with _probe(settings) as run:
            outcome = run.execute(note)
    except AutovibeError as error:
        return Finding("proxmox", "missing", error.message, error.hint)
    except OSError as error:
        return Finding("proxmox", "missing", f"Ansible cannot be run: {error}")
    kind, result = said[-1] if said else ("", {})
    if kind == "runner_on_ok" and outcome.rc == 0:
        amount = len(result.get("machines") or [])
        return Finding("proxmox", "ok", f"answers; the token sees {amount} VMs")
    lines = outcome.tail.splitlines()
    reason = str(result.get("msg") or next((line for line in lines if "ERROR" in line), "Ansible failed"))
    hint = "Start it with `autovibe lab up`." if _is_lab(settings) else "Check the inventory's proxmox_api_… variables."
    return Finding("proxmox", "missing", " ".join(reason.split()), hint)


def examine_site(settings: Settings) -> Iterator[Finding]:
    """The site from outside, with its own token: each task of playbooks/doctor.yml is a finding."""
    found: list[Finding] = []

    def note(event: dict[str, Any]) -> None:
        if event.get("event") in ("runner_on_ok", "runner_on_failed", "runner_on_unreachable"):
            data = event["event_data"]
            good = event["event"] == "runner_on_ok"
            said = " ".join(str((data.get("res") or {}).get("msg", "answers")).split())
            # Of Ansible's sentence around a lookup's error, the error.
            said, _, hint = re.sub(r"^Task failed: .* lookup plugin '[^']+' failed: ", "", said).partition(" → ")
            found.append(Finding(str(data["task"]).lower(), "ok" if good else "missing", said, hint or None))

    run_uuid = uuid4()
    try:
        run = runner.Run(settings, run_uuid, "doctor")
        run.prepare()
        run.write_inventory([])
        outcome = run.execute(note)
        if not found:
            found.append(Finding("site", "missing", outcome.tail.strip() or "Ansible said nothing"))
    finally:
        shutil.rmtree(runner.folder_of(settings, run_uuid), ignore_errors=True)
    yield from found


@contextlib.contextmanager
def _probe(settings: Settings) -> Iterator[runner.Run]:
    """A run that asks Proxmox for its VMs; its folder is removed afterwards."""
    options = {name: f"{{{{ {variable} | default(omit) }}}}" for name, variable in _CONNECTION.items()}
    play = {
        "name": "Ask Proxmox",
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "tasks": [{"name": "List the VMs", "autovibe.proxmox.machine_info": options}],
    }
    run_uuid = uuid4()
    folder = runner.folder_of(settings, run_uuid)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "probe.yml"
    try:
        path.write_text(json.dumps([play]))
        run = runner.Run(settings, run_uuid, path)
        run.prepare()
        run.write_inventory([])
        yield run
    finally:
        shutil.rmtree(folder, ignore_errors=True)
