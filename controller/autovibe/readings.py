"""Readings: what Proxmox lists of the fleet at one time, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

#: How far what Proxmox lists may lag behind (pvestatd writes it every ten seconds).
LAG = timedelta(seconds=20)


@dataclass(frozen=True)
class Seen:
    """One VM as Proxmox lists it. `uptime` is 0 unless it runs; `machine` is the uuid that its tags name."""

    vm_id: int
    machine: UUID | None
    status: str
    uptime: timedelta
    cores: int
    memory_mib: int
    disk_mib: int
    net_bytes: int

    def ran(self, gap: timedelta, booked: timedelta) -> timedelta:
        """How much of a gap until now it has run, by its uptime, less what of that is `booked` already.

        A clock that leaps makes a gap in which it has not run; one that was started anew has run for its uptime.
        """
        since = self.uptime - booked if self.uptime + LAG >= booked else self.uptime
        return gap if since + LAG >= gap else max(timedelta(0), since)


@dataclass(frozen=True)
class Reading:
    """The fleet at one time."""

    at: datetime
    vms: Mapping[int, Seen]


def reading_of(result: Mapping[str, Any], at: datetime | None = None) -> Reading:
    """What `autovibe.proxmox.usage_info` returned (called without `since`)."""
    measured = at or datetime.fromisoformat(result["measured_at"])
    return Reading(measured, {int(one["vm_id"]): _seen(one) for one in result["usage"]})


def _seen(one: Mapping[str, Any]) -> Seen:
    own = next((tag[3:] for tag in one["tags"] if tag.startswith("id-")), None)
    try:
        machine = UUID(own) if own else None
    except ValueError:
        machine = None
    allocated, measured = one["allocated"], one["measured"]
    return Seen(
        vm_id=int(one["vm_id"]),
        machine=machine,
        status=str(one["status"]),
        uptime=timedelta(seconds=int(one["billed"]["running_seconds"])),
        cores=int(allocated["cores"]),
        memory_mib=int(allocated["memory_mib"]),
        disk_mib=int(allocated["disk_mib"]),
        net_bytes=int(measured["net_in_bytes"]) + int(measured["net_out_bytes"]),
    )
