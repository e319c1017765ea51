# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups of a VM on a backup storage (vzdump archives, or snapshots of a Proxmox Backup Server)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from .config import Identity
from .devices import properties
from .errors import ApiError, NotFound, NotPossible, TaskFailed
from .machines import Change, Machines, persist
from .node import Seen
from .retention import Keep, removed, sorted_out
from .snapshots import Snapshot, Tree

#: Stands for the backup that is made, whose volume id is not known before.
NEW = "(new)"


@dataclass(frozen=True)
class Backup:
    """What is asked for. `max_age` in seconds: None takes any backup, 0 always makes one."""

    storage: str
    max_age: int | None = None
    notes: str | None = None
    protected: bool | None = None
    mode: str = "snapshot"
    compress: str | None = None
    keep: Keep | None = None
    force: bool = False
    identity: Identity | None = None


class Backups:
    def __init__(self, machines: Machines):
        self.machines, self.client = machines, machines.client

    def present(self, vmid: int, wanted: Backup, *, check: bool = False) -> Change:
        """A backup that is young enough, with these notes and protection; then only those that are worth keeping."""
        self.machines.node_of(vmid)
        self.machines.tasks.settle(vmid=vmid)
        seen = self.machines.settled(vmid)
        if seen is None:
            raise NotFound(f"There is no VM {vmid}.")
        self.machines.check_identity(seen, wanted.identity)
        listed = self.of(vmid, wanted.storage)
        newest = self._young(listed, wanted)
        if newest and not self._is_of(seen, newest["volid"]):
            newest = None
        if newest is None:
            return self._made(vmid, wanted, listed, check)
        return self._kept_up(vmid, wanted, listed, newest, check)

    def absent(self, volume: str, wanted: Backup, *, check: bool = False) -> Change:
        found = self.find(volume)
        if found is None:
            return Change({}, {}, {"volume": volume, "exists": False})
        facts = described(found)
        if facts["protected"] and not wanted.force:
            raise NotPossible(f"{volume} is protected; say force, or take the protection off first.")
        if not check:
            persist(lambda: self._remove(volume, facts["protected"]))
        return Change(_shown(facts), {}, {**facts, "exists": False})

    def verified(self, volume: str, *, check: bool = False) -> Change:
        """Nothing is changed; NotPossible when the backup is known to be bad, or (on a PBS) was not verified."""
        facts = described(self.existing(volume))
        if facts["verification"] is None and not facts["format"].startswith("pbs-"):
            # Not a Proxmox Backup Server: what can be had is that the archive opens and holds a configuration.
            text = self.client.get(f"/nodes/{self.machines.node}/vzdump/extractconfig", volume=volume)
            if not str(text or "").strip():
                raise NotPossible(f"{volume} has no configuration in it; make a new backup.")
        elif facts["verification"] != "ok":
            state = facts["verification"] or "not verified yet; add a verify job on the Proxmox Backup Server"
            raise NotPossible(f"{volume}: {state}.")
        return Change({}, {}, facts)

    def of(self, vmid: int, storage: str) -> list[dict[str, Any]]:
        """The VM's backups on a storage as Proxmox VE lists them, oldest first."""
        path = f"/nodes/{self.machines.node}/storage/{storage}/content"
        listed = self.client.get(path, content="backup", vmid=vmid)
        fits = [one for one in listed if int(one.get("vmid") or 0) == vmid and one.get("subtype", "qemu") == "qemu"]
        return sorted(fits, key=lambda one: (one.get("ctime", 0), one["volid"]))

    def newest(self, vmid: int, storage: str) -> str:
        listed = self.of(vmid, storage)
        if not listed:
            raise NotFound(f"Storage '{storage}' has no backup of VM {vmid}.")
        return listed[-1]["volid"]

    def find(self, volume: str) -> dict[str, Any] | None:
        storage = volume.partition(":")[0]
        path = f"/nodes/{self.machines.node}/storage/{storage}/content"
        return next((one for one in self.client.get(path, content="backup") if one["volid"] == volume), None)

    def existing(self, volume: str) -> dict[str, Any]:
        found = self.find(volume)
        if found is None:
            raise NotFound(f"There is no backup {volume}.")
        return found

    def _young(self, listed: list[dict[str, Any]], wanted: Backup) -> dict[str, Any] | None:
        if not listed or wanted.max_age == 0:
            return None
        newest = listed[-1]
        old = wanted.max_age is not None and time.time() - int(newest["ctime"]) > wanted.max_age
        return None if old else newest

    def _is_of(self, seen: Seen, volume: str) -> bool:
        """Whether a backup is of this VM and not of an earlier one with its id; one that cannot be read counts."""
        path = f"/nodes/{self.machines.node}/vzdump/extractconfig"
        try:
            kept = parse_config(str(self.client.get(path, volume=volume) or ""))
        except ApiError:
            return True
        return is_same(seen.config, kept)

    def _made(self, vmid: int, wanted: Backup, listed: list[dict[str, Any]], check: bool) -> Change:
        # The newest of all, also by a node's clock that is ahead of ours.
        at = max([int(time.time()), *(int(one["ctime"]) + 1 for one in listed)])
        new = {"volid": NEW, "ctime": at, "vmid": vmid, "protected": wanted.protected or False}
        goes = goners([*listed, new], wanted.keep)
        before = {"backups": [one["volid"] for one in listed]}
        after = {"backups": [name for name in [*before["backups"], NEW] if name not in goes]}
        for key in ("notes", "protected"):
            if getattr(wanted, key) is not None:
                after[key] = getattr(wanted, key)
        if check:
            return Change(before, after, {**described(new), "volume": None, "exists": False, "removed": goes})
        had = {one["volid"] for one in listed}
        made = persist(lambda: self._make(vmid, wanted, had))
        self._prune(goes)
        return Change(before, after, {**described(made), "removed": goes})

    def _kept_up(
        self, vmid: int, wanted: Backup, listed: list[dict[str, Any]], newest: dict[str, Any], check: bool
    ) -> Change:
        volume = newest["volid"]
        facts = described(newest)
        values = {}
        if wanted.protected is not None and wanted.protected != facts["protected"]:
            values["protected"] = wanted.protected
        if wanted.notes is not None and wanted.notes.rstrip() != (self._notes(newest) or "").rstrip():
            values["notes"] = wanted.notes
        goes = [name for name in goners(listed, wanted.keep) if name != volume]
        names = [one["volid"] for one in listed]
        before = {"backups": names, **{key: facts[key] for key in values}}
        after = {"backups": [name for name in names if name not in goes], **values}
        if not check:
            if values:
                persist(lambda: self.client.put(self._path(volume), **values))
            self._prune(goes)
        return Change(before, after, {**facts, **values, "removed": goes})

    def _make(self, vmid: int, wanted: Backup, had: set[str]) -> dict[str, Any]:
        """One backup; the one that an earlier pass, whose answer was lost, has made is found."""
        self.machines.tasks.settle(vmid=vmid)
        made = [one for one in self.of(vmid, wanted.storage) if one["volid"] not in had]
        if not made:
            notes = wanted.notes.replace("\\", "\\\\").replace("\n", "\\n") if wanted.notes is not None else None
            self.machines.task(
                lambda: self.client.post(
                    f"/nodes/{self.machines.node}/vzdump",
                    vmid=vmid,
                    storage=wanted.storage,
                    mode=wanted.mode,
                    compress=wanted.compress,
                    protected=wanted.protected,
                    notes__template=notes,
                    remove=False,
                )
            )
            made = [one for one in self.of(vmid, wanted.storage) if one["volid"] not in had]
        if not made:
            raise NotFound(f"The backup of VM {vmid} was made and is not on storage '{wanted.storage}'.")
        return made[-1]

    def _prune(self, goes: list[str]) -> None:
        for volume in goes:
            persist(lambda volume=volume: self._remove(volume, False))

    def _remove(self, volume: str, protected: bool) -> None:
        if self.find(volume) is None:
            return
        if protected:
            self.client.put(self._path(volume), protected=False)
        try:
            self.machines.task(self.client.delete(self._path(volume)))
        except TaskFailed:
            if self.find(volume) is not None:
                raise

    def _notes(self, listed: dict[str, Any]) -> str | None:
        """All of the notes: the list has their first line only."""
        if not listed.get("notes"):
            return None
        return self.client.get(self._path(listed["volid"])).get("notes")

    def _path(self, volume: str) -> str:
        return f"/nodes/{self.machines.node}/storage/{volume.partition(':')[0]}/content/{volume}"


