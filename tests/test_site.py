"""`playbooks/site.yml` with the example's inventory: a Debian host with systemd, and a bare lab for the API."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from autovibe_lab.testing import LabInThread
from hosts import REPOSITORY, Host, Play
from network_hosts import network_host
from test_host_role import CHRONY, has_proxmox


class Site:
    """A copy of inventory/example with what an admin changes in it, for one host and one lab."""

    def __init__(self, folder: Path, host: Host) -> None:
        self.host, self.folder = host, folder / "inventory"
        self.lab = LabInThread(folder / "lab", site="bare", null_guests=True)
        shutil.copytree(REPOSITORY / "inventory/example", self.folder)
        secrets = self.folder / "secrets"
        secrets.mkdir(0o700)
        shutil.copy(self.lab.state / "ca.pem", secrets / "pve-root-ca.pem")
        shutil.copy(self.lab.state / "root-password", secrets / "root-password")
        changed = {"proxmox_api_host": "127.0.0.1", "proxmox_api_port": self.lab.lab.port, "proxmox_storage": "local"}
        (self.folder / "group_vars/all/zz-mine.yml").write_text(yaml.safe_dump(changed))
        self.token = secrets / "autovibe-token"

    def play(self, *options: str, **extra: Any) -> Play:
        template = {"template_name": "null", "template_disk_source": "local:1"}
        # The example's pve1 is this host: what is said of it last holds.
        inventories = ("-i", str(self.folder), "-i", str(self.host.inventory))
        return self.host.playbook("playbooks/site.yml", *inventories, *options, **template, **extra)

    def doctor(self) -> dict[str, str]:
        """The findings' states."""
        tool = str(Path(sys.executable).with_name("autovibe"))
        environment = os.environ | {"AUTOVIBE_INVENTORY": str(self.folder), "AUTOVIBE_STATE_DIR": str(self.lab.state)}
        done = subprocess.run([tool, "doctor", "--site", "--json"], env=environment, capture_output=True, text=True)
        return {finding["name"]: finding["state"] for finding in json.loads(done.stdout)}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    variables = {
        "proxmox_host_min_free_gib": 1,
        # A host of these tests may set those of its own network only.
        "proxmox_host_sysctl": {"net.ipv4.conf.all.send_redirects": "0"},
    }
    with network_host(mirror=True, **variables) as h:
        has_proxmox(h)
        h.run(CHRONY + "apt-get -q update")
        made = Site(tmp_path, h)
        try:
            yield made
        finally:
            made.lab.close()


def changed(play: Play) -> dict[str, int]:
    return {host: int(number) for host, number in re.findall(r"^(\S+) +: .*changed=(\d+)", play.output, re.M)}


def test_a_bare_server_becomes_a_site(site: Site) -> None:
    told = site.play("--check", "--diff")
    assert [call for call in site.lab.aids.writes() if call != "POST /access/ticket"] == []
    assert site.host.run("ls /etc/network/interfaces.d").stdout == ""
    real = site.play()
    assert changed(told)["pve1"] == changed(real)["pve1"] > 10
    secret = site.token.read_text()
    assert site.token.stat().st_mode & 0o777 == 0o600
    assert secret not in real.output
    assert "address 192.168.100.1/24" in site.host.read("/etc/network/interfaces.d/autovibe-vmbr1")
    assert "PasswordAuthentication no" in site.host.read("/etc/ssh/sshd_config.d/10-autovibe.conf")
    assert changed(site.play()) == {"localhost": 0, "pve1": 0}
    assert set(site.doctor().values()) == {"ok"}
