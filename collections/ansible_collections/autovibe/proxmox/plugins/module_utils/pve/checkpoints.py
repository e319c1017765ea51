# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints: a snapshot of a VM, or a VM that has become a template. What is made of them is in promotion.py."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from .config import SNAPSHOT_NAME, Identity, split_tags
from .disks import bases, refuse
from .errors import ApiError, NotFound, NotPossible, Overtaken, TaskFailed
from .fleet import machines as fleet_of
from .fleet import with_config
from .machines import Change, Machines, persist
from .node import Seen
from .retention import Keep, removed, sorted_out
from .rollback import restored
from .snapshots import Snapshot, Tree, is_promotion, template_name
from .taking import taken


@dataclass
class Checkpoint:
    """What is asked for. `carrier` is snapshot, template, or auto: a template when the VM has no snapshots.

    `description` None leaves it as it is. `freeze_timeout`: seconds that a guest may hold a snapshot up.
    """

    name: str
    description: str | None = None
    ram: bool = False
    freeze: bool = True
    freeze_timeout: float = 60
    carrier: str = "snapshot"
    start: bool = False
    identity: Identity | None = None
    tags: list[str] | None = None
    storage: str | None = None
    warnings: list[str] = field(default_factory=list)


class Checkpoints:
    def __init__(self, machines: Machines):
        self.machines, self.client = machines, machines.client

    def present(self, vmid: int, wanted: Checkpoint, *, check: bool = False) -> Change:
        validate(wanted.name)
        seen, tree = self.glance(vmid, wanted.identity, wanted.name)
        carrier = wanted.carrier
        if carrier == "auto":
            carrier = "snapshot" if len(tree) and not seen.template else "template"
        if wanted.name in tree:
            return self._described_snapshot(vmid, tree, wanted, check)
        if seen.template and carrier == "template":
            return self._described_template(seen, wanted, check)
        self._refuse(seen, carrier, wanted, tree, check)
        facts = {**self.facts(vmid, wanted.name, carrier), "exists": False}
        if carrier == "snapshot":
            facts |= {"parent": tree.at, "children": [], "current": True, "ram": wanted.ram and seen.running}
            facts["description"] = (wanted.description or "").rstrip()
        if not check and carrier == "template":
            facts = persist(lambda: self._make_template(vmid, wanted))
        elif not check:
            first = iter([(seen, tree)])
            facts = persist(lambda: taken(self, vmid, wanted, next(first, None)))
        return Change({}, _shown(facts), facts)

    def absent(self, vmid: int, wanted: Checkpoint, *, check: bool = False) -> Change:
        """The checkpoint gone. A snapshot's children stay, as its parent's; a template goes only without clones."""
        gone = {**self.facts(vmid, wanted.name, "snapshot"), "exists": False}
        try:
            seen, tree = self.glance(vmid, None, wanted.name)
        except NotFound:
            self.machines.refuse_elsewhere(vmid, wanted.identity)
            return Change({}, {}, gone)
        if seen.template:
            return self._template_absent(seen, wanted, gone, check)
        if wanted.name not in tree:
            return Change({}, {}, gone)
        self.machines.check_identity(seen, wanted.identity)
        gone |= {"parent": tree[wanted.name].parent, "children": tree.children(wanted.name)}
        if not check:
            first = iter([tree])
            persist(lambda: self._remove(vmid, wanted.name, next(first, None)))
        before = _shown({**self.snapshot_facts(vmid, tree, wanted.name), "exists": True})
        reparented = dict.fromkeys(gone["children"], gone["parent"])
        if not reparented:
            return Change(before, {}, gone)
        return Change({**before, "parent_of": dict.fromkeys(reparented, wanted.name)}, {"parent_of": reparented}, gone)

    def restored(self, vmid: int, wanted: Checkpoint, *, check: bool = False) -> Change:
        """The VM as it was at the snapshot."""
        validate(wanted.name)
        return restored(self, vmid, wanted, check=check)

    def retained(self, vmid: int, identity: Identity | None, keep: Keep, *, check: bool = False) -> Change:
        """Only the snapshots that are worth keeping; each removed one's children become its parent's."""
        keep.validate()
        _seen, tree = self.glance(vmid, identity)
        reasons = sorted_out(tree, keep)
        listed = self.machines.list() if removed(reasons) else []
        for name in removed(reasons):
            if self.promoted_to(vmid, name, identity, listed):
                reasons[name] = "promoted"
        goes = removed(reasons)
        for name in () if check else goes:
            first = iter([tree])
            persist(lambda name=name, first=first: self._remove(vmid, name, next(first, None)))
        kept = [{"name": name, "reason": reason} for name, reason in reasons.items() if reason is not None]
        facts = {"vm_id": vmid, "node": self.machines.node, "kept": kept, "removed": goes}
        return Change({"snapshots": list(reasons)}, {"snapshots": [one["name"] for one in kept]}, facts)

    def snapshots(self, vmid: int) -> dict[str, dict[str, Any]]:
        """The VM's snapshots by name as Proxmox VE lists them, without the entry for its present state."""
        listed = self.client.get(self.machines.path(vmid, "snapshot"))
        return {entry["name"]: entry for entry in listed if entry["name"] != "current"}

    def tree(self, vmid: int) -> Tree:
        return Tree.parse(self.client.get(self.machines.path(vmid, "snapshot")))

    def convert(self, vmid: int) -> None:
        """The VM as a template; nothing to do when it is one."""
        self.machines.tasks.settle(vmid=vmid)
        seen = self.machines.settled(vmid)
        if seen is None:
            raise NotFound(f"VM {vmid} does not exist.")
        if seen.template:
            return
        try:
            self.machines.task(lambda: self.client.post(self.machines.path(vmid, "template")))
        except (ApiError, TaskFailed):
            now = self.machines.settled(vmid)
            if now is None or not now.template:  # else another process was faster
                raise

    def promoted_to(
        self, vmid: int, name: str, identity: Identity | None, listed: list[dict[str, Any]] | None = None
    ) -> int | None:
        """The template that was made of this VM's snapshot, found by its tag and confirmed by its description."""
        for vm in self.machines.list() if listed is None else listed:
            if name.lower() in split_tags(vm.get("tags")) or vm.get("name") in (name, template_name(name)):
                text = (self.machines.config(vm["vmid"]) or {}).get("description", "")
                if int(vm["vmid"]) != vmid and is_promotion(text, vmid, name, identity):
                    return int(vm["vmid"])
        return None

    def clones_of(self, vmid: int) -> list[int]:
        """The VMs that are linked clones of a template; one call for each VM."""
        listed = with_config(self.client, fleet_of(self.client))
        return [one["vm_id"] for one in listed if one["vm_id"] != vmid and vmid in bases(one["config"])]

    def refuse(self, what: str, doing: str, seen: Seen | None) -> None:
        """NotPossible when the VM's storages have not this ability (storage_types.py); one call."""
        if seen is not None:
            refuse(what, doing, seen.config, self.machines.storage_types())

    def seen(self, vmid: int, identity: Identity | None) -> Seen:
        """The VM once nothing is under way for it: a snapshot that another process began is there, or failed."""
        self.machines.node_of(vmid)
        self.machines.tasks.settle(vmid=vmid)
        seen = self.machines.settled(vmid)
        if seen is None:
            raise NotFound(f"VM {vmid} does not exist on node {self.machines.node}.")
        self.machines.check_identity(seen, identity)
        return seen

    def thorough(self, vmid: int, identity: Identity | None) -> tuple[Seen, Tree]:
        """The VM as `seen` has it, and its snapshots: five reads."""
        seen = self.seen(vmid, identity)
        return seen, Tree([]) if seen.template else self.tree(vmid)

    def glance(self, vmid: int, identity: Identity | None, name: str = "") -> tuple[Seen, Tree]:
        """The VM and its snapshots by two reads, when nothing seems to be under way for it; else thoroughly.

        A task that has begun and not locked the VM yet is not seen: who writes after this is ready to be overtaken.
        """
        self.machines.node_of(vmid)
        config = self.machines.config(vmid)
        if config is not None and config.get("lock") in (None, "suspended"):
            tree = Tree([]) if int(config.get("template") or 0) else self.tree(vmid)
            seen = Seen(vmid, config, "running" if tree.running else "stopped")
            if name not in tree or tree[name].whole:
                self.machines.check_identity(seen, identity)
                return seen, tree
        return self.thorough(vmid, identity)

    def existing(self, vmid: int, tree: Tree, name: str) -> Snapshot:
        if name not in tree:
            names = ", ".join(sorted(tree.by_name)) or "none at all"
            raise NotFound(f"VM {vmid} has no snapshot '{name}'; there are: {names}.")
        if not tree[name].whole:
            raise NotPossible(f"Snapshot '{name}' of VM {vmid} is not whole, it was broken off; remove it.")
        return tree[name]

    def facts(self, vmid: int | None, name: str, carrier: str) -> dict[str, Any]:
        return {
            "name": name,
            "vm_id": vmid,
            "node": self.machines.tasks.node,
            "carrier": carrier,
            "size_bytes": None,
            "created_at": None,
            "exists": True,
        }

    def snapshot_facts(self, vmid: int, tree: Tree, name: str) -> dict[str, Any]:
        one = tree[name]
        return {
            **self.facts(vmid, name, "snapshot"),
            "created_at": one.created_at,
            "ram": one.ram,
            "description": one.description,
            "parent": one.parent,
            "children": tree.children(name),
            "current": tree.at == name,
        }

    def _described_snapshot(self, vmid: int, tree: Tree, wanted: Checkpoint, check: bool) -> Change:
        one = self.existing(vmid, tree, wanted.name)
        facts = self.snapshot_facts(vmid, tree, wanted.name)
        if wanted.ram and not one.ram:
            wanted.warnings.append(f"The snapshot '{one.name}' of VM {vmid} is there already, without RAM.")
        if wanted.description is None or wanted.description.rstrip() == one.description:
            return Change({}, {}, facts)
        before, facts["description"] = _shown(facts), wanted.description.rstrip()
        if not check:
            path = self.machines.path(vmid, "snapshot", one.name, "config")
            persist(lambda: self.client.put(path, description=wanted.description))
        return Change(before, _shown(facts), facts)

    def _described_template(self, seen: Seen, wanted: Checkpoint, check: bool) -> Change:
        """A template is this checkpoint when its description says so."""
        marked = _mark(wanted.name).search(_text(seen))
        facts = self._template_facts(seen, wanted)
        if marked:
            return Change({}, {}, facts)
        if not check:
            persist(lambda: self._make_template(seen.vmid, wanted))
        return Change({}, _shown(facts), facts)

    def _template_absent(self, seen: Seen, wanted: Checkpoint, gone: dict[str, Any], check: bool) -> Change:
        if not _mark(wanted.name).search(_text(seen)):
            return Change({}, {}, gone)
        self.machines.check_identity(seen, wanted.identity)
        if wanted.carrier == "snapshot":
            raise NotPossible(
                f"Checkpoint '{wanted.name}' is the template {seen.vmid} itself; say carrier: template to remove it."
            )
        if clones := self.clones_of(seen.vmid):
            raise NotPossible(f"Linked clones stand on template {seen.vmid}: VM {', '.join(map(str, clones))}.")
        facts = self._template_facts(seen, wanted)
        if not check:
            persist(lambda: self._remove_template(seen.vmid, wanted))
        return Change(_shown(facts), {}, {**facts, "exists": False})

    def _refuse(self, seen: Seen, carrier: str, wanted: Checkpoint, tree: Tree, check: bool) -> None:
        if seen.template:
            raise NotPossible(f"VM {seen.vmid} is a template; a template has no snapshots, it is a checkpoint itself.")
        if carrier == "template" and seen.running:
            raise NotPossible(f"VM {seen.vmid} is running; only a stopped VM can become a template.")
        if carrier == "template" and len(tree):
            raise NotPossible(f"VM {seen.vmid} has snapshots; it cannot become a template. Promote a snapshot instead.")
        if carrier == "snapshot" and check:  # else it is asked when Proxmox VE has refused the snapshot
            self.refuse("snapshot", f"A snapshot of VM {seen.vmid}", seen)
        if wanted.ram and not seen.running:
            wanted.warnings.append(f"VM {seen.vmid} is stopped: there is no RAM to save.")

    def _make_template(self, vmid: int, wanted: Checkpoint) -> dict[str, Any]:
        seen = self.seen(vmid, wanted.identity)
        text = _text(seen)
        if not _mark(wanted.name).search(text):
            mark = f"checkpoint={wanted.name} at={_now()}"
            text = "\n".join(filter(None, [text, mark, wanted.description]))
            self.machines.set_config(vmid, {"description": text})
            seen.config["description"] = text
        if not seen.template:
            self.machines.task(lambda: self.client.post(self.machines.path(vmid, "template")))
        return self._template_facts(seen, wanted)

    def _remove(self, vmid: int, name: str, tree: Tree | None) -> None:
        first = tree is not None
        if tree is None:
            _seen, tree = self.thorough(vmid, None)
        if name not in tree:
            return
        try:
            self.machines.task(lambda: self.client.delete(self.machines.path(vmid, "snapshot", name)))
        except TaskFailed as failed:
            if name not in self.tree(vmid):
                return
            if first and failed.was_locked:
                raise Overtaken(f"VM {vmid}: {failed.exitstatus}.") from failed
            raise

    def _remove_template(self, vmid: int, wanted: Checkpoint) -> None:
        seen = self.machines.settled(vmid)
        if seen is not None:
            self.machines.check_identity(seen, wanted.identity)
            self.machines.task(lambda: self.client.delete(self.machines.path(vmid), purge=True))

    def _template_facts(self, seen: Seen, wanted: Checkpoint) -> dict[str, Any]:
        found = re.search(_mark(wanted.name).pattern + r" at=(\S+)", _text(seen))
        return {**self.facts(seen.vmid, wanted.name, "template"), "created_at": found.group(1) if found else None}


def _shown(facts: dict[str, Any]) -> dict[str, Any]:
    """What before and after show of a checkpoint."""
    shown = {"checkpoint": facts["name"], "vm_id": facts["vm_id"], "carrier": facts["carrier"]}
    return shown | {key: facts[key] for key in ("description", "parent", "ram") if key in facts}


def _mark(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\S)checkpoint={re.escape(name)}(?!\S)")


def _text(seen: Seen) -> str:
    return str(seen.config.get("description") or "").rstrip()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def validate(name: str) -> None:
    if not SNAPSHOT_NAME.fullmatch(name) or name in ("current", "pending"):
        raise NotPossible(
            f"'{name}' is not a snapshot name: 2 to 40 characters, a letter first, then letters, digits, '_', '-'."
        )
