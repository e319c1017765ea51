# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each type of storage can do with a guest's disk, as data; what it can't is refused with the reason.

From the feature tables of Proxmox VE's own storage plugins (PVE::Storage::*Plugin, `volume_has_feature` and
`volume_rollback_is_possible`), and tried on 8.4 for `dir`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Abilities:
    """`snapshot`: take one; `linked_clone`: of a template; `clone_snapshot`: a full clone of a snapshot;
    `rollback_past`: roll back to a snapshot that has newer ones."""

    snapshot: bool = True
    linked_clone: bool = True
    clone_snapshot: bool = True
    rollback_past: bool = True


EVERYTHING = Abilities()
NO_SNAPSHOTS = Abilities(snapshot=False, clone_snapshot=False, rollback_past=False)
NOTHING = Abilities(snapshot=False, linked_clone=False, clone_snapshot=False, rollback_past=False)
ZFS = Abilities(clone_snapshot=False, rollback_past=False)

#: Storages of files: what they can do depends on the format of the disk.
FILES = ("dir", "nfs", "cifs", "glusterfs")
BY_FORMAT = {"qcow2": EVERYTHING, "raw": NO_SNAPSHOTS, "vmdk": NO_SNAPSHOTS}
BY_TYPE = {
    "btrfs": EVERYTHING,
    "lvmthin": EVERYTHING,
    "rbd": EVERYTHING,
    "zfspool": ZFS,
    "zfs": ZFS,
    "lvm": NOTHING,
    "iscsi": NOTHING,
    "iscsidirect": NOTHING,
}

REASONS = {
    "snapshot": "storage '{storage}' ({kind}) takes no snapshots of it; move the disk to qcow2, LVM-thin, ZFS or RBD",
    "linked_clone": "storage '{storage}' ({kind}) cannot make linked clones; say full: true",
    "clone_snapshot": "storage '{storage}' ({kind}) cannot clone a snapshot; clone the present state, or roll back",
    "rollback_past": "storage '{storage}' ({kind}) rolls back to the newest snapshot only; remove the newer ones first",
}


def abilities(kind: str, disk_format: str = "raw") -> Abilities | None:
    """What a storage of type `kind` can do with a disk of a format; None when the type is not known here."""
    if kind in FILES:
        return BY_FORMAT.get(disk_format, NO_SNAPSHOTS)
    return BY_TYPE.get(kind)


def why_not(what: str, volid: str, kinds: dict[str, str]) -> str | None:
    """Why the disk `volid` cannot `what` (a field of Abilities); None when it can, or when nobody knows.

    `kinds` has the type of each storage: `{"local": "dir"}`. What is not known is left to Proxmox VE to refuse.
    """
    storage = volid.partition(":")[0]
    kind = kinds.get(storage)
    found = abilities(kind, disk_format(volid)) if kind else None
    if found is None or getattr(found, what):
        return None
    shown = f"{kind}, {disk_format(volid)}" if kind in FILES else kind
    return f"Disk {volid}: " + REASONS[what].format(storage=storage, kind=shown) + "."


def disk_format(volid: str) -> str:
    """`local:100/vm-100-disk-0.qcow2` → qcow2; volumes of block storages have no suffix and are raw."""
    name = volid.partition(",")[0].rpartition("/")[2]
    suffix = name.rpartition(".")[2]
    return suffix if suffix in BY_FORMAT and "." in name else "raw"
