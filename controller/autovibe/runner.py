"""One ansible-runner run: one playbook, many hosts, each host one operation.

The run's private folder is `<state>/runs/<run uuid>` (0700). What is secret stands in files under its
`secrets/` (0600), which the run's end removes; the inventory holds only their paths. The environment
of the run is an allow-list, because ansible-runner writes all of it into `artifacts/*/command`.
"""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from autovibe import processes
from autovibe.errors import AutovibeError
from autovibe.settings import Settings

GROUP = "machines"
_ALLOWED = frozenset({"PATH", "HOME", "LANG", "TZ", "TMPDIR", "USER", "LOGNAME", "SHELL", "TERM", "VIRTUAL_ENV"})
_ALLOWED_PREFIXES = ("LC_", "ANSIBLE_", "AWX_", "RUNNER_")
#: 128 + SIGINT, SIGKILL, SIGTERM.
_ENDED_BY_SIGNAL = frozenset({130, 137, 143})
_SECRET_WORDS = ("PASSWORD", "SECRET", "TOKEN", "API_KEY", "APIKEY", "PRIVATE_KEY", "DATABASE_URL", "CREDENTIAL")


class NotRunnable(AutovibeError):
    """Ansible cannot be run."""

    code = "not_runnable"
    http_status = 500


@dataclass
class Host:
    """One operation as Ansible sees it: the host's name is the operation's uuid."""

    operation_uuid: UUID
    variables: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """How the run ended: ansible-runner's status and exit code, and the tail of what it printed."""

    status: str
    rc: int | None
    tail: str = ""

    @property
    def interrupted(self) -> bool:
        """Whether somebody ended it from outside, so that it says nothing about the operations."""
        return self.rc is None or self.rc < 0 or self.rc in _ENDED_BY_SIGNAL or self.status in ("canceled", "lost")


class Run:
    """One run of a playbook, given by its name in `playbooks/` or its path. `prepare`, `execute` once, `clean`."""

    def __init__(self, settings: Settings, run_uuid: UUID, playbook: str | Path) -> None:
        self.settings = settings
        self.uuid = run_uuid
        named = settings.project_root / "playbooks" / f"{playbook}.yml"
        self.playbook = playbook if isinstance(playbook, Path) else named
        self.site_inventory = settings.inventory
        self.folder = folder_of(settings, run_uuid)
        self.cancelled = False

    def prepare(self) -> None:
        """Make the private folder; the caller then writes secrets into `secret_path`."""
        if not self.playbook.exists():
            raise NotRunnable(f"There is no playbook {self.playbook}", "Check the setting project_root.")
        if not self.site_inventory.exists():
            raise NotRunnable(f"There is no inventory {self.site_inventory}", "Check the setting inventory.")
        for folder in (self.folder, self.folder / "secrets", self.folder / "inventory"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def secret_path(self, operation_uuid: UUID, name: str = "identity.json") -> Path:
        """Where a secret file of one host belongs."""
        return self.folder / "secrets" / f"{operation_uuid}.{name}"

    def write_inventory(self, hosts: list[Host]) -> Path:
        """The generated inventory, beside the site's own one: group `machines`, one host per operation."""
        path = self.folder / "inventory" / "hosts.json"
        members = {str(host.operation_uuid): as_data(host.variables) for host in hosts}
        text = json.dumps({GROUP: {"hosts": members}}, indent=1)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        return path

    def execute(self, on_event: Callable[[dict], None]) -> Outcome:
        """Run the playbook to its end. `on_event` must return at once (it is called between reads)."""
        import ansible_runner.interface

        def hand_over(event: dict) -> bool:
            on_event(event)
            return False

        runner = ansible_runner.interface.init_runner(
            private_data_dir=str(self.folder),
            project_dir=str(self.settings.project_root),
            playbook=str(self.playbook),
            inventory=[str(self.site_inventory), str(self.folder / "inventory" / "hosts.json")],
            ident="run",
            quiet=True,
            suppress_env_files=True,
            envvars=self._own_environment(),
            settings={"pexpect_timeout": 1, "suppress_ansible_output": True},
            # False: the event is not kept as a file; what is to be kept stands in the database.
            event_handler=hand_over,
            # The roles' argument specs are for people; these variables were made here. One fork less for each machine.
            skip_tags="always",
            cancel_callback=lambda: self.cancelled,
        )
        runner.config.env = allowed(runner.config.env)
        status, rc = runner.run()
        return Outcome(status=status, rc=rc, tail=self._tail() if rc else "")

    def cancel(self) -> None:
        """End the run within about a second (ansible-runner kills; no rescue or always block runs)."""
        self.cancelled = True

    def clean(self) -> None:
        """Remove the secrets; the rest stays for people to read until `prune`."""
        shutil.rmtree(self.folder / "secrets", ignore_errors=True)

    def _own_environment(self) -> dict[str, str]:
        binaries = str(Path(sys.executable).parent)
        return {
            "PATH": os.pathsep.join([binaries, os.environ.get("PATH", os.defpath)]),
            "ANSIBLE_CONFIG": str(self.settings.project_root / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "AUTOVIBE_STATE_DIR": str(self.settings.state_dir),
            processes.MARKER: str(self.uuid),
        }

    def _tail(self, lines: int = 20) -> str:
        text = ""
        for name in ("stdout", "stderr"):
            path = self.folder / "artifacts" / "run" / name
            if path.exists():
                text += path.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.strip().splitlines()[-lines:])


def as_data(value: Any) -> Any:
    """Variables as Ansible's JSON names what is data only.

    It would evaluate a template in any other text of an inventory, and some of these are a guest's own words.
    """
    if isinstance(value, str):
        return {"__ansible_unsafe": value} if "{" in value else value
    if isinstance(value, Mapping):
        return {name: as_data(one) for name, one in value.items()}
    return [as_data(one) for one in value] if isinstance(value, list | tuple) else value


def folder_of(settings: Settings, run_uuid: UUID) -> Path:
    """The private folder of a run."""
    return settings.runs_dir / str(run_uuid)


def allowed(environment: Mapping[str, str]) -> dict[str, str]:
    """Only what a run may see. Our own three names pass, and nothing that is named like a secret."""
    own = {"AUTOVIBE_STATE_DIR", processes.MARKER}
    return {
        name: value
        for name, value in environment.items()
        if name in own or ((name in _ALLOWED or name.startswith(_ALLOWED_PREFIXES)) and not names_a_secret(name))
    }


def names_a_secret(name: str) -> bool:
    """Whether a variable or key of this name holds a secret, by its name."""
    upper = name.upper()
    if upper.endswith(("_FILE", "_PATH")):
        return False
    return any(word in upper for word in _SECRET_WORDS)


def scrub_environment() -> None:
    """Take secrets out of this process's own environment, once the settings have been read."""
    for name in list(os.environ):
        if names_a_secret(name):
            del os.environ[name]


def prune(settings: Settings, keep: int, in_use: Collection[UUID]) -> int:
    """Remove the oldest run folders beyond `keep`, never one in use; returns how many."""
    if not settings.runs_dir.is_dir():
        return 0
    found = {}
    for path in settings.runs_dir.iterdir():
        # The scheduler's runs, and those of commands, take their folders away by themselves.
        with contextlib.suppress(FileNotFoundError):
            found[path] = path.stat().st_mtime
    newest = sorted(found, key=found.__getitem__, reverse=True)
    old = [path for path in newest[keep:] if UUID(path.name) not in in_use]
    for path in old:
        shutil.rmtree(path, ignore_errors=True)
    return len(old)
