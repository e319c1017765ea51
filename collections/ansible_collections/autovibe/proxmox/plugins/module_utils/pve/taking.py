# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A snapshot taken, with the guest's filesystems frozen where its agent answers, and given up where it hangs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .devices import properties
from .errors import FreezeHung, NotFound, Overtaken, TaskFailed, TaskTimeout
from .node import Seen
from .snapshots import Tree
from .tasks import Tasks

if TYPE_CHECKING:
    from .checkpoints import Checkpoint, Checkpoints

#: What the task's log says of a guest that was not frozen.
NO_AGENT = "QEMU Guest Agent is not running"
NO_FREEZE = "guest-fsfreeze-freeze problems"


def taken(
    checkpoints: Checkpoints, vmid: int, wanted: Checkpoint, first: tuple[Seen, Tree] | None = None
) -> dict[str, Any]:
    """The snapshot's facts. `first` is what was seen just now; without it the VM is looked at thoroughly.

    One that another process has begun meanwhile is as good as ours.
    """
    machines = checkpoints.machines
    seen, tree = first or (checkpoints.seen(vmid, wanted.identity), checkpoints.tree(vmid))
    frozen = False
    if wanted.name not in tree:
        values = {
            "snapname": wanted.name,
            "description": wanted.description,
            "vmstate": wanted.ram and seen.running or None,
        }
        try:
            with machines.tasks.shared(machines.node).turn():
                upid = checkpoints.client.post(machines.path(vmid, "snapshot"), **values)
                if seen.running and not wanted.ram:
                    _wait_bounded(checkpoints, upid, vmid, wanted)
                machines.task(upid)
        except TaskFailed as failed:
            if first and (failed.was_locked or "already used" in failed.exitstatus):
                raise Overtaken(f"VM {vmid}: {failed.exitstatus}.") from failed
            if "feature is not available" in failed.exitstatus:
                checkpoints.refuse("snapshot", f"A snapshot of VM {vmid}", seen)
            raise
        frozen = _was_frozen(checkpoints, upid, seen, wanted)
        tree = checkpoints.tree(vmid)
    if wanted.name not in tree:
        raise NotFound(f"The snapshot '{wanted.name}' of VM {vmid} was made and is not there.")
    return {**checkpoints.snapshot_facts(vmid, tree, wanted.name), "frozen": frozen}


def _was_frozen(checkpoints: Checkpoints, upid: str, seen: Seen, wanted: Checkpoint) -> bool:
    """Proxmox VE freezes by itself: always without RAM when the agent answers, never with it; its log says so."""
    if not wanted.freeze or wanted.ram or not seen.running:
        return False
    agent = properties(str(seen.config.get("agent") or ""), "enabled").get("enabled", "0")
    if agent not in ("1", "on", "yes", "true"):
        why = f"The guest agent of VM {seen.vmid} is not enabled"
    elif NO_AGENT in (log := "\n".join(checkpoints.machines.tasks.whole_log(upid))):
        why = f"The guest agent of VM {seen.vmid} does not answer"
    elif NO_FREEZE in log:
        why = f"The guest agent of VM {seen.vmid} could not freeze"
    else:
        return True
    wanted.warnings.append(f"{why}: its filesystems are not frozen for the snapshot.")
    return False


def _wait_bounded(checkpoints: Checkpoints, upid: str, vmid: int, wanted: Checkpoint) -> None:
    """Calls a snapshot off whose guest does not freeze: Proxmox VE itself would wait for an hour."""
    tasks = checkpoints.machines.tasks
    try:
        Tasks(checkpoints.client, tasks.node, min(wanted.freeze_timeout, tasks.timeout)).wait(upid)
    except TaskTimeout as late:
        if any(line.startswith("snapshotting ") for line in late.log):
            return  # frozen, or not frozen; it is at the disks
        checkpoints.client.delete(f"/nodes/{tasks.node}/tasks/{upid}")
        try:
            tasks.wait(upid)
        except TaskFailed as stopped:
            raise FreezeHung(
                f"VM {vmid} did not freeze its filesystems within {wanted.freeze_timeout:g} s, the snapshot "
                f"'{wanted.name}' was called off; look at its guest agent, or save the RAM instead (ram: true).",
                log=stopped.log,
            ) from late
