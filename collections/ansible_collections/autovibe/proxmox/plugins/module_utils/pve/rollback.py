# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM rolled back to a snapshot, once for each operation that asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .config import Identity
from .errors import Overtaken, TaskFailed
from .machines import Change, persist
from .node import Seen
from .snapshots import Tree

if TYPE_CHECKING:
    from .checkpoints import Checkpoint, Checkpoints


class Found(NamedTuple):
    """What was seen of the VM: itself, its snapshots, and its last task when that matters."""

    seen: Seen
    tree: Tree
    newest: dict[str, Any] | None


def restored(checkpoints: Checkpoints, vmid: int, wanted: Checkpoint, *, check: bool = False) -> Change:
    """The VM as it was at the snapshot. Its configuration, too: rewrite name and description after this.

    With an operation in the identity, a rollback that this operation has done is not done again: the rewritten
    description names the operation. Before that it says which operation is restoring, and after which task; then
    the rollback is the newest thing that happened to the VM.
    """
    found = _glance(checkpoints, vmid, wanted)
    seen, tree, _newest = found
    one = checkpoints.existing(vmid, tree, wanted.name)
    facts = checkpoints.snapshot_facts(vmid, tree, wanted.name)
    done = _is_restored(wanted, found)
    if done and (seen.running or not wanted.start):
        status = checkpoints.machines.power(vmid) if seen.running else seen.status  # it may be paused
        return Change({}, {}, {**facts, "status": status or seen.status})
    before = {"at": wanted.name if done else "later", "status": seen.status}
    if not done:
        newer = ", ".join(tree.newer(wanted.name))
        doing = f"VM {vmid} back to '{wanted.name}' past {newer}"
        checkpoints.refuse("rollback_past", doing, seen if newer else None)
    if not check:
        first = iter([found])
        persist(lambda: _roll_back(checkpoints, vmid, wanted, next(first, None)))
    status = "running" if wanted.start or one.ram else "stopped"
    facts |= {"status": status, "current": True}
    return Change(before, {"at": wanted.name, "status": status}, facts)


def _glance(checkpoints: Checkpoints, vmid: int, wanted: Checkpoint) -> Found:
    seen, tree = checkpoints.glance(vmid, wanted.identity, wanted.name)
    newest = None if _is_noted(seen, wanted) else _newest(checkpoints, vmid, wanted)
    if newest is None or newest.get("endtime"):
        return Found(seen, tree, newest)
    return _thorough(checkpoints, vmid, wanted)  # it has begun, and not locked the VM yet


def _thorough(checkpoints: Checkpoints, vmid: int, wanted: Checkpoint) -> Found:
    return Found(*checkpoints.thorough(vmid, wanted.identity), _newest(checkpoints, vmid, wanted))


def _newest(checkpoints: Checkpoints, vmid: int, wanted: Checkpoint) -> dict[str, Any] | None:
    """The VM's last task. It matters only when an operation rolls back, which it does once."""
    return checkpoints.machines.tasks.newest(vmid=vmid) if _operation(wanted) else None


def _operation(wanted: Checkpoint) -> str | None:
    return wanted.identity.get("operation") if wanted.identity else None


def _is_noted(seen: Seen, wanted: Checkpoint) -> bool:
    """Whether the VM's description names the operation: it is rewritten after the rollback."""
    noted, operation = Identity.parse(seen.config.get("description")), _operation(wanted)
    return bool(noted and operation and noted.get("operation") == operation)


def _is_restored(wanted: Checkpoint, found: Found) -> bool:
    seen, tree, newest = found
    if _is_noted(seen, wanted):
        return True
    noted = Identity.parse(seen.config.get("description")) or Identity(())
    rolled_back = newest is not None and newest["type"] == "qmrollback" and newest.get("status") == "OK"
    ours, _at, before = (noted.get("restoring") or "").partition("@")
    return (
        rolled_back
        and ours == _operation(wanted)
        and before != _instant(newest)
        and seen.config.get("parent") == wanted.name
        and (tree[wanted.name].ram or not seen.running)
    )


def _roll_back(checkpoints: Checkpoints, vmid: int, wanted: Checkpoint, first: Found | None) -> None:
    """`first` is what was seen just now; what another process has begun since makes us look again, thoroughly."""
    machines = checkpoints.machines
    found = first or _thorough(checkpoints, vmid, wanted)
    seen, tree, newest = found
    running = seen.running
    if not _is_restored(wanted, found):
        _note_restoring(checkpoints, seen, wanted, newest)
        path = machines.path(vmid, "snapshot", wanted.name, "rollback")
        try:
            machines.task(lambda: checkpoints.client.post(path))
        except TaskFailed as failed:
            if first and failed.was_locked:
                raise Overtaken(f"VM {vmid}: {failed.exitstatus}.") from failed
            raise
        running = tree[wanted.name].ram  # with its RAM it goes on, without it is stopped
    if wanted.start and not running:
        machines.task(lambda: checkpoints.client.post(machines.path(vmid, "status", "start")))


def _note_restoring(checkpoints: Checkpoints, seen: Seen, wanted: Checkpoint, newest: dict[str, Any] | None) -> None:
    """Writes which operation rolls back, and what happened before: a rollback leaves the description as it is."""
    noted, operation = Identity.parse(seen.config.get("description")), _operation(wanted)
    if noted is None or operation is None:
        return
    line = Identity.of(**{**dict(noted.fields), "restoring": f"{operation}@{_instant(newest)}"}).line()
    _first, newline, rest = str(seen.config["description"]).partition("\n")
    checkpoints.machines.set_config(seen.vmid, {"description": line + newline + rest})


def _instant(task: dict[str, Any] | None) -> str:
    """A task's process, as short as its UPID has it."""
    return ".".join(task["upid"].split(":")[2:5]) if task else ""
