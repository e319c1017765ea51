"""The Molecule scenarios: each role on a host of its own, made and removed by the scenario."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hosts
import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.timeout(1800)
NEEDS_A_HOST = pytest.mark.skipif(bool(hosts.why_not()), reason=hosts.why_not())


@pytest.mark.parametrize(
    "role",
    [
        "machine",
        "vm_template",
        pytest.param("machine_network", marks=NEEDS_A_HOST),
        pytest.param("proxmox_host", marks=NEEDS_A_HOST),
    ],
)
def test_a_scenario(role: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["molecule", "test", "-s", role], cwd=ROOT, env=os.environ | {"PATH": path, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1750,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
