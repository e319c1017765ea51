"""Disk images, by the real qemu-img."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from autovibe_lab import disks


def write(path: Path, text: str) -> None:
    """Put a text at the disk's start."""
    asyncio.run(_qemu_io(path, f"write -P {ord(text[0])} 0 64k"))


def holds(path: Path, text: str) -> bool:
    return asyncio.run(_qemu_io(path, f"read -P {ord(text[0])} 0 64k"))


async def _qemu_io(path: Path, command: str) -> bool:
    process = await asyncio.create_subprocess_exec("qemu-io", "-c", command, str(path), stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return process.returncode == 0 and b"verification failed" not in output


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "images" / "100" / "base-100-disk-0.qcow2"
    asyncio.run(disks.create(path, "64M"))
    write(path, "a")
    return path


def test_a_linked_clone_holds_only_what_differs_and_names_its_base_relatively(disk: Path, tmp_path: Path) -> None:
    clone = tmp_path / "images" / "101" / "vm-101-disk-0.qcow2"
    asyncio.run(disks.linked_clone(disk, clone))
    assert holds(clone, "a")
    write(clone, "b")
    assert holds(disk, "a")
    assert b"../100/base-100-disk-0.qcow2" in clone.read_bytes()[:4096]
    assert asyncio.run(disks.info(clone)).size == 64 * 1024**2


def test_a_snapshot_comes_back(disk: Path) -> None:
    asyncio.run(disks.snapshot_create(disk, "av-1"))
    write(disk, "b")
    assert asyncio.run(disks.info(disk)).snapshots == ("av-1",)
    asyncio.run(disks.snapshot_apply(disk, "av-1"))
    assert holds(disk, "a")
    asyncio.run(disks.snapshot_delete(disk, "av-1"))
    asyncio.run(disks.snapshot_delete(disk, "av-1"))
    assert asyncio.run(disks.info(disk)).snapshots == ()


def test_a_full_copy_of_a_snapshot_needs_its_source_no_more(disk: Path, tmp_path: Path) -> None:
    asyncio.run(disks.snapshot_create(disk, "av-1"))
    write(disk, "b")
    copies = {name: tmp_path / f"copy-{name}.qcow2" for name in ("snapshot", "current")}
    asyncio.run(disks.full_copy(disk, copies["snapshot"], "av-1"))
    asyncio.run(disks.full_copy(disk, copies["current"]))
    disk.unlink()
    assert holds(copies["snapshot"], "a")
    assert holds(copies["current"], "b")


def test_an_import_keeps_the_version_of_the_image_that_it_was_made_from(tmp_path: Path) -> None:
    for name in ("old", "new"):
        asyncio.run(disks.create(tmp_path / f"image-{name}.qcow2", "8M"))
        write(tmp_path / f"image-{name}.qcow2", name)
    link, target = tmp_path / "image.qcow2", tmp_path / "vm.qcow2"
    link.symlink_to("image-old.qcow2")
    asyncio.run(disks.convert_import(link, target))
    link.unlink()
    link.symlink_to("image-new.qcow2")
    assert holds(target, "old")


def test_a_disk_grows(disk: Path) -> None:
    asyncio.run(disks.resize(disk, "+64M"))
    assert asyncio.run(disks.info(disk)).size == 128 * 1024**2


def test_a_failure_says_what_failed_and_leaves_nothing_half_made(disk: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.qcow2"
    with pytest.raises(disks.DiskError, match="qemu-img convert: .*av-missing|qemu-img convert: Failed"):
        asyncio.run(disks.full_copy(disk, target, "av-missing"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
    with pytest.raises(disks.DiskError, match="already exists"):
        asyncio.run(disks.create(disk, "1M"))
    with pytest.raises(disks.DiskError, match="does not exist"):
        asyncio.run(disks.linked_clone(tmp_path / "none.qcow2", target))
