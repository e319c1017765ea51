# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM's own disks, what they are linked clones of, and what their storages cannot do. Pure functions, no calls."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .errors import NotPossible
from .storage_types import why_not

_DISK = re.compile(r"(scsi|virtio|sata|ide|efidisk|tpmstate)\d+")
_BASE = re.compile(r"(?:\d+/)?base-(\d+)-[^/]+/")


@dataclass(frozen=True)
class Disk:
    """`scsi0: local:140/vm-140-disk-0.qcow2,size=2G` has the volume `local:140/vm-140-disk-0.qcow2`."""

    key: str
    volume: str

    @property
    def storage(self) -> str:
        return self.volume.partition(":")[0]

    @property
    def base(self) -> int | None:
        """The VM id of the template that this disk is a linked clone of."""
        found = _BASE.match(self.volume.partition(":")[2])
        return int(found.group(1)) if found else None


def disks(config: dict[str, Any], cloudinit: bool = False) -> Iterator[Disk]:
    """Without CD-ROMs, and the cloud-init drive only when it is asked for."""
    for key, value in config.items():
        volume, *options = str(value).split(",")
        is_disk = "media=cdrom" not in options or (cloudinit and "cloudinit" in volume)
        if _DISK.fullmatch(key) and ":" in volume and is_disk:
            yield Disk(key, volume)


def bases(config: dict[str, Any]) -> set[int]:
    """The templates that a VM is a linked clone of: none of them can be removed before it."""
    return {disk.base for disk in disks(config) if disk.base is not None}


def refuse(what: str, doing: str, config: dict[str, Any], kinds: dict[str, str]) -> None:
    """NotPossible, with the reason, when a disk's storage has not the ability `what` that `doing` needs."""
    for disk in disks(config):
        if reason := why_not(what, disk.volume, kinds):
            raise NotPossible(f"{doing}: {reason}")
