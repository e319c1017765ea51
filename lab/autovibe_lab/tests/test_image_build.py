"""The guest image: what it is keyed by, where it goes, what a build wants. Building it is left to the guests' tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from autovibe_lab import coding_clis, image, image_tools, initramfs
from autovibe_lab.paths import LabPaths


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """Stands for an image: its three files."""
    folder = tmp_path / "cache" / "image-0123456789abcdef"
    folder.mkdir(parents=True)
    for name in ("disk.qcow2", "vmlinux", "initrd"):
        (folder / name).write_text(f"old {name}")
    return folder


def test_installing_a_newer_image_leaves_the_older_one_to_its_disks(built: Path, tmp_path: Path) -> None:
    lab = LabPaths(tmp_path / "lab")
    image.install(built, lab)
    image.install(built, lab)
    assert (lab.imports / "autovibe-guest.qcow2").read_text() == "old disk.qcow2"
    newer = built.with_name("image-fedcba9876543210")
    newer.mkdir()
    for file in built.iterdir():
        (newer / file.name).write_text(f"new {file.name}")
    image.install(newer, lab)
    assert (lab.imports / "autovibe-guest.vmlinux").read_text() == "new vmlinux"
    assert (lab.imports / "autovibe-guest-0123456789abcdef.qcow2").read_text() == "old disk.qcow2"


def test_the_image_changes_its_name_with_what_goes_into_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = image.folder(tmp_path)
    assert image.folder(tmp_path) == before
    monkeypatch.setattr(coding_clis, "CLAUDE_VERSION", "0.0.1")
    assert image.folder(tmp_path) != before
    monkeypatch.undo()
    monkeypatch.setattr(image, "PACKAGES", (*image.PACKAGES, "vim"))
    assert image.folder(tmp_path) != before


def test_prune_keeps_this_versions_files(built: Path) -> None:
    cache = built.parent
    current = image.folder(cache)
    current.mkdir()
    (cache / "rootfs-0.tar").touch()
    (cache / f"claude-{coding_clis.CLAUDE_VERSION}").touch()
    assert sorted(path.name for path in image.prune(cache)) == ["image-0123456789abcdef", "rootfs-0.tar"]
    assert current.is_dir()
    assert (cache / f"claude-{coding_clis.CLAUDE_VERSION}").exists()


def test_a_build_says_which_packages_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_tools, "path", lambda: str(tmp_path))
    with pytest.raises(image.ImageError, match="apt-get install .*e2fsprogs.* mmdebstrap"):
        image.build(cache=tmp_path)


def test_a_build_says_that_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "NEEDED_BYTES", 1 << 62)
    with pytest.raises(image.ImageError, match="no disk space: .* GiB free"):
        image.build(cache=tmp_path)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("deb822", "Types: deb deb-src\nURIs: http://mirror.test/debian\nSuites: bookworm trixie\nComponents: main\n"),
        (
            "one line",
            "deb [signed-by=/x.gpg] http://mirror.test/debian bookworm main\n# deb http://no bookworm main",
        ),
    ],
)
def test_the_hosts_mirror_is_used(file: str, text: str) -> None:
    parse = image._deb822_sources if file == "deb822" else image._one_line_sources
    assert list(parse(text)) == ["deb http://mirror.test/debian bookworm main"]


def test_other_sources_of_the_host_are_not() -> None:
    foreign = "deb http://archive.ubuntu.com/ubuntu jammy main\ndeb https://example.test/cloud-sdk-bookworm main\n"
    assert list(image._one_line_sources(foreign)) == []


def test_the_initial_ram_disk_is_a_cpio_archive_with_the_modules_in_order(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("kernel/virtio.ko", "kernel/virtio_ring.ko", "kernel/other.ko"):
        file = root / "usr/lib/modules/6.1" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/busybox").write_text("busybox")
    archive = initramfs.build(root, image.SOURCES / "initramfs")
    found = dict(entries(archive))
    assert found["modules/order"] == b"virtio_ring\nvirtio\n"
    assert found["bin/busybox"] == b"busybox"
    assert found["init"].startswith(b"#!/bin/busybox sh")
    assert "modules/other.ko" not in found
    assert list(found)[-1] == "TRAILER!!!"


def entries(archive: bytes) -> list[tuple[str, bytes]]:
    """Names and contents in a cpio archive in `newc` form."""
    found, at = [], 0
    while at < len(archive):
        assert archive[at : at + 6] == b"070701"
        numbers = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = archive[at + 110 : at + 110 + numbers[11] - 1].decode()
        start = (at + 110 + numbers[11] + 3) & ~3
        found.append((name, archive[start : start + numbers[6]]))
        at = (start + numbers[6] + 3) & ~3
    return found
