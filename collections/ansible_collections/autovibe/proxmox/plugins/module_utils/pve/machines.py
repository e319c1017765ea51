# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines: one VM each, known by its identity, brought to its state one step at a time.

Every step looks first and then does what is missing, so that it may be broken off anywhere and begun again: what is
under way for the VM is waited for, and no call is made whose effect is already there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from .client import waits
from .config import DNS_LABEL, Identity, Wanted, desired, differences, parse_net, view
from .errors import ApiError, NotFound, NotPossible, PveError
from .node import Node, Seen, Source

T = TypeVar("T")
#: How long something that was not executed (a lock, blocked workers) is tried again.
PATIENCE = 120.0


class Raced(PveError):
    """Somebody else took the VM id first."""

    retryable = True


@dataclass
class Change:
    """What was found and what it is now (or would be)."""

    before: dict[str, Any]
    after: dict[str, Any]
    facts: dict[str, Any]
    #: Whether the VM runs now; in check mode it may only be going to.
    live: bool = False

    @property
    def changed(self) -> bool:
        return self.before != self.after


def persist(step: Callable[[], T], patience: float = PATIENCE) -> T:
    """Repeats `step`, which looks before it acts, while its calls fail without having been executed."""
    for left in waits(patience, first=0.2, longest=5.0):
        try:
            return step()
        except PveError as error:
            if not error.retryable or left <= 0:
                raise
    raise AssertionError("waits() ends with left <= 0")


class Machines(Node):
    """What changes VMs."""

    def ensure(
        self,
        vmid: int | None,
        wanted: Wanted,
        *,
        source: Callable[[], Source] | None = None,
        pool: str | None = None,
        state: str = "present",
        shutdown_timeout: int | None = None,
        lookup: bool = True,
        check: bool = False,
    ) -> Change:
        """One machine's whole change: cloned when it is missing, configured, brought to its power state.

        `source` is asked only when there is something to clone. Without `vmid` the VM is looked up by its identity or
        name, or without `lookup` always made.
        `state` is present (power left alone), started or stopped. With `check` nothing is written.
        """
        _validate(wanted)
        first = self._first_look(vmid, wanted, source, templates=source is None) if vmid or lookup else None
        vmid = first.vmid if first else vmid
        if first is None and source is None:
            advice = "" if state == "stopped" else "; give a source to clone it from"
            raise NotFound(f"Node {self.node} has no VM '{vmid or wanted.name}'{advice}.")
        base = first.config if first else {}
        values = desired(wanted, base)
        target = {"started": "running", "stopped": "stopped"}.get(state, first.status if first else "stopped")
        keys = list(values)
        before = view(first.config if first else None, keys, first.status if first else None)
        predicted = view({**base, **values}, keys, target)
        if first and first.template and target == "running":
            raise NotPossible(f"VM {first.vmid} is a template; a template cannot be started, clone it.")
        created = first is None
        if check or before == predicted:
            if first is None:
                self._check_source(source())
            live = bool(first and first.running)
            return Change(before, predicted, self._facts(first, vmid, base | values, target, created), live)
        run = _Run(self, vmid, wanted, source, pool, target if state != "present" else None, shutdown_timeout)
        seen = persist(run.step)
        after = view(seen.config, keys, seen.status)
        if created and wanted.net is not None and not wanted.net.get("mac"):
            after["net0"] = {key: value for key, value in after["net0"].items() if key != "mac"}
        facts = self._facts(seen, seen.vmid, seen.config, seen.status, created)
        if seen.running and not run.started:
            facts["restart_required"] = self._pending(seen.vmid)
        return Change(before, after, facts, seen.running)

    def remove(self, vmid: int | None, wanted: Wanted, *, force: bool = False, check: bool = False) -> Change:
        """The VM gone, with its disks. A running one only with `force`."""
        first = self._first_look(vmid, wanted, None, templates=True)
        if first is None:
            return Change({}, {}, self._facts(None, vmid, {}, "absent", False))
        if first.running and not force:
            raise NotPossible(f"VM {first.vmid} is running; stop it first, or say force.")
        before = view(first.config, ["name", "description", "tags"], first.status)
        if not check:
            persist(lambda: self._remove_step(first.vmid, wanted))
        return Change(before, {}, self._facts(None, first.vmid, first.config, "absent", False))

    def set_config(self, vmid: int, values: dict[str, Any]) -> None:
        self.client.put(self.path(vmid, "config"), **values)

    def task(self, upid: str | None | Callable[[], str | None]) -> None:
        """Waits for a task. A heavy one is given as the call that starts it, and takes one of the node's slots."""
        if callable(upid):
            with self.tasks.shared(self.node).turn():
                self.task(upid())
        elif upid:
            self.tasks.wait(upid)

    def stop(self, vmid: int, shutdown_timeout: int | None) -> None:
        """A bounded shutdown and then a stop (one task does both), or a stop at once."""
        if shutdown_timeout:
            self.task(self.client.post(self.path(vmid, "status", "shutdown"), timeout=shutdown_timeout, forceStop=True))
        else:
            self.task(self.client.post(self.path(vmid, "status", "stop")))

    def clone(self, source: Source, newid: int, **values: Any) -> None:
        # A linked clone is what a template gives when `full` is not said; a storage is refused for linked ones.
        full = True if source.full or source.snapshot else None
        upid = self.client.post(
            self.path(source.vmid, "clone"),
            newid=newid,
            full=full,
            snapname=source.snapshot,
            storage=source.storage if full else None,
            **values,
        )
        self.task(upid)

    def _first_look(
        self, vmid: int | None, wanted: Wanted, source: Callable[[], Source] | None, templates: bool = False
    ) -> Seen | None:
        if vmid is None:
            if not wanted.name and not wanted.identity:
                raise NotFound("Give vm_id, or the name of the machine.")
            vmid = self.find(identity=wanted.identity, name=wanted.name, templates=templates)
            if vmid is None:
                return None
        seen = self.settled(vmid, source)
        if seen is not None:
            self.check_identity(seen, wanted.identity)
        return seen

    def _remove_step(self, vmid: int, wanted: Wanted) -> None:
        self.tasks.settle(vmid=vmid)
        seen = self.settled(vmid)
        if seen is None:
            return
        self.check_identity(seen, wanted.identity)
        if seen.running:
            self.stop(vmid, None)
        # In the query: a DELETE with a body is a 501.
        self.task(self.client.delete(self.path(vmid), purge=True, destroy__unreferenced__disks=True))

    def _check_source(self, source: Source) -> None:
        if self.config(source.vmid) is None:
            raise NotFound(f"The source, VM {source.vmid}, does not exist on node {self.node}.")

    def _pending(self, vmid: int) -> list[str]:
        """Keys whose new value waits for a restart."""
        entries = self.client.get(self.path(vmid, "pending"))
        return sorted(entry["key"] for entry in entries if "pending" in entry or entry.get("delete"))

    def _facts(
        self, seen: Seen | None, vmid: int | None, config: dict[str, Any], status: str, created: bool
    ) -> dict[str, Any]:
        ip = next((part[3:] for part in str(config.get("ipconfig0", "")).split(",") if part.startswith("ip=")), None)
        return {
            "vm_id": vmid,
            "node": self.node,
            "name": config.get("name"),
            "status": status,
            "mac": parse_net(config.get("net0")).get("mac"),
            "ip": ip,
            "created": created,
            "template": bool(seen and seen.template),
        }


