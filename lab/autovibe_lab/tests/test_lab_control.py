"""`autovibe lab`: up, down, status, and what goes wrong with them."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from autovibe_lab import control
from autovibe_lab.cli import lab as command
from autovibe_lab.paths import LabPaths
from click.testing import CliRunner


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    state = tmp_path / "lab"
    yield state
    if state.exists() and (state / control.MARK).exists():
        control.down(state)


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_up_answers_and_down_leaves_nothing(state):
    endpoint = control.up(state, port=0, image=False)
    assert control.up(state, image=False) == endpoint
    assert json.loads((state / "endpoint.json").read_text()) == endpoint
    for name in ("token-secret", "root-password", "lab-token", "key.pem"):
        assert (state / name).stat().st_mode & 0o777 == 0o600
    code, output = invoke("status", "--state", state, "--json")
    assert code == 0
    assert json.loads(output)["guests"] == 0
    assert control.down(state)
    assert not state.exists()
    assert not LabPaths(state).run.exists()
    assert control._daemons(state) == []
    assert not control.down(state)


def test_secrets_and_guests_outlive_a_crash(state):
    endpoint = control.up(state, port=0, image=False)
    secret = (state / "token-secret").read_text()
    LabPaths(state).conf(100).write_text("name: kept\nscsi0: null:100/vm-100-disk-0.qcow2,size=1G\n")
    os.kill(endpoint["pid"], signal.SIGKILL)
    os.waitpid(endpoint["pid"], 0)
    assert not control.status(state)["running"]
    again = control.up(state, port=0, image=False)
    assert again["pid"] != endpoint["pid"]
    assert (state / "token-secret").read_text() == secret
    assert control.status(state)["guests"] == 1


def test_down_after_a_crash_removes_everything(state):
    endpoint = control.up(state, port=0, image=False)
    os.kill(endpoint["pid"], signal.SIGKILL)
    os.waitpid(endpoint["pid"], 0)
    assert invoke("down", "--state", state) == (0, "the lab is down\n")
    assert not state.exists()


def test_a_taken_port_is_one_clear_line(state):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, output = invoke("up", "--state", state, "--port", port, "--no-image")
    assert code == 2
    assert output == f"Error: port {port} on 127.0.0.1 is taken by another program: choose another with --port\n"


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("mine")
    for verb in (("up", "--no-image"), ("down",)):
        code, output = invoke(*verb, "--state", tmp_path)
        assert code == 2
        assert "not a lab's state folder" in output
    assert [file.name for file in tmp_path.iterdir()] == ["precious"]


def test_missing_qemu_says_what_to_install(state, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    code, output = invoke("up", "--state", state, "--port", 0)
    assert code == 1
    assert "apt install qemu-system-x86 qemu-utils socat" in output


def test_another_port_of_a_running_lab_is_refused(state):
    endpoint = control.up(state, port=0, image=False)
    code, output = invoke("up", "--state", state, "--port", 1, "--no-image")
    assert code == 2
    assert f"with port {endpoint['port']}" in output


def test_no_disk_space_is_one_clear_line(state, monkeypatch):
    monkeypatch.setattr(control, "NEEDED", 1 << 60)
    code, output = invoke("up", "--state", state, "--port", 0, "--no-image")
    assert code == 1
    assert output.startswith("Error: no disk space")
