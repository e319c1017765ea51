# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each type of storage can do with snapshots, as data.

From the feature tables (`volume_has_feature`) and `volume_rollback_is_possible` of PVE 8's storage plugins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .client import Client
from .errors import ApiError, Forbidden, NotPossible

_DISK = re.compile(r"(scsi|virtio|sata|ide|efidisk|tpmstate)\d+")
_BASE = re.compile(r"(?:\d+/)?base-(\d+)-[^/]+/")
ANY = None


@dataclass(frozen=True)
class Kind:
    """`snapshot`: formats that can be snapshotted (ANY: all of them, empty: none).

    `copies_snapshots`: a full clone of a snapshot works. `rolls_back_past`: also past a newer snapshot.
    """

    snapshot: frozenset[str] | None = ANY
    copies_snapshots: bool = True
    rolls_back_past: bool = True

    def takes(self, disk_format: str | None) -> bool:
        """Whether a disk of this format can be snapshotted; one whose format is not known may be."""
        if self.snapshot is ANY:
            return True
        return bool(self.snapshot) and disk_format in (None, *self.snapshot)


_FILES = Kind(snapshot=frozenset({"qcow2"}))
_ZFS = Kind(copies_snapshots=False, rolls_back_past=False)
_NOTHING = Kind(snapshot=frozenset(), copies_snapshots=False)
KINDS: dict[str, Kind] = {
    "dir": _FILES,
    "nfs": _FILES,
    "cifs": _FILES,
    "glusterfs": _FILES,
    "btrfs": Kind(),
    "lvmthin": Kind(),
    "rbd": Kind(),
    "zfspool": _ZFS,
    "zfs": _ZFS,
    "lvm": _NOTHING,
    "iscsi": _NOTHING,
    "iscsidirect": _NOTHING,
}


@dataclass(frozen=True)
class Disk:
    key: str
    volume: str
    storage: str
    size: str | None

    @property
    def format(self) -> str | None:
        """From the file name's ending; None where the storage has no files."""
        ending = self.volume.rpartition("/")[2].rpartition(".")[2]
        return ending if ending in ("qcow2", "raw", "vmdk") else None

    @property
    def base(self) -> int | None:
        """The VM id of the template that this disk is a linked clone of."""
        found = _BASE.match(self.volume.partition(":")[2])
        return int(found.group(1)) if found else None


def disks(config: dict[str, Any]) -> Iterator[Disk]:
    """A VM's own disks, without CD-ROMs and the cloud-init drive."""
    for key, value in config.items():
        if _DISK.fullmatch(key) and ":" in str(value):
            volume, *options = str(value).split(",")
            settings = dict(option.partition("=")[::2] for option in options)
            if settings.get("media") != "cdrom":
                yield Disk(key, volume, volume.partition(":")[0], settings.get("size"))


def bases(config: dict[str, Any]) -> set[int]:
    """The templates that a VM is a linked clone of: none of them can be removed before it."""
    return {disk.base for disk in disks(config) if disk.base is not None}


class Storages:
    """Refuses what a VM's storages cannot do, with the reason. What is not known is left to Proxmox VE to refuse."""

    def __init__(self, client: Client):
        self.client = client

    def refuse_snapshot(self, vmid: int, config: dict[str, Any]) -> None:
        for disk, kind, name in self._kinds(config):
            if not kind.takes(disk.format):
                advice = "move the disk to qcow2" if kind.snapshot else "move the disk to another storage"
                raise NotPossible(
                    f"VM {vmid}: {disk.key} ({disk.volume}) cannot be snapshotted, storage '{disk.storage}' is {name}"
                    f"{' and the disk ' + disk.format if disk.format else ''}; {advice}."
                )

    def refuse_rollback(self, vmid: int, config: dict[str, Any], name: str, newer: list[str]) -> None:
        for disk, kind, of_type in self._kinds(config) if newer else ():
            if not kind.rolls_back_past:
                raise NotPossible(
                    f"VM {vmid} cannot be rolled back to '{name}': storage '{disk.storage}' ({of_type}) goes back to "
                    f"the newest snapshot only; remove {', '.join(newer)} first."
                )

    def refuse_copy(self, vmid: int, config: dict[str, Any], name: str) -> None:
        for disk, kind, of_type in self._kinds(config):
            if not kind.copies_snapshots:
                raise NotPossible(
                    f"Snapshot '{name}' of VM {vmid} cannot be copied: storage '{disk.storage}' ({of_type}) clones the "
                    "present state only; roll back to it and clone the VM, or keep its checkpoints as templates."
                )

    def _kinds(self, config: dict[str, Any]) -> Iterator[tuple[Disk, Kind, str]]:
        types = self._types()
        for disk in disks(config):
            name = types.get(disk.storage, "")
            if name in KINDS:
                yield disk, KINDS[name], name

    def _types(self) -> dict[str, str]:
        """Storage → type, of those that this user may see. One call."""
        try:
            return {entry["storage"]: entry.get("type", "") for entry in self.client.get("/storage")}
        except Forbidden:
            return {}
        except ApiError as error:
            if error.status == 501:
                return {}
            raise
