"""Which snapshots are kept, and the tree that they are in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.backups import goners
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.disks import bases, disks, refuse
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.errors import NotPossible
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.retention import PERIODS, Keep, removed, sorted_out
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.snapshots import Snapshot, Tree
from hypothesis import given
from hypothesis import strategies as st

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


def chain(*hours_ago: float, names: list[str] | None = None) -> Tree:
    """Snapshots in one line, the oldest first; the present state goes on from the last."""
    names = names or [f"s{number}" for number in range(len(hours_ago))]
    taken = [int((NOON - timedelta(hours=hours)).timestamp()) for hours in hours_ago]
    parents = [None, *names]
    return Tree([Snapshot(n, p, t, "", False, True) for n, p, t in zip(names, parents, taken, strict=False)], names[-1])


def kept(tree: Tree, **keep: object) -> dict[str, str]:
    return {name: reason for name, reason in sorted_out(tree, Keep(**keep)).items() if reason}


def test_the_last_ones_are_kept():
    assert kept(chain(5, 4, 3, 2, 1), last=2) == {"s3": "last", "s4": "last"}


def test_a_day_that_has_one_kept_does_not_count_again():
    # Today two, yesterday two, the day before one.
    tree = chain(49, 30, 25, 2, 1)
    assert kept(tree, last=1, daily=2) == {"s4": "last", "s2": "daily", "s0": "daily"}


def test_weeks_are_iso_weeks():
    # 2026-03-10 is a Tuesday; 48 hours before, a Sunday, is another week.
    assert kept(chain(48, 24, 0), weekly=2) == {"s0": "weekly", "s2": "weekly"}


def test_milestones_are_kept_by_name_and_by_a_word_of_the_description_and_are_not_counted():
    tree = chain(4, 3, 2, 1, names=["v1", "old", "marked", "new"])
    tree.by_name["marked"] = Snapshot("marked", "old", tree["marked"].taken, "type=final #keep", False, True)
    assert kept(tree, last=1, milestones=("v*", "#keep")) == {"v1": "milestone", "marked": "milestone", "new": "last"}


def test_a_fork_and_what_the_present_state_goes_on_from_stay():
    snapshots = [*chain(6, 5, 4, 3).by_name.values(), Snapshot("side", "s1", 1, "", False, True)]
    tree = Tree(
        [
            one if one.name != "side" else Snapshot("side", "s1", snapshots[3].taken + 60, "", False, True)
            for one in snapshots
        ],
        "s0",
    )
    assert kept(tree, last=1) == {"side": "last", "s0": "current", "s1": "fork"}
    assert tree.children("s1") == ["s2", "side"]
    assert tree.newer("s2") == ["s3", "side"]


def test_parents_stay_when_asked_for():
    assert kept(chain(3, 2, 1), last=1, parents=True) == {"s0": "parent", "s1": "parent", "s2": "last"}


def test_others_and_broken_ones_are_left_alone():
    tree = chain(4, 3, 2, 1, names=["mine", "auto-1", "auto-2", "auto-3"])
    tree.by_name["auto-1"] = Snapshot("auto-1", "mine", tree["auto-1"].taken, "", False, False)
    reasons = kept(tree, last=1, among=("auto-*",))
    assert reasons == {"mine": "not among these", "auto-1": "not whole", "auto-3": "last"}


def test_a_child_of_the_same_second_is_newer():
    tree = Tree([Snapshot("bb", "aa", 7, "", False, True), Snapshot("aa", None, 7, "", False, True)])
    assert [one.name for one in tree.oldest_first()] == ["aa", "bb"]


@pytest.mark.parametrize("keep", [{}, {"milestones": ("*",)}, {"last": -1, "daily": 2}])
def test_nothing_is_thinned_out_without_saying_what_to_keep(keep):
    with pytest.raises(NotPossible):
        sorted_out(chain(1), Keep(**keep))


@given(
    hours=st.lists(st.floats(0, 20000), min_size=1, max_size=40),
    counts=st.fixed_dictionaries({rule: st.integers(0, 5) for rule in PERIODS}),
)
def test_thinning_out_twice_is_thinning_out_once(hours, counts):
    counts["last"] += 1
    tree = chain(*sorted(hours, reverse=True))
    reasons = sorted_out(tree, Keep(**counts))
    gone = set(removed(reasons))
    assert len(reasons) - len(gone) <= sum(counts.values())
    assert list(reasons)[-1] not in gone
    left = [one for one in tree.oldest_first() if one.name not in gone]
    again = Tree([Snapshot(one.name, None, one.taken, "", False, True) for one in left])
    assert removed(sorted_out(again, Keep(**counts))) == []


def test_a_linked_clones_template_is_read_from_its_disks():
    config = {
        "scsi0": "local:100/base-100-disk-0.qcow2/140/vm-140-disk-0.qcow2,size=2G",
        "virtio1": "tank:base-101-disk-1/vm-140-disk-1,size=8G",
        "sata0": "local:140/vm-140-disk-2.raw,size=1G",
        "ide2": "local:140/vm-140-cloudinit.qcow2,media=cdrom",
        "scsihw": "virtio-scsi-pci",
    }
    assert bases(config) == {100, 101}
    assert [disk.key for disk in disks(config)] == ["scsi0", "virtio1", "sata0"]


def test_what_a_storage_cannot_do_is_refused_with_the_reason():
    with pytest.raises(NotPossible, match=r"A snapshot: Disk local:7/vm-7-disk-0.raw: storage 'local' \(dir, raw\)"):
        refuse("snapshot", "A snapshot", {"scsi0": "local:7/vm-7-disk-0.raw,size=1G"}, {"local": "dir"})
    refuse("snapshot", "A snapshot", {"scsi0": "local:7/vm-7-disk-0.raw,size=1G"}, {})
    with pytest.raises(NotPossible, match="rolls back to the newest snapshot only"):
        refuse("rollback_past", "Back", {"scsi0": "tank:vm-7-disk-0,size=1G"}, {"tank": "zfspool"})


def test_of_backups_the_protected_ones_are_neither_counted_nor_removed():
    listed = [
        {
            "volid": f"local:backup/{hour}",
            "ctime": int((NOON - timedelta(hours=hour)).timestamp()),
            "protected": hour == 2,
        }
        for hour in (4, 3, 2, 1)
    ]
    assert goners(listed, Keep(last=1)) == ["local:backup/4", "local:backup/3"]
    assert goners(listed, None) == []
