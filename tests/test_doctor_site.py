"""`autovibe doctor --site`: what it finds on a site that is right, and on ones that are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from autovibe_lab.testing import LabInThread


def findings(state: Path) -> dict[str, dict]:
    environment = os.environ | {"AUTOVIBE_STATE_DIR": str(state)}
    tool = str(Path(sys.executable).with_name("autovibe"))
    done = subprocess.run(
        [tool, "doctor", "--site", "--json"], env=environment, capture_output=True, text=True, timeout=240
    )
    found = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == int(any(finding["state"] == "missing" for finding in found.values())), done.stderr
    return found


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[LabInThread]:
    lab = LabInThread(tmp_path / "lab", site="least", null_guests=True)
    lab.lab.node.pools.create("autovibe", "")
    try:
        yield lab
    finally:
        lab.close()


def test_a_site_that_is_right_lacks_templates_only(lab, tmp_path):
    found = findings(tmp_path)
    assert {name for name, finding in found.items() if finding["state"] == "missing"} == {"templates"}
    assert "Proxmox VE 8" in found["version"]["message"]
    assert found["templates"]["hint"] == "ansible-playbook playbooks/templates.yml"


def test_what_is_wrong_is_named_with_what_to_do(lab, tmp_path):
    config = lab.lab.node.access.config
    config.roles["AutovibeMachines"] = config.roles["AutovibeMachines"] - {"VM.Clone"}
    config.unset_acl("/sdn/zones/localnetwork/vmbr1", "autovibe@pve!autovibe", "AutovibeNetwork")
    config.save()
    found = findings(tmp_path)
    assert "lacks VM.Clone on /pool/autovibe" in found["pool"]["message"]
    assert "the token may not use vmbr1" in found["bridge"]["message"]
    assert "playbooks/host.yml" in found["pool"]["hint"]


def test_what_the_token_may_do_beside_is_named(lab, tmp_path):
    config = lab.lab.node.access.config
    for who in ("autovibe@pve", "autovibe@pve!autovibe"):
        for path, role in (("/vms/900", "PVEVMAdmin"), ("/pool/other", "PVEPoolAdmin"), ("/storage/local", "PVEAdmin")):
            config.set_acl(path, who, role, True)
    config.save()
    found = findings(tmp_path)["privileges"]
    assert found["state"] == "missing"
    for path in ("/vms/900 (", "/pool/other (", "/storage/local ("):
        assert path in found["message"]
    assert "VM.Config.Disk" in found["message"]
    assert "/pool/autovibe" not in found["message"]


def test_a_site_that_does_not_answer_is_one_finding(lab, tmp_path):
    (tmp_path / "lab" / "port").write_text("1")
    found = findings(tmp_path)
    assert list(found) == ["api"]
    assert "Connection refused" in found["api"]["message"]
