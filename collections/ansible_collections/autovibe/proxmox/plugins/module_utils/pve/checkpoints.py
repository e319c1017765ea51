# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints: a snapshot of a VM, or a VM that has become a template, and what is made of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from .config import DNS_LABEL, SNAPSHOT_NAME, Identity, Wanted, split_tags
from .errors import NotFound, NotPossible, TaskFailed
from .guest import Guest
from .machines import Change, Machines, persist
from .node import Seen, Source


@dataclass
class Checkpoint:
    """What is asked for. `carrier` is snapshot, template, or auto: a template when the VM has no snapshots."""

    name: str
    description: str = ""
    ram: bool = False
    freeze: bool = True
    carrier: str = "snapshot"
    identity: Identity | None = None
    tags: list[str] | None = None
    warnings: list[str] = field(default_factory=list)


class Checkpoints:
    def __init__(self, machines: Machines):
        self.machines, self.client = machines, machines.client

    def present(self, vmid: int, wanted: Checkpoint, *, check: bool = False) -> Change:
        _validate(wanted.name)
        seen = self._seen(vmid, wanted)
        snapshots = {} if seen.template else self.snapshots(vmid)
        carrier = wanted.carrier
        if carrier == "auto":
            carrier = "snapshot" if snapshots and not seen.template else "template"
        if seen.template and carrier == "template":
            return self._same(self._template_facts(seen, wanted))
        if wanted.name in snapshots:
            return self._same(self._snapshot_facts(vmid, snapshots[wanted.name]))
        self._refuse(seen, carrier, wanted, snapshots)
        predicted = {"checkpoint": wanted.name, "vm_id": vmid, "carrier": carrier}
        if check:
            return Change({}, predicted, {**self._facts(vmid, wanted.name, carrier), "exists": False})
        make = self._make_template if carrier == "template" else self._make_snapshot
        return Change({}, predicted, persist(lambda: make(vmid, wanted)))

    def absent(self, vmid: int, wanted: Checkpoint, *, check: bool = False) -> Change:
        """The snapshot gone; its children stay. A template is not removed here but as a machine."""
        seen = self.machines.settled(vmid)
        gone = {**self._facts(vmid, wanted.name, "snapshot"), "exists": False}
        if seen is None or seen.template or wanted.name not in self.snapshots(vmid):
            return Change({}, {}, gone)
        self.machines.check_identity(seen, wanted.identity)
        if not check:
            persist(lambda: self._remove(vmid, wanted.name))
        return Change({"checkpoint": wanted.name, "vm_id": vmid, "carrier": "snapshot"}, {}, gone)

    def restored(self, vmid: int, wanted: Checkpoint, *, check: bool = False) -> Change:
        """The VM as it was at the snapshot. Its configuration, too: rewrite name and description after this.

        With an operation in the identity, a rollback that this operation has done is not done again: the rewritten
        description names the operation, and before that the rollback is the newest thing that happened to the VM.
        """
        _validate(wanted.name)
        seen = self._seen(vmid, wanted)
        snapshots = {} if seen.template else self.snapshots(vmid)
        if wanted.name not in snapshots:
            names = ", ".join(sorted(name for name in snapshots if name != "current")) or "none at all"
            raise NotFound(f"VM {vmid} has no snapshot '{wanted.name}'; there are: {names}.")
        facts = self._snapshot_facts(vmid, snapshots[wanted.name])
        if self._is_restored(seen, wanted, snapshots):
            return self._same(facts)
        if not check:
            persist(lambda: self._roll_back(vmid, wanted))
        return Change({"at": "later"}, {"at": wanted.name}, facts)

    def promoted(
        self, vmid: int, wanted: Checkpoint, target: int | None, *, pool: str | None = None, check: bool = False
    ) -> Change:
        """The snapshot as a template of its own: one full clone, converted. Later branches of it are linked clones."""
        _validate(wanted.name)
        self.machines.settled(vmid)
        mark = f"checkpoint={wanted.name}"
        target = target or self._promoted_before(wanted, mark)
        new = Wanted(
            name=wanted.name if DNS_LABEL.fullmatch(wanted.name) else None,
            identity=wanted.identity,
            notes=mark,
            tags=[*(wanted.tags or ["autovibe"]), wanted.name.lower()],
        )
        found = self.machines.settled(target, lambda: Source(vmid)) if target else None
        if found is not None:
            self.machines.check_identity(found, wanted.identity)
            if found.template:
                return self._same(self._promoted_facts(found.vmid, wanted))
        elif wanted.name not in self.snapshots(vmid):
            raise NotFound(f"VM {vmid} has no snapshot '{wanted.name}'.")
        predicted = {"checkpoint": wanted.name, "vm_id": target, "carrier": "template"}
        if check:
            return Change({}, predicted, {**self._facts(target, wanted.name, "template"), "exists": False})
        change = self.machines.ensure(
            target, new, source=lambda: Source(vmid, wanted.name, full=True), pool=pool, lookup=False
        )
        target = change.facts["vm_id"]
        persist(lambda: self.convert(target))
        return Change({}, {**predicted, "vm_id": target}, self._promoted_facts(target, wanted))

    def snapshots(self, vmid: int) -> dict[str, dict[str, Any]]:
        """The VM's snapshots by name, without the entry for its present state."""
        listed = self.client.get(self.machines.path(vmid, "snapshot"))
        return {entry["name"]: entry for entry in listed if entry["name"] != "current"}

    def convert(self, vmid: int) -> None:
        """The VM as a template; nothing to do when it is one."""
        self.machines.tasks.settle(vmid=vmid)
        seen = self.machines.settled(vmid)
        if seen is None:
            raise NotFound(f"VM {vmid} does not exist.")
        if not seen.template:
            self.machines.task(self.client.post(self.machines.path(vmid, "template")))

    def _seen(self, vmid: int, wanted: Checkpoint) -> Seen:
        """The VM once nothing is under way for it: a snapshot that another process began is there, or failed."""
        self.machines.tasks.settle(vmid=vmid)
        seen = self.machines.settled(vmid)
        if seen is None:
            raise NotFound(f"VM {vmid} does not exist on node {self.machines.node}.")
        self.machines.check_identity(seen, wanted.identity)
        return seen

    def _refuse(self, seen: Seen, carrier: str, wanted: Checkpoint, snapshots: dict[str, Any]) -> None:
        if seen.template:
            raise NotPossible(f"VM {seen.vmid} is a template; a template has no snapshots, it is a checkpoint itself.")
        if carrier == "template" and seen.running:
            raise NotPossible(f"VM {seen.vmid} is running; only a stopped VM can become a template.")
        if carrier == "template" and snapshots:
            raise NotPossible(f"VM {seen.vmid} has snapshots; it cannot become a template. Promote a snapshot instead.")
        if wanted.ram and not seen.running:
            wanted.warnings.append(f"VM {seen.vmid} is stopped: there is no RAM to save.")

    def _make_snapshot(self, vmid: int, wanted: Checkpoint) -> dict[str, Any]:
        seen = self._seen(vmid, wanted)
        found = self.snapshots(vmid).get(wanted.name)
        frozen = False
        if found is None:
            frozen = self._will_freeze(seen, wanted)
            values = {
                "snapname": wanted.name,
                "description": wanted.description,
                "vmstate": wanted.ram and seen.running or None,
            }
            self.machines.task(self.client.post(self.machines.path(vmid, "snapshot"), **values))
            found = self.snapshots(vmid).get(wanted.name)
            if found is None:
                raise NotFound(f"The snapshot '{wanted.name}' of VM {vmid} was made and is not there.")
        return {**self._snapshot_facts(vmid, found), "frozen": frozen}

    def _will_freeze(self, seen: Seen, wanted: Checkpoint) -> bool:
        """Proxmox VE freezes by itself: always without RAM when the agent answers, never with it."""
        if not wanted.freeze or wanted.ram or not seen.running:
            return False
        if Guest(self.client, self.machines.node, seen.vmid).ping():
            return True
        wanted.warnings.append(
            f"The guest agent of VM {seen.vmid} does not answer: its filesystems are not frozen for the snapshot."
        )
        return False

    def _make_template(self, vmid: int, wanted: Checkpoint) -> dict[str, Any]:
        seen = self._seen(vmid, wanted)
        if not seen.template:
            mark = f"checkpoint={wanted.name} at={_now()}"
            text = str(seen.config.get("description", "")).rstrip()
            if f"checkpoint={wanted.name} " not in text:
                text = "\n".join(filter(None, [text, mark, wanted.description]))
                self.machines.set_config(vmid, {"description": text})
                seen.config["description"] = text
            self.machines.task(self.client.post(self.machines.path(vmid, "template")))
        return self._template_facts(seen, wanted)

    def _is_restored(self, seen: Seen, wanted: Checkpoint, snapshots: dict[str, dict[str, Any]]) -> bool:
        operation = wanted.identity.get("operation") if wanted.identity else None
        if operation is None:
            return False
        if (Identity.parse(seen.config.get("description")) or Identity(())).get("operation") == operation:
            return True
        newest = self.machines.tasks.newest(vmid=seen.vmid)
        rolled_back = newest is not None and newest["type"] == "qmrollback" and newest.get("status") == "OK"
        with_ram = bool(snapshots[wanted.name].get("vmstate"))
        return rolled_back and seen.config.get("parent") == wanted.name and (with_ram or not seen.running)

    def _roll_back(self, vmid: int, wanted: Checkpoint) -> None:
        seen = self._seen(vmid, wanted)
        if not self._is_restored(seen, wanted, self.snapshots(vmid)):
            self.machines.task(self.client.post(self.machines.path(vmid, "snapshot", wanted.name, "rollback")))

    def _remove(self, vmid: int, name: str) -> None:
        self.machines.tasks.settle(vmid=vmid)
        if name not in self.snapshots(vmid):
            return
        try:
            self.machines.task(self.client.delete(self.machines.path(vmid, "snapshot", name)))
        except TaskFailed:
            if name in self.snapshots(vmid):
                raise

    def _promoted_before(self, wanted: Checkpoint, mark: str) -> int | None:
        """The VM that an earlier run has made of this checkpoint, when it was not told which id to take."""
        for vm in self.machines.list():
            if wanted.name.lower() in split_tags(vm.get("tags")) or vm.get("name") == wanted.name:
                text = (self.machines.config(vm["vmid"]) or {}).get("description", "")
                if mark in text.split() and (wanted.identity is None or wanted.identity.owns(text)):
                    return int(vm["vmid"])
        return None

    def _same(self, facts: dict[str, Any]) -> Change:
        return Change({}, {}, facts)

    def _facts(self, vmid: int | None, name: str, carrier: str) -> dict[str, Any]:
        return {
            "name": name,
            "vm_id": vmid,
            "node": self.machines.node,
            "carrier": carrier,
            "size_bytes": None,
            "created_at": None,
            "exists": True,
        }

    def _snapshot_facts(self, vmid: int, entry: dict[str, Any]) -> dict[str, Any]:
        at = datetime.fromtimestamp(int(entry["snaptime"]), UTC).isoformat() if entry.get("snaptime") else None
        return {**self._facts(vmid, entry["name"], "snapshot"), "created_at": at, "ram": bool(entry.get("vmstate"))}

    def _template_facts(self, seen: Seen, wanted: Checkpoint) -> dict[str, Any]:
        _, _, after = str(seen.config.get("description", "")).partition(f"checkpoint={wanted.name} at=")
        return {**self._facts(seen.vmid, wanted.name, "template"), "created_at": after.split()[0] if after else None}

    def _promoted_facts(self, vmid: int, wanted: Checkpoint) -> dict[str, Any]:
        return self._facts(vmid, wanted.name, "template")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _validate(name: str) -> None:
    if not SNAPSHOT_NAME.fullmatch(name) or name in ("current", "pending"):
        raise NotPossible(
            f"'{name}' is not a snapshot name: 2 to 40 characters, a letter first, then letters, digits, '_', '-'."
        )
