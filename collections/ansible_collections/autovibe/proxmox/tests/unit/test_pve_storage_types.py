from __future__ import annotations

import re

import pytest
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.storage_types import disk_format, why_not

KINDS = {
    "local": "dir",
    "tank": "zfspool",
    "thin": "lvmthin",
    "thick": "lvm",
    "ceph": "rbd",
    "share": "nfs",
    "new": "plugin",
}


@pytest.mark.parametrize(
    ("what", "volid", "said"),
    [
        ("snapshot", "local:100/vm-100-disk-0.qcow2", None),
        ("snapshot", "local:100/vm-100-disk-0.raw", r"storage 'local' \(dir, raw\) takes no snapshots"),
        ("snapshot", "thick:vm-100-disk-0", "'thick'"),
        ("clone_snapshot", "share:100/vm-100-disk-0.qcow2", None),
        ("clone_snapshot", "tank:vm-100-disk-0", r"'tank' \(zfspool\) cannot clone a snapshot"),
        ("clone_snapshot", "thin:vm-100-disk-0", None),
        ("rollback_past", "tank:base-9-disk-0/vm-100-disk-0", "newest snapshot only; remove the newer ones first"),
        ("rollback_past", "ceph:vm-100-disk-0", None),
        ("linked_clone", "thick:vm-100-disk-0", "say full: true"),
        ("linked_clone", "local:100/base-100-disk-0.raw", None),
        ("snapshot", "new:vm-100-disk-0", None),
        ("snapshot", "unseen:vm-100-disk-0", None),
    ],
)
def test_what_a_storage_cannot_do_is_said_with_its_reason(what, volid, said):
    reason = why_not(what, volid, KINDS)
    if said is None:
        assert reason is None
    else:
        assert re.search(said, reason)


@pytest.mark.parametrize(
    ("volid", "kind"),
    [
        ("local:9/base-9-disk-0.qcow2/100/vm-100-disk-0.qcow2,size=1G", "qcow2"),
        ("thin:vm-100-disk-0", "raw"),
        ("local:100/vm-100-disk-0.raw", "raw"),
    ],
)
def test_the_format_stands_in_the_name(volid, kind):
    assert disk_format(volid) == kind
