"""The zipapp that the hub serves."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import zipfile

from autovibe import agentpack


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
