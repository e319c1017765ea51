# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What machines have used: what is allocated to them, times how long, and beside it what was measured. No calls.

Allocated is what is billed: it is known exactly, whatever the guest does. Integers, so that sums lose nothing.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from .fleet import MIB, described

BILLED = ("running_seconds", "core_seconds", "memory_mib_seconds", "disk_mib_seconds")
GROUPS = ("pool", "project", "machine_type", "node", "status", "tag")


def used(entry: dict[str, Any], now: float, since: float | None) -> dict[str, Any]:
    """The usage of one VM of `/cluster/resources` until `now`, from `since` (in seconds since 1970) or from its start.

    Cores and memory count while it runs; its disk counts for all of the time since `since`, or else while it runs.
    """
    machine = described(entry)
    span = max(0, int(now - since)) if since is not None else None
    running = machine["uptime"] if machine["status"] == "running" else 0
    if span is not None:
        running = min(running, span)
    disk_seconds = running if span is None else span
    cores = machine["cores"] or 0
    return {
        **{key: machine[key] for key in ("vm_id", "node", "name", "status", "template", "tags", "pool", "project")},
        "machine_type": machine["machine_type"],
        "allocated": {
            "cores": cores,
            "memory_mib": machine["memory"] or 0,
            "disk_mib": int(machine["disk_bytes"] or 0) // MIB,
        },
        "billed": {
            "running_seconds": running,
            "core_seconds": int(cores * running),
            "memory_mib_seconds": (machine["memory"] or 0) * running,
            "disk_mib_seconds": int(machine["disk_bytes"] or 0) // MIB * disk_seconds,
        },
        "measured": {
            "cpu": float(entry.get("cpu") or 0),
            "memory_bytes": int(entry.get("mem") or 0),
            "disk_read_bytes": int(entry.get("diskread") or 0),
            "disk_write_bytes": int(entry.get("diskwrite") or 0),
            "net_in_bytes": int(entry.get("netin") or 0),
            "net_out_bytes": int(entry.get("netout") or 0),
        },
    }


def total(found: list[dict[str, Any]]) -> dict[str, int]:
    """The sum of what is billed, and of how many machines."""
    return {"machines": len(found), **{key: sum(one["billed"][key] for one in found) for key in BILLED}}


def grouped(found: list[dict[str, Any]], by: str) -> dict[str, dict[str, int]]:
    """The sums for each pool, project, … ; with `by` tag, a machine counts in each of its tags. None is ''."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in found:
        for key in one["tags"] if by == "tag" else [one[by] or ""]:
            groups[key].append(one)
    return {key: total(groups[key]) for key in sorted(groups)}
