"""The cloud-init drive."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pycdlib
from autovibe_lab import cloudinit, disks

CONFIG = {
    "name": "m17",
    "net0": "virtio=BC:24:11:00:00:17,bridge=vmbr1",
    "ipconfig0": "ip=192.168.100.17/24",
    "ciuser": "agent",
    "sshkeys": "ssh-ed25519%20AAAA%20a%40b%0A",
}


def test_the_drive_is_an_iso_labelled_cidata_with_the_three_files(tmp_path: Path) -> None:
    target = tmp_path / "vm-100-cloudinit.iso"
    asyncio.run(cloudinit.write_drive(CONFIG, 100, target))
    image = pycdlib.PyCdlib()
    image.open(str(target))
    assert image.pvd.volume_identifier.strip() == b"cidata"
    for name, text in cloudinit.files(CONFIG, 100).items():
        content = io.BytesIO()
        image.get_file_from_iso_fp(content, rr_path=f"/{name}")
        assert content.getvalue().decode() == text
    image.close()


def test_the_drive_is_replaced_and_takes_the_form_that_its_name_says(tmp_path: Path) -> None:
    target = tmp_path / "vm-100-cloudinit.qcow2"
    for name in ("one", "two"):
        asyncio.run(cloudinit.write_drive(CONFIG | {"name": name}, 100, target))
    assert disks.file_format(target) == "qcow2"
    assert list(tmp_path.iterdir()) == [target]


def test_the_files_say_what_proxmox_says() -> None:
    files = cloudinit.files(CONFIG | {"nameserver": "192.0.2.1 192.0.2.2", "searchdomain": "lab.test"}, 100)
    assert "hostname: m17\n" in files["user-data"]
    assert "fqdn: m17.lab.test\n" in files["user-data"]
    assert "  - ssh-ed25519 AAAA a@b\n" in files["user-data"]
    assert files["network-config"] == (
        "version: 1\n"
        "config:\n"
        "    - type: physical\n"
        "      name: eth0\n"
        "      mac_address: 'bc:24:11:00:00:17'\n"
        "      subnets:\n"
        "      - type: static\n"
        "        address: '192.168.100.17'\n"
        "        netmask: '255.255.255.0'\n"
        "    - type: nameserver\n"
        "      address:\n"
        "      - '192.0.2.1'\n"
        "      - '192.0.2.2'\n"
        "      search:\n"
        "      - 'lab.test'\n"
    )


def test_another_name_is_another_instance() -> None:
    one, two = (cloudinit.files(CONFIG | {"name": name}, 100)["meta-data"] for name in ("one", "two"))
    assert one != two
