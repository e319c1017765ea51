"""The private folder is in the first place that has one which can be used."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile

import pytest
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve import shared

NAME = f"autovibe-proxmox-{os.getuid()}"


@pytest.fixture
def places(monkeypatch, tmp_path):
    """Three empty places, in the order in which they are tried."""
    found = [tmp_path / name for name in ("runtime", "memory", "temporary")]
    for place in found:
        place.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(found[0]))
    monkeypatch.setattr(shared, "MEMORY", str(found[1]))
    monkeypatch.setattr(tempfile, "tempdir", str(found[2]))
    return found


def test_the_first_one_is_used(places):
    assert shared.folder() == str(places[0] / NAME)


@pytest.mark.parametrize("is_there", ["a file", "open to others", "a link"])
def test_after_one_that_is_not_ours_alone_comes_the_next(places, is_there):
    for place in places[:2]:
        if is_there == "a file":
            (place / NAME).touch()
        elif is_there == "a link":
            (place / NAME).symlink_to(places[2])
        else:
            (place / NAME).mkdir()
            (place / NAME).chmod(0o755)
    assert shared.folder() == str(places[2] / NAME)


def test_after_one_that_cannot_be_made_comes_the_next(monkeypatch, places):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/proc")
    assert shared.folder() == str(places[1] / NAME)


#: In a process of its own, with the second place given.
ASK = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("shared", sys.argv[1])
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)
shared.MEMORY = sys.argv[2]
print(shared.folder())
"""


def test_after_one_that_has_become_read_only_comes_the_next(places):
    runtime = str(places[0] / NAME)
    os.mkdir(runtime, 0o700)
    mount = shlex.join(["mount", "--bind", "-o", "ro", runtime, runtime])
    if subprocess.run(["unshare", "--mount", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace here")
    ask = shlex.join([sys.executable, "-c", ASK, shared.__file__, str(places[1])])
    asked = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{mount} && {ask}"], capture_output=True, text=True, check=False
    )
    assert asked.stdout.strip() == str(places[1] / NAME), asked.stderr
