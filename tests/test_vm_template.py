"""Role vm_template against the lab, with guests that are only records: checksums, versions, kills, what is left."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cloud_image import served
from labs import Lab, Run, running_lab
from steps import Task

IMAGE = "tiny-cloudimg-amd64.img"
BUILDS = [
    {"name": "claude-code-template", "vm_id": 800, "cores": 2, "memory": 4096, "disk_size": "20G", "bridge": "vmbr1",
     "docker": True, "tools": ["claude_code", "aider", "qwen_code"]},
    {"name": "hub-template", "vm_id": 801, "cores": 4, "memory": 8192, "disk_size": "50G", "bridge": "vmbr0",
     "docker": True, "tools": ["claude_code"]},
]  # fmt: skip

LIGHT = {"name": "light-template", "vm_id": 810, "bridge": "vmbr1", "agent": False}


class Site:
    """A lab, and beside it a server with a published image."""

    def __init__(self, lab: Lab, folder: Path, url: str) -> None:
        self.lab, self.folder, self.url = lab, folder, url

    def publish(self, size: str = "1M", digest: str | None = None) -> str:
        file = self.folder / IMAGE
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(file), size], check=True)
        digest = digest or hashlib.sha256(file.read_bytes()).hexdigest()
        (self.folder / "SHA256SUMS").write_text(f"{'0' * 64} *another.img\n{digest} *{IMAGE}\n")
        return digest

    def run(self, *options: str, **extra: Any) -> Run:
        return self.lab.play("templates", *options, **{**self.variables(), **extra})

    def ok(self, *options: str, **extra: Any) -> Run:
        run = self.run(*options, **extra)
        assert run.rc == 0, run.output
        return run

    def variables(self) -> dict[str, Any]:
        connection = self.lab.connection()
        return {
            "vm_template_connection": connection,
            "vm_template_image_url": f"{self.url}/{IMAGE}",
            "vm_template_storage": "null",
            "vm_template_pool": "",
            "vm_template_builds": BUILDS,
        }

    def configs(self, name: str) -> list[dict[str, str]]:
        """The VMs of this name, oldest first, as the node's files have them."""
        found = []
        for file in sorted(self.lab.folder.glob("qemu-server/*.conf"), key=lambda file: int(file.stem)):
            lines = file.read_text().splitlines()
            config = dict(line.split(": ", 1) for line in lines if ": " in line and not line.startswith("#"))
            if config.get("name") == name:
                found.append({**config, "vm_id": file.stem})
        return found

    def left(self) -> list[str]:
        """VMs, images and CDs that are there."""
        lab = self.lab.folder
        files = [*lab.glob("import/tiny-*"), *lab.glob("import/.*"), *lab.glob("template/iso/*")]
        names = [vm for build in BUILDS for vm in self.configs(build["name"])]
        return [file.name for file in files] + [vm["name"] for vm in names]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("www")
    with served(folder) as url, running_lab(tmp_path_factory.mktemp("state")) as lab:
        yield Site(lab, folder, url)


def test_an_image_that_is_not_the_published_one_leaves_nothing(site: Site) -> None:
    site.publish(digest="1" * 64)
    run = site.run()
    assert run.rc != 0
    assert re.search(r"checksum mismatch: got '[0-9a-f]{64}' != expect '1{64}'", run.message)
    assert "\n" not in run.message
    assert site.left() == []


@pytest.mark.parametrize(
    ("sums", "says"),
    [(None, "SHA256SUMS cannot be read"), (f"{'1' * 64} *other.img\n", f"has no SHA-256 of {IMAGE}")],
)
def test_an_image_without_a_published_checksum_is_refused(site: Site, sums: str | None, says: str) -> None:
    site.publish()
    (site.folder / "SHA256SUMS").unlink()
    if sums:
        (site.folder / "SHA256SUMS").write_text(sums)
    run = site.run()
    assert says in run.message
    assert "vm_template_image_checksum" in run.message
    assert site.left() == []


def test_the_machines_bridge_is_no_build_bridge(site: Site) -> None:
    assert "Name a bridge with a way out" in site.run(vm_template_build_bridge="vmbr1").message


def test_both_templates_are_made_once_and_as_check_mode_says(site: Site) -> None:
    site.publish()
    told = site.ok("--check", "--diff")
    made = site.ok("--diff")
    assert [r.get("diff") for r in told.results] == [r.get("diff") for r in made.results]
    again, checked = site.ok(), site.ok("--check")
    assert made.changed
    assert not again.changed
    assert not checked.changed
    machine, hub = (site.configs(build["name"])[0] for build in BUILDS)
    assert (machine["vm_id"], hub["vm_id"]) == ("800", "801")
    assert [machine[key] for key in ("cores", "memory", "cpu", "ciupgrade")] == ["2", "4096", "host", "0"]
    assert "bridge=vmbr1,firewall=1" in machine["net0"]
    assert "bridge=vmbr0,firewall=1" in hub["net0"]
    assert "size=20G" in machine["scsi0"]
    assert "size=50G" in hub["scsi0"]
    assert "cloudinit" in machine["ide2"]
    assert not list(site.lab.folder.glob("template/iso/*")), "the CD of the first boot is left"


def test_a_new_image_is_a_new_version_and_one_with_linked_clones_stays(site: Site) -> None:
    wanted = {"vm_template_builds": [LIGHT], "vm_template_keep": 1}
    site.publish()
    site.ok(**wanted)
    clone = Task("machine", {"vm_id": 900, "name": "child", "source": {"vm_id": 810}})
    assert site.lab.tasks_run(clone.play("child")).rc == 0
    for size in ("2M", "3M"):
        site.publish(size)
        assert site.ok(**wanted).changed
    ids = [vm["vm_id"] for vm in site.configs(LIGHT["name"])]
    assert len(ids) == 2
    assert "810" in ids


LONG = pytest.mark.soak
CALLS = [
    *(pytest.param(call, marks=LONG) for call in (r".*/download-url", r".*/upload", r".*/qemu", r".*/status/start")),
    r".*/agent/exec",
]


@pytest.mark.parametrize("call", CALLS)
def test_killed_in_the_middle_it_converges(site: Site, call: str) -> None:
    serial = f"killed at {call}"
    one = {"vm_template_builds": [LIGHT], "vm_template_serial": serial, "vm_template_keep": 1}
    if "download" in call:
        site.publish("5M")
    based_on = {vm["vm_id"] for vm in site.configs(LIGHT["name"])} & {"810"}  # has a linked clone
    site.lab.kill_held("templates", "POST", call, **{**site.variables(), **one})
    site.ok(**one)
    assert not site.ok(**one).changed
    left = site.configs(LIGHT["name"])
    assert len({vm["vm_id"] for vm in left} - based_on) == 1
    assert all(vm["template"] == "1" for vm in left)
    assert not list(site.lab.folder.glob("template/iso/*"))


def test_a_template_of_a_disk_image_is_made_as_before(site: Site) -> None:
    wanted = {"template_name": "plain", "template_disk_source": "null:2"}
    made = site.lab.ok("templates", **wanted)
    assert made.fact("template")["name"] == "plain"
    assert not site.lab.ok("templates", **wanted).changed
