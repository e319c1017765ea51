# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A backup restored as a VM of its own, beside the one that it was made of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .backups import Backups
from .config import Identity, join_tags, split_tags
from .errors import ApiError, IdentityError, NotFound
from .machines import Change, Raced, persist
from .node import Seen

_ID_TAG = re.compile(r"id-[0-9a-f]{32}")


@dataclass
class Restore:
    """`vmid` None takes the next free id. `identity` of the new VM; without one it has none."""

    volume: str
    vmid: int | None = None
    storage: str | None = None
    pool: str | None = None
    unique: bool = True
    start: bool = False
    identity: Identity | None = None

    @property
    def mark(self) -> str:
        """The word of the new VM's description that says what it was restored from."""
        return f"restored={self.volume}"


def restored(backups: Backups, wanted: Restore, *, check: bool = False) -> Change:
    """The VM restored, once: its description says from which backup. Another VM with its id is never touched."""
    machines = backups.machines
    seen = machines.settled(wanted.vmid) if wanted.vmid else _before(backups, wanted)
    if seen is not None and _is_it(seen, wanted):
        if seen.running or not wanted.start:
            return Change({}, {}, _facts(backups, seen.vmid, seen.status, seen.config))
        before = {"status": seen.status}
    else:
        before = {}
        if seen is not None:
            _refuse_others(backups, seen, wanted)
        backups.existing(wanted.volume)
    status = "running" if wanted.start else "stopped"
    after = {"status": status} if before else {"restored": wanted.volume, "status": status}
    if wanted.vmid and not before:
        after["vm_id"] = wanted.vmid
    if check:
        return Change(before, after, _facts(backups, wanted.vmid, status, seen.config if seen else {}))
    made = persist(lambda: _step(backups, wanted))
    return Change(before, after, _facts(backups, made.vmid, status, made.config))


def _step(backups: Backups, wanted: Restore) -> Seen:
    machines = backups.machines
    given = wanted.vmid is not None
    if wanted.vmid is None:
        found = _before(backups, wanted)
        wanted.vmid = found.vmid if found else int(machines.client.get("/cluster/nextid"))
    vmid = wanted.vmid
    if machines.tasks.node:
        machines.tasks.settle(vmid=vmid)
    seen = machines.settled(vmid)
    if seen is None:
        try:
            machines.task(lambda: _post(backups, wanted, vmid))
        except ApiError as error:
            if error.status == 500 and "already exists" in error.reason:
                wanted.vmid = vmid if given else None
                raise Raced(f"VM id {vmid}.") from error
            raise
        seen = machines.settled(vmid)
    if seen is None:
        raise NotFound(f"VM {vmid} was restored and is gone again.")
    if not _is_it(seen, wanted):
        _refuse_others(backups, seen, wanted)
        values = {"description": _description(seen.config, wanted), "tags": _tags(seen.config, wanted)}
        machines.set_config(vmid, values)
        seen.config.update(values)
    if wanted.start and not seen.running:
        machines.task(lambda: machines.client.post(machines.path(vmid, "status", "start")))
    return seen


def _post(backups: Backups, wanted: Restore, vmid: int) -> str:
    return backups.client.post(
        f"/nodes/{backups.machines.node}/qemu",
        vmid=vmid,
        archive=wanted.volume,
        storage=wanted.storage,
        pool=wanted.pool,
        unique=wanted.unique or None,
    )


def _description(config: dict[str, Any], wanted: Restore) -> str:
    """The old text without the identity of the VM that was backed up: this one is another."""
    first, _newline, rest = str(config.get("description") or "").partition("\n")
    text = rest if Identity.parse(first) else "\n".join(filter(None, [first, rest]))
    kept = "\n".join(line for line in text.splitlines() if not line.startswith("restored="))
    line = wanted.identity.line() if wanted.identity else ""
    return "\n".join(filter(None, [line, kept, wanted.mark]))


def _tags(config: dict[str, Any], wanted: Restore) -> str:
    """The old tags with the new VM's id instead of the old one's."""
    tags = [tag for tag in split_tags(config.get("tags")) if not _ID_TAG.fullmatch(tag)]
    machine = wanted.identity.get("machine") if wanted.identity else None
    return join_tags([*tags, f"id-{machine.replace('-', '')}"] if machine else tags)


def _is_it(seen: Seen, wanted: Restore) -> bool:
    text = str(seen.config.get("description") or "")
    return wanted.mark in text.split() and (wanted.identity is None or wanted.identity.owns(text))


def _refuse_others(backups: Backups, seen: Seen, wanted: Restore) -> None:
    if wanted.mark in str(seen.config.get("description") or "").split() or not _just_restored(backups, seen, wanted):
        raise IdentityError(f"VM {seen.vmid} is '{seen.config.get('name', '')}', not a restore of {wanted.volume}.")


def _just_restored(backups: Backups, seen: Seen, wanted: Restore) -> bool:
    """Whether the newest thing that happened to a VM is that we restored it from this: by a run that was broken off."""
    tasks = backups.machines.tasks
    newest = tasks.newest(vmid=seen.vmid)
    if newest is None or newest["type"] != "qmrestore" or newest.get("status") != "OK":
        return False
    # The log names the archive's file, or the snapshot on a Proxmox Backup Server.
    archive = wanted.volume.partition(":")[2].removeprefix("backup/")
    return tasks.is_mine(newest["upid"]) and any(archive in line for line in tasks.whole_log(newest["upid"]))


def _before(backups: Backups, wanted: Restore) -> Seen | None:
    """The VM that an earlier run has restored from this backup with this identity, which was not told an id."""
    machines = backups.machines
    if wanted.identity is None:
        return None
    found = machines.find(identity=wanted.identity, templates=True)
    return machines.settled(found) if found is not None else None


def _facts(backups: Backups, vmid: int | None, status: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"vm_id": vmid, "node": backups.machines.tasks.node, "name": config.get("name"), "status": status}
