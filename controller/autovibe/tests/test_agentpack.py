"""The zipapp that the hub serves."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from autovibe import agentpack, machine_asks


def names(pack):
    return zipfile.ZipFile(io.BytesIO(pack.content)).namelist()


def test_the_same_files_give_the_same_bytes(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(agentpack.package_dir(), copy)
    for path in copy.rglob("*.py"):
        os.utime(path, (1, 1))
        path.chmod(0o600)
    first, second = agentpack.build(agentpack.package_dir()), agentpack.build(copy)
    assert first == second
    assert first.sha256 == hashlib.sha256(first.content).hexdigest()


def test_a_changed_file_gives_another_hash(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(agentpack.package_dir(), copy)
    (copy / "another_type.py").write_text("NAME = 'another'\n")
    assert agentpack.build(copy).sha256 != agentpack.build(agentpack.package_dir()).sha256


def test_tests_and_the_bootstrap_stay_out():
    packed = names(agentpack.current())
    assert "__main__.py" in packed
    assert "autovibe_agent/life.py" in packed
    assert not [name for name in packed if "test" in name or "bootstrap" in name or not name.endswith(".py")]


def test_the_agent_is_not_imported():
    code = "import sys; from autovibe import agentpack; agentpack.current(); print('autovibe_agent' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_it_runs_with_the_standard_library_alone(tmp_path):
    path = tmp_path / "agent.pyz"
    path.write_bytes(agentpack.current().content)
    done = subprocess.run([sys.executable, "-I", "-S", path, "--help"], capture_output=True, text=True, check=True)
    assert "--identity" in done.stdout


def package(folder, name="goose", module="goose_for_autovibe"):
    """A package that brings an agent type, as pip leaves it."""
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(GOOSE)
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[autovibe.agent_types]\n{name} = {module}:GooseAgent\n")
    return folder


GOOSE = """
from autovibe_agent.base import CodingAgent


class GooseAgent(CodingAgent):
    NAME = "goose"

    def argv(self):
        return ["/bin/echo", "honk:", self.assignment.prompt]
"""


def test_a_package_brings_an_agent_type(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(package(tmp_path / "site"))
    assert agentpack.types()["goose"] == "goose_for_autovibe"
    assert "goose" in machine_asks.types()
    pack = agentpack.build(agentpack.package_dir(), agentpack.type_files())
    assert "autovibe_agent/goose.py" in names(pack)
    (tmp_path / "agent.pyz").write_bytes(pack.content)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from autovibe_agent import base; print(base.find_type('goose'))"
    )
    command = [sys.executable, "-I", "-S", "-c", code, tmp_path / "agent.pyz"]
    assert "GooseAgent" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", ["life", "base", "Goose", "a-b", "../x"])
def test_a_type_that_cannot_be_packed_is_said_to_be_none(tmp_path, monkeypatch, name):
    folder = tmp_path / "site"
    package(folder)
    (folder / "goose-1.0.dist-info/entry_points.txt").write_text(
        f"[autovibe.agent_types]\n{name} = goose_for_autovibe:GooseAgent\n"
    )
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(agentpack.BadAgentType):
        agentpack.build(agentpack.package_dir(), agentpack.type_files())


def test_a_package_whose_module_is_missing_is_named(tmp_path, monkeypatch):
    (package(tmp_path / "site") / "goose_for_autovibe.py").unlink()
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(agentpack.BadAgentType, match="goose"):
        agentpack.type_files()
