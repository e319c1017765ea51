# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines: one VM each, known by its identity, brought to its state one step at a time.

Every step looks first and then does what is missing, so that it may be broken off anywhere and begun again: what is
under way for the VM is waited for, and no call is made whose effect is already there.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from .client import waits
from .config import (
    CLOUD_INIT,
    PASSWORD,
    PASSWORD_SET,
    Identity,
    Wanted,
    desired,
    inherited,
    view,
)
from .devices import boot_disk, disk_size, parse_net, properties, size_in_bytes, size_text
from .disks import disks, refuse
from .errors import ApiError, HalfMadeClone, IdentityError, NotFound, NotPossible, PveError
from .node import FromWhere, Image, Node, Seen, Source
from .steps import Raced, Removal, Run

__all__ = ["Change", "Machines", "Raced", "persist"]

T = TypeVar("T")
#: How long something that was not executed (a lock, blocked workers) is tried again.
PATIENCE = 120.0
#: The power state that each state of the module asks for.
POWER = {"started": "running", "paused": "paused", "stopped": "stopped"}


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
    for left in waits(patience, first=0.2 * random.uniform(0.5, 1), longest=5.0):
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
        source: FromWhere | None = None,
        pool: str | None = None,
        state: str = "present",
        shutdown_timeout: int | None = None,
        lookup: bool = True,
        check: bool = False,
    ) -> Change:
        """One machine's whole change: made when it is missing, configured, brought to its power state.

        `source` is asked only when there is something to make. Without `vmid` the VM is looked up by its identity or
        name, or without `lookup` always made. `state` is present (power left alone), started, paused or stopped. With
        `check` nothing is written.
        """
        wanted.validate()
        wanted = replace(wanted, pool=pool or wanted.pool)
        first = (
            self._first_look(vmid, wanted, source, templates=source is None, check=check) if vmid or lookup else None
        )
        vmid = first.vmid if first else vmid
        target = POWER.get(state, first.status if first else "stopped")
        if first is None:
            if source is None:
                raise NotFound(f"There is no VM '{vmid or wanted.name}'; give a source to make it from.")
            return self._made(vmid, wanted, source, state, check, lookup)
        if first.template and target != "stopped":
            raise NotPossible(f"VM {vmid} is a template; a template cannot be started, clone it.")
        base = {**first.config, "pool": self.pool_of(first.vmid, wanted.pool)}
        values = {**desired(wanted, base), **_of_other_calls(wanted)}
        before = view(base, list(values), first.status)
        merged = {**base, **values, **self.grown(wanted, base)}
        predicted = view(merged, list(values), target)
        if first.hibernated and target == "stopped" and _configured(before) != _configured(predicted):
            raise NotPossible(
                f"VM {first.vmid} is hibernated; start it first: until it goes on, nothing of it can be changed."
            )
        if check or before == predicted:
            facts = self._facts(first, vmid, merged, target, False)
            return Change(before, predicted, facts, first.running)
        run = Run(
            self,
            vmid,
            wanted,
            source,
            None if state == "present" else target,
            shutdown_timeout,
            replace(first, config=base),
        )
        return self._done(run, before, list(values), created=False)

    def remove(self, vmid: int | None, wanted: Wanted, *, force: bool = False, check: bool = False) -> Change:
        """The VM gone, with its disks. A running one only with `force`, a protected one never."""
        try:
            first = self._first_look(vmid, wanted, None, templates=True, only_one=True, clear=False)
        except HalfMadeClone as error:
            if not self._may_clear(error, wanted):
                raise
            if not check:
                self._clear(error.vmid)
            return Change({"status": "half-made"}, {}, self._facts(None, error.vmid, error.config, "absent", False))
        if first is None:
            self.refuse_elsewhere(vmid, wanted.identity)
            return Change({}, {}, self._facts(None, vmid, {}, "absent", False))
        if wanted.identity is None and vmid and wanted.name not in (None, first.config.get("name")):
            raise IdentityError(
                f"VM {vmid} is '{first.config.get('name', '')}', not '{wanted.name}'; give the right one only."
            )
        if int(first.config.get("protection") or 0):
            raise NotPossible(f"VM {first.vmid} is protected; say protection: false first.")
        if first.running and not force:
            raise NotPossible(f"VM {first.vmid} is {first.status}; stop it first, or say force.")
        before = view(first.config, ["name", "description", "tags"], first.status)
        if not check:
            persist(Removal(self, first, wanted).step)
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
            path = self.path(vmid, "status", "shutdown")
            self.tasks.wait(self.client.post(path, timeout=shutdown_timeout, forceStop=True), grace=shutdown_timeout)
        else:
            self.task(self.client.post(self.path(vmid, "status", "stop")))

    def clone(self, source: Source, newid: int, **values: Any) -> None:
        with self.tasks.shared(self.node).turn():
            self.task(self.begin_clone(source, newid, **values))

    def begin_clone(self, source: Source, newid: int, **values: Any) -> str:
        # A linked clone is what a template gives when `full` is not said; a storage is refused for linked ones.
        full = True if source.full or source.snapshot else None
        try:
            return self.client.post(
                self.at(source.node).path(source.vmid, "clone"),
                newid=newid,
                full=full,
                snapname=source.snapshot,
                storage=source.storage if full else None,
                target=self.node if source.node else None,
                **values,
            )
        except ApiError as error:
            if "uses local storage" in error.reason or "to non-shared storage" in error.reason:
                raise NotPossible(self._not_shared(source)) from error
            raise

    def _not_shared(self, source: Source) -> str:
        return (
            f"VM {source.vmid} is on node {source.node}; a clone of it goes to node {self.node} only where its disks "
            f"and the storage of the clone are shared by the nodes. Make the template on node {self.node}, too."
        )

    def move_to_pool(self, vmid: int, pool: str) -> None:
        self.client.put("/pools", poolid=pool, vms=str(vmid), **{"allow-move": True})

    def _made(
        self, vmid: int | None, wanted: Wanted, source: FromWhere, state: str, check: bool, lookup: bool
    ) -> Change:
        """A VM that is not there yet."""
        origin, target = source(), POWER.get(state, "stopped")
        if isinstance(origin, Source) and origin.node is None and self.locate(origin.vmid) is None:
            raise NotFound(f"The source, VM {origin.vmid}, does not exist.")
        if lookup and vmid is None and self._settle_earlier(origin):  # it may have been this one
            return self.ensure(None, wanted, source=lambda: origin, state=state, check=check)
        keys = [*desired(wanted, {}, created=True), *_of_other_calls(wanted)]
        if check or wanted.disk_size or getattr(origin, "snapshot", None):
            base = self._begins_with(origin, wanted)
            merged = {**base, **desired(wanted, base, created=True), **_of_other_calls(wanted)}
            merged.update(self.grown(wanted, base))
            if check:
                if origin.storage and origin.storage not in self.storage_types():
                    raise NotFound(f"Node {self.node} has no storage '{origin.storage}' that this user may use.")
                after = _without_unknown(view(merged, keys, target), wanted, {})
                return Change({}, after, self._facts(None, vmid, merged, target, True))
        run = Run(self, vmid, wanted, lambda: origin, target, None)
        return self._done(run, {}, keys, created=True)

    def _settle_earlier(self, origin: Source | Image) -> bool:
        if isinstance(origin, Source):
            return self.at(origin.node).tasks.settle_earlier(vmid=origin.vmid, kind="qmclone")
        self.tasks.node = self.node
        return self.tasks.settle_earlier(kind="qmcreate")

    def _done(self, run: Run, before: dict[str, Any], keys: list[str], created: bool) -> Change:
        seen = persist(run.step)
        if run.sent and seen.running and not run.started:
            # Read again, as Proxmox VE decides what it can change on a running VM.
            waiting = {*self.pending(seen.vmid), *(key for key in run.sent if key in CLOUD_INIT)}
            seen = replace(seen, pending=sorted(waiting))
        after = _without_unknown(view(seen.config, keys, seen.status), run.wanted, before)
        if PASSWORD in run.sent:
            after[PASSWORD] = PASSWORD_SET
        facts = self._facts(seen, seen.vmid, seen.config, seen.status, created)
        return Change(before, dict(sorted(after.items())), facts, seen.running)

    def _first_look(
        self,
        vmid: int | None,
        wanted: Wanted,
        source: FromWhere | None,
        templates: bool = False,
        only_one: bool = False,
        clear: bool = True,
        check: bool = False,
    ) -> Seen | None:
        if vmid is None:
            if not wanted.name and not wanted.identity:
                raise NotFound("Give vm_id, or the name of the machine.")
            vmid = self.find(identity=wanted.identity, name=wanted.name, templates=templates, only_one=only_one)
            if vmid is None:
                return None
        return self.usable(vmid, wanted, source, clear=clear, check=check)

    def usable(
        self, vmid: int, wanted: Wanted, source: FromWhere | None = None, *, clear: bool = True, check: bool = False
    ) -> Seen | None:
        """The VM once nothing stands in the way; what a broken-off clone has left is removed, where we may."""
        try:
            seen = self.settled(vmid)
        except HalfMadeClone as error:
            if not clear or not source or not self._may_clear(error, wanted):
                raise
            if not check:
                self._clear(vmid)
            return None
        if seen is not None:
            self._check_owner(seen, wanted)
        return seen

    def _check_owner(self, seen: Seen, wanted: Wanted) -> None:
        """The VM has to be this one: by its identity or, as long as it carries none, by its SMBIOS uuid."""
        self.check_uuid(seen.vmid, seen.config, wanted.expected_uuid)
        carried = Identity.parse(seen.config.get("description"))
        if wanted.expected_uuid is None or wanted.identity is None:
            self.check_identity(seen, wanted.identity)
        elif carried is not None and not wanted.identity.owns(seen.config.get("description")):
            raise IdentityError(
                f"VM {seen.vmid} carries another identity, '{carried.line()}'; if what made it is gone for good, "
                f"remove that first line of its notes and run this again."
            )

    def _may_clear(self, found: HalfMadeClone, wanted: Wanted) -> bool:
        """Only root in person may, and sees all tasks: none works on it. And it has to be ours, or nobody's yet."""
        config = found.config
        description = str(config.get("description") or "").strip()
        nobodys = description in ("", "qmclone temporary file") and str(config.get("name") or "VM ").startswith("VM ")
        ours = wanted.identity.owns(description) if wanted.identity else config.get("name") == wanted.name
        return self.client.endpoint.is_root and (nobodys or ours)

    def _clear(self, vmid: int) -> None:
        values = {"purge": True, "destroy-unreferenced-disks": True, "skiplock": True}
        self.task(self.client.delete(self.path(vmid), **values))

    def _begins_with(self, origin: Source | Image, wanted: Wanted) -> dict[str, Any]:
        """The configuration that a new VM has before it is changed; refuses what cannot be cloned."""
        if isinstance(origin, Image):
            return dict(origin.config())
        base = inherited(self._source_config(origin))
        if wanted.description() is not None:
            base.pop("description", None)
        return base

    def _source_config(self, source: Source) -> dict[str, Any]:
        there = self.at(source.node)
        try:
            config = there.config(source.vmid, source.snapshot)
        except ApiError as error:
            if source.snapshot and f"snapshot '{source.snapshot}' does not exist" in error.reason:
                listed = self.client.get(there.path(source.vmid, "snapshot"))
                names = ", ".join(sorted(one["name"] for one in listed if one["name"] != "current")) or "none at all"
                raise NotFound(f"VM {source.vmid} has no snapshot '{source.snapshot}'; there are: {names}.") from error
            raise
        if config is None and source.node is None and (other := self.elsewhere(source)):
            return self._source_config(other)
        if config is None:
            raise NotFound(f"The source, VM {source.vmid}, does not exist on node {self.node}.")
        if source.snapshot:
            doing = f"Snapshot '{source.snapshot}' of VM {source.vmid} cannot be cloned"
            refuse("clone_snapshot", doing, config, there.storage_types())
        if source.node and {one.storage for one in disks(config, cloudinit=True)} & there.local_storages():
            raise NotPossible(self._not_shared(source))
        return config

    def grown(self, wanted: Wanted, config: dict[str, Any]) -> dict[str, Any]:
        """The boot disk as it will be, in a dict; refuses to make it smaller."""
        key = boot_disk(config)
        if wanted.disk_size is None:
            return {}
        if key is None:
            raise NotPossible("disk_size: the VM has no disk.")
        there, size = disk_size(config) or 0, size_in_bytes(wanted.disk_size)
        if size < there:
            raise NotPossible(
                f"disk_size: disk {key} has {size_text(there)}; a disk cannot be made smaller than it is."
            )
        found = {**properties(str(config[key]), "file"), "size": size_text(size)}
        volume = found.pop("file")
        return {key: ",".join([volume, *(f"{name}={value}" for name, value in found.items())])}

    def pool_of(self, vmid: int, wanted: str | None) -> str | None:
        """The pool of a VM; looked up only when one is wanted."""
        if wanted is None:
            return None
        try:
            listed = self.client.get("/pools", poolid=wanted)
        except ApiError as error:
            if "does not exist" in error.reason:
                raise NotFound(f"There is no pool '{wanted}'; create it, or name another one.") from error
            raise
        members = [member for pool in listed for member in pool.get("members") or []]
        if any(int(member.get("vmid") or 0) == vmid for member in members):
            return wanted
        resources = self.client.get("/cluster/resources", type="vm")
        return next((entry.get("pool") for entry in resources if int(entry.get("vmid") or 0) == vmid), None)

    def _facts(
        self, seen: Seen | None, vmid: int | None, config: dict[str, Any], status: str, created: bool
    ) -> dict[str, Any]:
        return {
            "vm_id": vmid,
            "node": self.node,
            "name": config.get("name"),
            "status": status,
            "mac": parse_net(config.get("net0")).get("mac"),
            "ip": properties(config.get("ipconfig0")).get("ip"),
            "created": created,
            "template": bool(seen and seen.template),
            "restart_required": seen.pending if seen and seen.running and status != "stopped" else [],
        }


def _configured(shown: dict[str, Any]) -> dict[str, Any]:
    """What before or after show of the VM's configuration."""
    return {key: value for key, value in shown.items() if key not in ("status", "pool")}


def _of_other_calls(wanted: Wanted) -> dict[str, Any]:
    """What is managed beside the configuration: by the keys under which it is shown."""
    values = {"disk_size": wanted.disk_size, "pool": wanted.pool}
    return {key: value for key, value in values.items() if value is not None}


def _without_unknown(after: dict[str, Any], wanted: Wanted, before: dict[str, Any]) -> dict[str, Any]:
    """Without what only Proxmox VE knows when it makes it: a MAC, a uuid; a prediction has them neither."""
    after = dict(after)
    if "net0" in after and not (wanted.net or {}).get("mac") and not before.get("net0", {}).get("mac"):
        after["net0"] = {key: value for key, value in after["net0"].items() if key != "mac"}
    if "smbios1" in after and not (wanted.smbios or {}).get("uuid") and not before.get("smbios1", {}).get("uuid"):
        after["smbios1"] = {key: value for key, value in after["smbios1"].items() if key != "uuid"}
    return after
