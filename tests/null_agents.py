"""Agents for null guests. A null guest runs nothing: the real bootstrap and agent run beside it, as processes of ours.

Each is over a folder that stands for its VM's disk. It runs while the VM runs, hears of an identity when role `machine`
has pushed it into the VM, and is gone at once when the VM stops.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import threading
from pathlib import Path
from typing import Any
from uuid import UUID

import requests
from autovibe import db
from autovibe.api.tests.local_guest import LocalGuest
from autovibe.errors import AutovibeError
from autovibe.models import Machine
from autovibe.settings import load_settings
from proxmoxer import ProxmoxAPI, ResourceException
from sites import Site
from sqlalchemy.exc import DBAPIError

IDENTITY = "/run/autovibe/identity.json"
#: A database, a lab or a VM that is away just then is asked again.
AWAY = (AutovibeError, DBAPIError, ResourceException, requests.RequestException)


class NullAgents:
    """The agents of a site's null guests, while this context lasts."""

    def __init__(self, site: Site) -> None:
        self.node = node_of(site)
        self._settings = load_settings(state_dir=site.state)
        self._guests: dict[UUID, LocalGuest] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> NullAgents:
        # Open to the user that the command runs as.
        self._folder = Path(tempfile.mkdtemp(prefix="autovibe-guests-"))
        self._folder.chmod(0o755)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for guest in self._guests.values():
            guest.power_off()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, machine: UUID) -> LocalGuest:
        """The guest of a machine that has been asked for."""
        guest = LocalGuest(self._folder / str(machine))
        with self._lock:
            self._guests[machine] = guest
        return guest

    def power_off(self, machine: UUID) -> None:
        """What runs in the guest is gone; it boots again when its VM runs."""
        with self._lock:
            self._guests[machine].power_off()

    def kill(self, machine: UUID, of_cli: bool) -> None:
        """Kills its agent, or what its agent has started."""
        with self._lock:
            guest = self._guests[machine]
            pids = guest.processes(of_cli=True) if of_cli else guest.agents()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def left(self) -> list[int]:
        """The pids of all that runs in the guests beside their bootstraps."""
        return [pid for guest in self._guests.values() for pid in guest.processes()]

    def vm(self, machine: UUID) -> Any:
        with db.session_scope(self._settings) as session:
            return self.node.qemu(session.get_one(Machine, machine).vm_id)

    def _follow(self) -> None:
        while not self._ended.wait(0.1):
            for machine, guest in list(self._guests.items()):
                with contextlib.suppress(*AWAY), self._lock:
                    self._follow_vm(guest, self.vm(machine))

    @staticmethod
    def _follow_vm(guest: LocalGuest, vm: Any) -> None:
        if vm.status.current.get()["status"] != "running":
            if guest.process is not None:
                guest.power_off()
            return
        if guest.process is None:
            guest.start()
        pushed = vm.agent("file-read").get(file=IDENTITY)["content"]
        if pushed != guest.identity():
            guest.write_identity(pushed)


def node_of(site: Site) -> Any:
    """The lab's node as its owner finds it, beside the hub."""
    lab = site.state / "lab"
    user, _, token = (lab / "token-id").read_text().strip().partition("!")
    secret = (lab / "token-secret").read_text().strip()
    api = ProxmoxAPI(
        f"127.0.0.1:{site.lab_port}", user=user, token_name=token, token_value=secret, verify_ssl=str(lab / "ca.pem")
    )
    return api.nodes("pve1")
