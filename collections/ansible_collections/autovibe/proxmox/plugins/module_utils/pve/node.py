# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looking at a node's VMs: what is there, whose it is, and whether something is under way for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .client import Client, waits
from .config import Identity, split_tags
from .errors import Ambiguous, ApiError, Forbidden, HalfMadeClone, IdentityError, Locked, NotFound
from .tasks import Tasks


@dataclass
class Seen:
    """A VM as it was found."""

    vmid: int
    config: dict[str, Any]
    status: str

    @property
    def running(self) -> bool:
        return self.status == "running"

    @property
    def template(self) -> bool:
        return bool(int(self.config.get("template") or 0))


@dataclass(frozen=True)
class Source:
    """What a VM is cloned from: a template (linked unless `full`) or a snapshot of a VM (always full)."""

    vmid: int
    snapshot: str | None = None
    full: bool = False
    storage: str | None = None


class Node:
    """One node and the tasks on it; `timeout` bounds each wait for a task, in seconds."""

    def __init__(self, client: Client, node: str, timeout: float = 600):
        self.client, self.node = client, node
        self.tasks = Tasks(client, node, timeout)

    def path(self, vmid: int, *rest: str) -> str:
        return "/".join([f"/nodes/{self.node}/qemu/{vmid}", *rest])

    def list(self) -> list[dict[str, Any]]:
        """The node's VMs that this user may see; name, tags and status as of now (cluster/resources lags)."""
        return self.client.get(f"/nodes/{self.node}/qemu")

    def config(self, vmid: int) -> dict[str, Any] | None:
        """The VM's configuration, None when there is no such VM."""
        try:
            return self.client.get(self.path(vmid, "config"))
        except Forbidden:
            # A token without rights on everything gets 403 for a VM that is not there, too.
            if self.is_free(vmid):
                return None
            raise
        except ApiError as error:
            if error.no_such_vm:
                return None
            raise

    def look(self, vmid: int) -> Seen | None:
        config = self.config(vmid)
        if config is None:
            return None
        if config.get("lock") == "clone" or config.get("template"):
            return Seen(vmid, config, "stopped")
        try:
            return Seen(vmid, config, self.client.get(self.path(vmid, "status", "current"))["status"])
        except ApiError as error:
            if error.no_such_vm:
                return None
            raise

    def is_free(self, vmid: int) -> bool:
        try:
            self.client.get("/cluster/nextid", vmid=vmid)
        except ApiError as error:
            if error.status == 400 and "already exists" in error.errors.get("vmid", ""):
                return False
            raise
        return True

    def settled(self, vmid: int, source: Callable[[], Source] | None = None) -> Seen | None:
        """The VM once no lock stands on it; an error when nobody is left to take the lock off."""
        idle = 0
        for left in waits(self.tasks.timeout):
            try:
                seen = self.look(vmid)
            except Forbidden as error:
                seen, lock, hidden = None, "clone", error
            else:
                if seen is None or "lock" not in seen.config:
                    return seen
                lock, hidden = seen.config["lock"], None
            busy = self._clone_under_way(source and source()) if lock == "clone" else self.tasks.settle(vmid=vmid)
            idle = 0 if busy else idle + 1
            if idle > 2 or left <= 0:  # twice more after the task was gone: the lock goes with it, but not at once
                self._refuse_locked(vmid, lock, hidden)
        return None

    def find(self, *, identity: Identity | None, name: str | None, templates: bool = False) -> int | None:
        """The VM with this identity, or without one the VM with this name; a running machine before a template."""
        machine = identity.get("machine") if identity else None
        tag = f"id-{machine.replace('-', '')}" if machine else None
        found: list[dict[str, Any]] = []
        for vm in self.list():
            fits = (name and vm.get("name") == name) or (tag and tag in split_tags(vm.get("tags")))
            if not fits or (vm.get("template") and not templates):
                continue
            if identity is None or identity.owns((self.config(vm["vmid"]) or {}).get("description")):
                found.append(vm)
        alive = [vm for vm in found if not vm.get("template")] or found[-1:]
        if len(alive) > 1:
            ids = ", ".join(str(vm["vmid"]) for vm in sorted(alive, key=lambda vm: vm["vmid"]))
            raise Ambiguous(
                f"'{name or machine}' is the name of the VMs {ids} on node {self.node}; say which by vm_id."
            )
        return int(alive[0]["vmid"]) if alive else None

    def template(self, name: str) -> int:
        """The VM id of the newest template of a name."""
        listed = [vm for vm in self.list() if vm.get("template")]
        fits = [vm for vm in listed if vm.get("name") == name]
        if not fits:
            names = ", ".join(sorted({str(vm.get("name")) for vm in listed})) or "none at all"
            raise NotFound(f"No template '{name}' on node {self.node}; there are: {names}.")
        if len(fits) == 1:
            return int(fits[0]["vmid"])
        return max((int(vm["vmid"]) for vm in fits), key=lambda vmid: (_ctime(self.config(vmid) or {}), vmid))

    def check_identity(self, seen: Seen, identity: Identity | None) -> None:
        if identity is not None and not identity.owns(seen.config.get("description")):
            raise IdentityError(
                f"VM {seen.vmid} on node {self.node} is '{seen.config.get('name', '')}', without the identity "
                f"'{identity.line()}'; take another VM id."
            )

    def _clone_under_way(self, source: Source | None) -> bool:
        listed = self.client.get(f"/nodes/{self.node}/tasks", source="active", limit=500)
        return any(
            task.get("type") == "qmclone" and not task.get("endtime") and source and task.get("id") == str(source.vmid)
            for task in listed
        )

    def _refuse_locked(self, vmid: int, lock: str, hidden: Forbidden | None) -> None:
        command = f"qm unlock {vmid} && qm destroy {vmid} --purge --destroy-unreferenced-disks 1"
        if hidden is not None:
            raise IdentityError(
                f"VM {vmid} exists, but these credentials may not see it ({hidden.reason}). Take another VM id; "
                f"if a clone was broken off here, root on node {self.node} removes what is left with: {command}"
            )
        if lock == "clone":
            raise HalfMadeClone(f"On node {self.node}: {command} - or take another VM id than {vmid}.")
        raise Locked(
            f"VM {vmid} is locked ({lock}); when nothing works on it, root on node {self.node}: qm unlock {vmid}"
        )


def _ctime(config: dict[str, Any]) -> int:
    for part in str(config.get("meta", "")).split(","):
        if part.startswith("ctime="):
            return int(part[6:])
    return 0
