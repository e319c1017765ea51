# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A snapshot made into a template: one full clone, converted. Its branches are linked clones of that."""

from __future__ import annotations

from typing import Any

from .checkpoints import Checkpoint, Checkpoints, validate
from .config import Wanted
from .errors import NotFound, NotPossible
from .machines import Change, persist
from .node import Seen, Source
from .snapshots import template_name


def promoted(
    checkpoints: Checkpoints,
    vmid: int,
    wanted: Checkpoint,
    target: int | None,
    *,
    pool: str | None = None,
    check: bool = False,
) -> Change:
    """The snapshot as a template of its own, with VM id `target` (the one made before, or the next free one)."""
    validate(wanted.name)
    machines = checkpoints.machines
    seen = machines.settled(vmid)
    given = target
    target = target or _made_before(checkpoints, vmid, wanted, seen)
    found = machines.settled(target) if target else None
    if found is not None:
        machines.check_identity(found, wanted.identity)
        if found.template:
            return Change({}, {}, _facts(checkpoints, found.vmid, wanted))
    else:
        _refuse(checkpoints, vmid, seen, wanted)
    predicted = {"checkpoint": wanted.name, "of": vmid, "carrier": "template"} | ({"vm_id": given} if given else {})
    if check:
        return Change({}, predicted, {**_facts(checkpoints, target, wanted), "exists": False})
    change = machines.ensure(
        target,
        _wanted(vmid, wanted),
        source=lambda: Source(vmid, wanted.name, full=True, storage=wanted.storage),
        pool=pool,
        lookup=False,
    )
    made = change.facts["vm_id"]
    persist(lambda: checkpoints.convert(made))
    return Change({}, predicted, _facts(checkpoints, made, wanted))


def _made_before(checkpoints: Checkpoints, vmid: int, wanted: Checkpoint, seen: Seen | None) -> int | None:
    """The template, also the one whose clone an earlier run has left under way."""
    found = checkpoints.promoted_to(vmid, wanted.name, wanted.identity)
    if found is None and seen and checkpoints.machines.tasks.settle_earlier(vmid=vmid, kind="qmclone"):
        found = checkpoints.promoted_to(vmid, wanted.name, wanted.identity)
    return found


def _wanted(vmid: int, wanted: Checkpoint) -> Wanted:
    return Wanted(
        name=template_name(wanted.name),
        identity=wanted.identity,
        notes="\n".join(filter(None, [f"checkpoint={wanted.name} of={vmid}", wanted.description])),
        tags=[*(wanted.tags or ["autovibe"]), wanted.name.lower()],
    )


def _refuse(checkpoints: Checkpoints, vmid: int, seen: Any, wanted: Checkpoint) -> None:
    if seen is None:
        raise NotFound(f"VM {vmid} does not exist.")
    if seen.template:
        raise NotPossible(f"VM {vmid} is a template; it has no snapshots to promote, make linked clones of it.")
    checkpoints.existing(vmid, checkpoints.tree(vmid), wanted.name)
    checkpoints.refuse("clone_snapshot", f"Snapshot '{wanted.name}' of VM {vmid}", seen)


def _facts(checkpoints: Checkpoints, vmid: int | None, wanted: Checkpoint) -> dict[str, Any]:
    return checkpoints.facts(vmid, wanted.name, "template")
