"""Bootstrap and agent as ordinary processes, in a folder that stands for a machine's root, against a real hub."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from autovibe import ca, machines
from autovibe.models import Machine, MachineEvent, Operation
from sqlalchemy import select


def has_ended(pid):
    """Whether a process is gone, or only waits for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def has_slept(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def result_of(hub, machine):
    return hub.get(machine).result


def ends_of(hub, machine):
    with hub.session() as session:
        query = select(Operation).where(Operation.machine_uuid == machine.uuid, Operation.kind == "terminate")
        return list(session.scalars(query))


def texts_of(hub, machine):
    with hub.session() as session:
        query = select(MachineEvent).where(MachineEvent.machine_uuid == machine.uuid).order_by(MachineEvent.id)
        return [event.text for event in session.scalars(query)]


def test_a_whole_life(hub, guest, until):
    files = [{"path": "in/note.txt", "content_base64": "aGVsbG8=", "mode": "0640"}]
    command = ["/bin/sh", "-c", "cat in/note.txt; echo; echo wrote it > out.txt; echo oops >&2; id -un; env | sort"]
    machine = hub.machine(command=command, files=files)
    guest.start()
    token = guest.push(machine)["token"]
    result = until(lambda: result_of(hub, machine))
    assert (result["outcome"], result["exit_code"]) == ("succeeded", 0)
    assert len(ends_of(hub, machine)) == 1
    assert (guest.workspace / "out.txt").read_text() == "wrote it\n"
    assert (guest.workspace / "in/note.txt").stat().st_mode & 0o777 == 0o640
    with hub.session() as session:
        fresh = session.get_one(Machine, machine.uuid)
        assert [file["path"] for file in fresh.file_modifications["files"]] == ["out.txt", "in/note.txt"]
        assert fresh.outcome == "succeeded"
    said = texts_of(hub, machine)
    assert {"hello", "oops", guest.user} <= set(said)
    assert not [line for line in said if line.startswith(("ANTHROPIC", "PWD=/root", "AUTOVIBE_STATE"))]
    until(lambda: guest.says("work is done"))
    machine_token = (guest.root / "run/autovibe/token").read_text()
    assert (guest.root / "run/autovibe/token").stat().st_mode & 0o777 == 0o600
    for place in (guest.log.read_text(), hub.log.read_text(), "".join(said)):
        assert token not in place
        assert machine_token not in place


def test_the_work_is_not_done_again_by_another_start(hub, guest, until):
    machine = hub.machine(command=["/bin/sh", "-c", "echo x >> count"])
    guest.start().push(machine)
    until(lambda: guest.says("work is done"))
    guest.stop()
    guest.start()
    until(lambda: guest.log.read_text().count("work is done") == 2)
    assert (guest.workspace / "count").read_text() == "x\n"


def test_a_failing_command_is_a_failed_machine(hub, guest, until):
    machine = hub.machine(command=["/bin/sh", "-c", "echo no such thing >&2; exit 3"])
    guest.start().push(machine)
    result = until(lambda: result_of(hub, machine))
    assert (result["outcome"], result["exit_code"]) == ("failed", 3)
    assert "no such thing" in result["summary"]


@pytest.mark.parametrize(
    ("assignment", "summary"),
    [
        ({"command": ["/no/such/program"]}, "could not begin"),
        ({"command": ["true"], "files": [{"path": "../x", "content_base64": ""}]}, "does not stay in the workspace"),
        ({"command": ["true"], "files": [{"path": "/etc/x", "content_base64": ""}]}, "does not stay in the workspace"),
        ({"command": ["true"], "files": [{"path": "x", "content_base64": "!"}]}, "no valid content"),
    ],
)
def test_what_cannot_begin_is_reported(hub, guest, until, assignment, summary):
    machine = hub.machine(**assignment)
    guest.start().push(machine)
    result = until(lambda: result_of(hub, machine))
    assert result["outcome"] == "failed"
    assert summary in result["summary"]
    assert list(guest.workspace.iterdir()) == []


def test_an_unknown_agent_type_is_reported(hub, guest, until):
    machine = hub.machine(machine_type="qwen_coder")
    guest.start().push(machine)
    assert "no agent type 'qwen_coder'" in until(lambda: result_of(hub, machine))["summary"]


def test_a_cli_that_hangs_is_ended_at_its_limit_with_all_it_started(hub, guest, until):
    script = "trap '' TERM; (trap '' TERM; sleep 600) & echo $! > child; wait; sleep 600"
    machine = hub.machine(command=["/bin/sh", "-c", script], limits={"wall_seconds": 1})
    guest.start().push(machine)
    result = until(lambda: result_of(hub, machine), 40)
    assert (result["outcome"], result["summary"]) == ("failed", "stopped at its limit of 1 seconds")
    child = int((guest.workspace / "child").read_text())
    until(lambda: has_ended(child))


def test_told_to_stop_it_stops(hub, guest, until):
    machine = hub.machine(command=["sleep", "600"])
    guest.start().push(machine)
    until(lambda: hub.get(machine).status == "working")
    with hub.session() as session:
        machines.terminate(session, hub.settings, hub.get(machine), reason="a person said so")
    result = until(lambda: result_of(hub, machine))
    assert (result["outcome"], result["summary"]) == ("stopped", "stopped: a person said so")
    assert len(ends_of(hub, machine)) == 1


def test_a_hub_with_another_ca_is_not_talked_to(hub, guest, until, tmp_path):
    machine = hub.machine(command=["touch", "ran"])
    guest.start().push(machine, ca_sha256=ca.ensure(tmp_path).ca_sha256)
    until(lambda: guest.says("does not match the identity's fingerprint"))
    assert hub.get(machine).enrolled_at is None
    guest.push(machine)
    until(lambda: result_of(hub, machine))


def test_a_copy_with_an_old_identity_waits_for_its_own(hub, guest, until):
    original, copy = hub.machine(command=["true"]), hub.machine(command=["touch", "mine"])
    hub.token(original)  # it runs elsewhere, with another nonce
    guest.push(original)
    guest.start()
    until(lambda: guest.says("waiting for another"))
    before = guest.log.read_text()
    time.sleep(1)
    assert guest.log.read_text() == before
    guest.push(copy)
    assert until(lambda: result_of(hub, copy))["outcome"] == "succeeded"
    assert (guest.workspace / "mine").exists()


def test_a_restored_machine_drops_its_old_work_and_takes_its_new_identity(hub, guest, until):
    machine = hub.machine(command=["/bin/sh", "-c", "echo x >> count; test $(wc -l < count) = 2 || sleep 600"])
    guest.start().push(machine)
    until(lambda: (guest.workspace / "count").exists())
    hub.change(machine, generation=2, enrolled_nonce=None, status="spawning")
    guest.push(machine)
    assert until(lambda: result_of(hub, machine), 40)["outcome"] == "succeeded"
    assert (guest.workspace / "count").read_text() == "x\nx\n"
    assert hub.get(machine).enrolled_generation == 2


def test_an_agent_that_is_killed_does_not_repeat_its_prompt(hub, guest, until):
    machine = hub.machine(command=["/bin/sh", "-c", "echo x >> count; echo $$ > pid; sleep 600"])
    guest.start().push(machine)
    cli = int(until(lambda: (guest.workspace / "pid").exists() and (guest.workspace / "pid").read_text()))
    state = json.loads(until(lambda: (guest.root / "run/autovibe/state.json").read_text()))
    assert state["pid"] == cli
    agent = int(Path(f"/proc/{cli}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(agent, signal.SIGKILL)
    result = until(lambda: result_of(hub, machine))
    assert result["outcome"] == "failed"
    assert "not repeated" in result["summary"]
    assert (guest.workspace / "count").read_text() == "x\n"
    until(lambda: has_ended(cli))


def test_half_an_identity_is_no_identity(hub, guest, until):
    machine = hub.machine(command=["true"])
    path = guest.root / "run/autovibe/identity.json"
    path.write_text('{"machine": "x", ')
    guest.start()
    until(lambda: has_slept(guest.process.pid))
    path.write_text('{"machine": "x"}')
    guest.push(machine)
    assert until(lambda: result_of(hub, machine))["outcome"] == "succeeded"
    assert guest.log.read_text().count("\n") <= 3


def test_a_hub_that_is_away_is_waited_for(hub, guest, until):
    machine = hub.machine(command=["/bin/sh", "-c", "touch began; until test -e go; do sleep 0.1; done"])
    hub.down()
    guest.start().push(machine)
    until(lambda: guest.says("trying again"))
    hub.up()
    until(lambda: (guest.workspace / "began").exists())
    hub.down()
    (guest.workspace / "go").touch()
    until(lambda: guest.says("hub does not answer"))
    hub.up()
    assert until(lambda: result_of(hub, machine))["outcome"] == "succeeded"
