"""The collection passes `ansible-test sanity`, is built, and is installed and used elsewhere, as a newcomer would."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
import yaml
from autovibe_lab.tests.testing import LabInThread
from labs import ROOT

COLLECTION = ROOT / "collections" / "ansible_collections" / "autovibe" / "proxmox"
BINARIES = Path(sys.executable).parent
#: Where ansible-test keeps its virtual environments between runs: making them takes minutes.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autovibe" / "ansible-test"
#: Stands where ansible-test would download pip's installer from its own server; this takes Python's, and PyPI.
GET_PIP = """\
import ensurepip, os, subprocess, sys
ensurepip.bootstrap()
os.environ.pop("PIP_CONFIG_FILE", None)  # ensurepip's
options = [one for one in sys.argv[1:] if one not in ("--no-setuptools", "--no-wheel")]
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install", *options]))
"""


def copied(target: Path) -> Path:
    """The collection's files at a path as ansible-test insists on."""
    place = target / "ansible_collections" / "autovibe" / "proxmox"
    shutil.copytree(COLLECTION, place, ignore=shutil.ignore_patterns("__pycache__", "output", "*.tar.gz"))
    return place


def prepared() -> dict[str, str]:
    """An environment whose home has the shim in ansible-test's cache."""
    source = Path(util.find_spec("ansible_test").origin).parent / "_internal" / "python_requirements.py"
    cache = CACHE / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    for version in set(re.findall(r"pip='([0-9.]+)'", source.read_text())):
        (cache / f"get_pip_{version.replace('.', '_')}.py").write_text(GET_PIP)
    configuration = CACHE / ".config" / "pip"
    own = Path.home() / ".config" / "pip"
    if own.is_dir() and not configuration.is_symlink():  # where this user's packages come from
        configuration.parent.mkdir(parents=True, exist_ok=True)
        configuration.symlink_to(own)
    path = f"{BINARIES}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "HOME": str(CACHE), "PATH": path, "LC_ALL": "C.UTF-8"}


@pytest.mark.timeout(1800)
def test_sanity(tmp_path):
    place = copied(tmp_path)
    done = subprocess.run(
        [str(BINARIES / "ansible-test"), "sanity", "--python", f"3.{sys.version_info.minor}", "--color", "no"],
        cwd=place, env=prepared(), capture_output=True, text=True, timeout=1750,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the collection as `ansible-galaxy` has built and installed it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    galaxy = str(BINARIES / "ansible-galaxy")
    env = {**os.environ, "HOME": str(folder), "ANSIBLE_COLLECTIONS_PATH": str(folder)}
    for words in (
        ["build", str(COLLECTION), "--output-path", str(folder)],
        ["install", str(folder / "autovibe-proxmox-0.1.0.tar.gz"), "-p", str(folder), "--offline"],
    ):
        done = subprocess.run([galaxy, "collection", *words], cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_tarball_has_what_is_needed_and_no_more(installed):
    found = installed / "ansible_collections" / "autovibe" / "proxmox"
    assert (found / "plugins" / "action" / "machine.py").is_file()
    assert (found / "meta" / "runtime.yml").is_file()
    assert not [path for path in found.rglob("*") if path.name in ("__pycache__", "output")]


def test_the_readmes_playbook_makes_a_template_and_a_vm(installed):
    readme = (COLLECTION / "README.md").read_text()
    (example,) = re.findall(r"## Ten lines\n```yaml\n(.*?)```", readme, re.DOTALL)
    assert len(example.splitlines()) <= 10
    book = yaml.safe_load(example)
    with contextlib.closing(LabInThread(installed / "lab", null_guests=True)) as lab:
        image = installed / "lab" / "import" / "debian.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M"], check=True)
        user, _, token = (lab.state / "token-id").read_text().strip().partition("!")
        book[0]["module_defaults"]["group/autovibe.proxmox.all"] = {
            "api_host": "127.0.0.1",
            "api_port": lab.lab.port,
            "api_user": user,
            "api_token_id": token,
            "api_token_secret_file": str(lab.state / "token-secret"),
            "ca_path": str(lab.state / "ca.pem"),
            "node": "pve1",
        }
        (installed / "site.yml").write_text(yaml.safe_dump(book, sort_keys=False))
        env = {
            **{key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")},
            "ANSIBLE_COLLECTIONS_PATH": str(installed),
            "ANSIBLE_NOCOLOR": "1",
        }
        for changed in (2, 0):
            done = subprocess.run(
                [str(BINARIES / "ansible-playbook"), "site.yml"], cwd=installed, env=env, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert f"changed={changed} " in done.stdout
