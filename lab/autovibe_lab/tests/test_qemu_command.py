"""The command line of QEMU, from a guest's Proxmox configuration; and which accelerator it names."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from autovibe_lab import accel, qemu_command
from autovibe_lab.guest import GuestError
from autovibe_lab.paths import LabPaths, Network

CONFIG = {"name": "m17", "scsi0": "local:100/vm-100-disk-0.qcow2,size=8G", "net0": "virtio=BC:24:11:00:00:17,bridge=v"}


@pytest.fixture
def lab(tmp_path: Path) -> LabPaths:
    lab = LabPaths(tmp_path)
    lab.make()
    lab.images(100).mkdir(parents=True)
    for name in ("vm-100-disk-0.qcow2", "vm-100-disk-1.qcow2", "vm-100-cloudinit.qcow2"):
        (lab.images(100) / name).write_bytes(b"QFI\xfb")
    for kind in ("vmlinux", "initrd"):
        (lab.imports / f"autovibe-guest.{kind}").touch()
    return lab


def argv(lab: LabPaths, accel: str = "tcg", **config: str) -> list[str]:
    return qemu_command.command(100, CONFIG | config, lab, Network(18000), accel=accel)


def value(argv: list[str], option: str) -> str:
    return argv[argv.index(option) + 1]


def test_the_network_is_closed_but_for_the_hub(lab: LabPaths) -> None:
    netdev = value(argv(lab), "-netdev")
    assert "restrict=on" in netdev
    assert "ipv6=off" in netdev
    assert netdev.count("guestfwd=") == 1
    assert "guestfwd=tcp:192.168.100.2:8000-cmd:/bin/sh -c " in netdev
    assert netdev.endswith("TCP4:127.0.0.1:18000,,nodelay'")


def test_processors_and_memory(lab: LabPaths) -> None:
    one, four = argv(lab), argv(lab, cores="2", sockets="2", memory="current=2048")
    assert (value(one, "-smp"), value(one, "-m")) == ("1", "512")
    assert (value(four, "-smp"), value(four, "-m")) == ("4", "2048")
    assert "nosmp" in value(one, "-append")
    assert "nosmp" not in value(four, "-append")
    assert value(argv(lab, "kvm"), "-accel") == "kvm"
    assert "tsc=reliable" not in value(argv(lab, "kvm"), "-append")


def test_drives_come_in_boot_order_and_cd_roms_are_read_only(lab: LabPaths) -> None:
    drives = {
        "scsi1": "local:100/vm-100-disk-1.qcow2",
        "ide2": "local:100/vm-100-cloudinit.qcow2,media=cdrom",
        "ide3": "none,media=cdrom",
        "boot": "order=scsi1;scsi0",
    }
    line = argv(lab, **drives)
    blocks = [json.loads(line[at + 1]) for at, option in enumerate(line) if option == "-blockdev"]
    assert [(block["node-name"], block["read-only"]) for block in blocks] == [
        ("drive-scsi1", False),
        ("drive-scsi0", False),
        ("drive-ide2", True),
    ]


def test_smbios_values_are_decoded(lab: LabPaths) -> None:
    serial = base64.b64encode(b"a,b").decode()
    assert value(argv(lab, smbios1=f"base64=1,serial={serial},uuid=1-2"), "-smbios") == "type=1,uuid=1-2,serial=a,,b"


def test_the_agents_port_is_there_when_it_is_enabled(lab: LabPaths) -> None:
    for agent, there in (("1", True), ("enabled=1,fstrim_cloned_disks=1", True), ("0", False)):
        assert any("guest_agent" in argument for argument in argv(lab, agent=agent)) is there


def test_what_is_missing_is_said(lab: LabPaths) -> None:
    with pytest.raises(GuestError, match="volume 'local:100/gone.qcow2' does not exist"):
        argv(lab, scsi0="local:100/gone.qcow2")
    (lab.imports / "autovibe-guest.vmlinux").unlink()
    with pytest.raises(GuestError, match="guest kernel .* is missing: run `autovibe lab up`"):
        argv(lab)


def test_a_kernel_that_does_not_boot_with_kvm_means_tcg_and_is_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, tried = tmp_path / "image-1", []
    built.mkdir()
    for name in ("vmlinux", "initrd"):
        (built / name).write_bytes(b"no kernel")
    real = accel.boots_with_kvm
    monkeypatch.setattr(accel, "boots_with_kvm", lambda *files: tried.append(files) or real(*files, accel="tcg"))
    monkeypatch.setattr(accel, "KVM_DEVICE", Path("/dev/null"))
    assert [accel.probe(built, tmp_path), accel.probe(built, tmp_path)] == ["tcg", "tcg"]
    assert len(tried) == 1


def test_without_the_device_there_is_no_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "KVM_DEVICE", tmp_path / "kvm")
    assert accel.probe(tmp_path / "image-1", tmp_path) == "tcg"