@dataclass
class _Run:
    """One machine on its way; `step` may be repeated."""

    machines: Machines
    vmid: int | None
    wanted: Wanted
    source: Callable[[], Source] | None
    pool: str | None
    target: str | None
    shutdown_timeout: int | None
    passes: int = 0
    started: bool = False

    def step(self) -> Seen:
        self.passes += 1
        seen = self._existing()
        fresh = seen is None
        if seen is None:
            seen = self._cloned()
        values = differences(desired(self.wanted, seen.config), seen.config)
        if fresh and self.wanted.description() is None and Identity.parse(seen.config.get("description")):
            values["delete"] = "description"  # inherited from the source: this VM is not the one it names
        if values:
            self.machines.set_config(seen.vmid, values)
            # A NIC without a given MAC gets one from Proxmox VE: only then is there something new to read.
            known = "net0" not in values or parse_net(values["net0"]).get("mac")
            seen = replace(seen, config={**seen.config, **values} if known else self.machines.config(seen.vmid) or {})
        return self._powered(seen)

    def _existing(self) -> Seen | None:
        if self.vmid is None:
            return None
        machines = self.machines
        seen = machines.settled(self.vmid, self.source)
        if seen is not None and machines.tasks.settle(vmid=self.vmid):
            seen = machines.settled(self.vmid, self.source)
        if seen is not None:
            machines.check_identity(seen, self.wanted.identity)
        return seen

    def _cloned(self) -> Seen:
        machines, wanted = self.machines, self.wanted
        if self.source is None:
            raise NotFound(f"VM {self.vmid} is gone from node {machines.node}.")
        source = self.source()
        given = self.vmid is not None
        vmid = self.vmid if given else int(machines.client.get("/cluster/nextid"))
        # Remembered before the call: when its answer is lost, the next pass looks at this id.
        self.vmid = vmid
        try:
            machines.clone(source, vmid, name=wanted.name, description=wanted.description(), pool=self.pool)
        except ApiError as error:
            if not error.id_taken:
                if error.no_such_vm:
                    raise NotFound(f"The source, VM {source.vmid}, does not exist on node {machines.node}.") from error
                raise
            self.vmid = vmid if given else None
            raise Raced(f"VM id {vmid}.") from error
        config = machines.config(vmid)
        if config is None:
            raise NotFound(f"VM {vmid} was cloned and is gone again.")
        return Seen(vmid, config, "stopped")

    def _powered(self, seen: Seen) -> Seen:
        if self.target in (None, seen.status):
            return seen
        machines = self.machines
        if self.target == "running":
            machines.task(machines.client.post(machines.path(seen.vmid, "status", "start")))
            self.started = True
        else:
            machines.stop(seen.vmid, self.shutdown_timeout)
        return replace(seen, status=self.target)


def _validate(wanted: Wanted) -> None:
    if wanted.name is not None and not all(DNS_LABEL.fullmatch(label) for label in wanted.name.split(".")):
        raise NotPossible(
            f"'{wanted.name}' is not a DNS name: letters, digits and '-' only, at most 63, no '-' at the ends."
        )