def parse_config(text: str) -> dict[str, str]:
    """A VM's present configuration out of the file that a backup keeps; its comment is the description."""
    config: dict[str, str] = {}
    comment = []
    for line in text.partition("\n[")[0].splitlines():
        key, colon, value = line.partition(": ")
        if line.startswith("#") and not line.startswith("#qmdump#"):
            comment.append(unquote(line[1:]))
        elif colon and not line.startswith("#"):
            config[key] = value
    return config | ({"description": "\n".join(comment)} if comment else {})


def is_same(now: dict[str, Any], kept: dict[str, Any]) -> bool:
    """Whether two configurations are of one VM: by its SMBIOS uuid, which each VM is given, and its identity.

    (A clone inherits its source's time of creation.) What only one of them has tells nothing.
    """
    for tell in (_uuid, _machine):
        ours, theirs = tell(now), tell(kept)
        if ours and theirs and ours != theirs:
            return False
    return True


def _uuid(config: dict[str, Any]) -> str | None:
    return (properties(str(config.get("smbios1") or "")).get("uuid") or "").lower() or None


def _machine(config: dict[str, Any]) -> str | None:
    identity = Identity.parse(str(config.get("description") or ""))
    return identity.get("machine") if identity else None


def goners(listed: list[dict[str, Any]], keep: Keep | None) -> list[str]:
    """The volumes that `keep` does not keep; protected ones are neither counted nor removed."""
    if keep is None:
        return []
    free = [one for one in listed if not one.get("protected")]
    tree = Tree(
        [Snapshot(one["volid"], None, int(one["ctime"]), str(one.get("notes", "")), False, True) for one in free]
    )
    return removed(sorted_out(tree, keep))


def described(entry: dict[str, Any]) -> dict[str, Any]:
    at = entry.get("ctime")
    return {
        "volume": entry["volid"],
        "storage": entry["volid"].partition(":")[0] if ":" in entry["volid"] else None,
        "vm_id": int(entry["vmid"]) if entry.get("vmid") else None,
        "created_at": datetime.fromtimestamp(int(at), UTC).isoformat() if at else None,
        "size_bytes": entry.get("size"),
        "format": str(entry.get("format") or ""),
        "notes": entry.get("notes"),
        "protected": bool(entry.get("protected")),
        "encrypted": bool(entry.get("encrypted")),
        "verification": (entry.get("verification") or {}).get("state"),
        "exists": True,
    }


def _shown(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: facts[key] for key in ("volume", "vm_id", "notes", "protected")}
