"""What runs in a null guest, and how text travels to and from it: one character, one byte."""

from __future__ import annotations

import time

import pytest
from autovibe_lab.tests.testing import Client, LabInThread
from proxmoxer import ResourceException


@pytest.fixture
def guest(client):
    machine = client.create()
    client.ok(machine.status.start.post())
    return machine.agent


def run(guest, *command: str, **params: str) -> dict:
    pid = guest.exec.post(command=list(command), **params)["pid"]
    while not (answer := guest("exec-status").get(pid=pid))["exited"]:
        time.sleep(0.01)
    return answer


def wire(text: str) -> str:
    """UTF-8, as a client sends it."""
    return text.encode().decode("latin-1")


def test_programs_say_what_they_would_say(guest):
    assert run(guest, "cat", "/etc/hostname") == {"exited": 1, "exitcode": 0, "out-data": "base\n", "out-truncated": 0}
    answer = run(guest, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (answer["exitcode"], answer["out-data"], answer["err-data"]) == (3, "out\n", "err\n")
    assert run(guest, "cat", **{"input-data": "hello\n"})["out-data"] == "hello\n"
    assert run(guest, "sh", "-c", "false || echo no && echo yes > /tmp/x; cat /tmp/x")["out-data"] == "no\nyes\n"
    assert run(guest, "cat", "/nope")["err-data"] == "cat: /nope: No such file or directory\n"


def test_what_it_does_not_know_ends_well_and_says_nothing(guest):
    for command in (["systemctl", "restart", "x"], ["sh", "-c", "if true; then exit 1; fi"], ["sh", "-c", "exit $X"]):
        assert run(guest, *command) == {"exited": 1, "exitcode": 0}


def test_files_have_modes_and_owners(guest):
    run(guest, "sh", "-c", "mkdir -p /data && umask 077; touch /data/f && chown agent:users /data/f")
    guest("file-write").post(file="/data/f", content="x")
    assert run(guest, "stat", "-c", "%a %U %U:%G", "/data/f")["out-data"] == "600 agent agent:users\n"
    assert run(guest, "sh", "-c", "chmod 0640 /data/f && stat -c %a /data/f")["out-data"] == "640\n"


def test_a_program_that_runs_is_killed(guest):
    pid = guest.exec.post(command=["sleep", "600"])["pid"]
    assert guest("exec-status").get(pid=pid) == {"exited": 0}
    run(guest, "/bin/sh", "-c", f"kill -9 {pid}")
    assert guest("exec-status").get(pid=pid) == {"exited": 1, "signal": 9}


@pytest.mark.parametrize("again", ["reset", "stop"])
def test_what_stands_in_run_is_lost_with_the_boot(client, again):
    machine = client.create()
    client.ok(machine.status.start.post())
    for path in ("/run/identity", "/etc/identity"):
        machine.agent("file-write").post(file=path, content="x")
    client.ok(machine.status(again).post())
    if again == "stop":
        client.ok(machine.status.start.post())
    assert machine.agent("file-read").get(file="/etc/identity")["content"] == "x"
    with pytest.raises(ResourceException, match="No such file"):
        machine.agent("file-read").get(file="/run/identity")


def test_bytes_arrive_as_they_are(guest):
    path, said = "/tmp/Grüße €", "naïve ☃\n"
    guest("file-write").post(file=wire(path), content=wire(said))
    answer = guest("file-read").get(file=wire(path))
    assert (answer["content"].encode("latin-1").decode(), answer["bytes-read"]) == (said, len(said.encode()))
    assert run(guest, "cat", wire(path))["out-data"].encode("latin-1").decode() == said
    assert run(guest, "echo", wire(said.strip()))["out-data"].encode("latin-1").decode() == said
    assert run(guest, "cat", **{"input-data": wire(said)})["out-data"].encode("latin-1").decode() == said


def test_text_that_is_no_bytes_is_refused(client, guest):
    for call, params in (
        (guest.exec.post, {"command": ["echo", "€"]}),
        (guest("file-write").post, {"file": "/tmp/€", "content": "x"}),
        (guest("file-read").get, {"file": "/tmp/€"}),
    ):
        assert client.refused(call, **params).content == "Wide character in subroutine entry"
    # A single byte that is not UTF-8: the agent cannot read the request.
    refused = client.refused(guest.exec.post, command=["echo", "é"])
    assert refused.content == "Agent error: JSON parse error, invalid UTF-8 sequence in string"


def test_the_limits_of_the_agent(client, guest):
    assert client.refused(guest.exec.post, command="cat", **{"input-data": "x" * 65537}).status_code == 400
    assert client.refused(guest("file-write").post, file="/tmp/x", content="x" * 61441).status_code == 400
    assert len(run(guest, "head", "-c", str(1 << 20), "/dev/zero")["out-data"]) == 1 << 20
    pid = guest.exec.post(command=["head", "-c", str(4 << 20), "/dev/zero"])["pid"]
    assert "got timeout" in client.refused(guest("exec-status").get, pid=pid).content
    with pytest.raises(Exception, match="failed to open file '/nodir/f'"):
        guest("file-write").post(file="/nodir/f", content="x")


def test_a_missing_program_costs_a_hang_and_a_596(tmp_path):
    lab = LabInThread(tmp_path / "lab", time_scale=0.01)
    client = Client(lab)
    machine = client.create()
    client.ok(machine.status.start.post())
    for command in (["/no/such/binary"], ["sleep 30"]):
        assert client.refused(machine.agent.exec.post, command=command).status_code == 596
    lab.close()


def test_a_bare_guest_has_an_agent_only_when_it_boots_from_a_cd(tmp_path):
    lab = LabInThread(tmp_path / "lab", time_scale=0.01, bare_guests=True)
    client = Client(lab)
    machine = client.create()
    client.ok(machine.status.start.post())
    assert client.refused(machine.agent.ping.post).content == "QEMU guest agent is not running"
    assert client.wait(machine.status.shutdown.post(timeout=2)) == "VM quit/powerdown failed - got timeout"
    client.ok(machine.status.shutdown.post(timeout=2, forceStop=1))
    iso = lab.state / "template" / "iso" / "agent.iso"
    iso.parent.mkdir(parents=True, exist_ok=True)
    iso.write_bytes(b"")
    other = client.create(101, ide0="local:iso/agent.iso,media=cdrom", boot="order=ide0")
    client.ok(other.status.start.post())
    assert other.agent.ping.post() == {"result": {}}
    lab.close()
