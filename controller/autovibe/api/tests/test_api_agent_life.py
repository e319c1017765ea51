"""Bootstrap and agent as ordinary processes, in a folder that stands for a machine's root, against a real hub."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from autovibe import ca, machines, operations
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
        assert [file["path"] for file in fresh.manifest["files"]] == ["out.txt", "in/note.txt"]
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
    machine = hub.machine(machine_type="unheard_of")
    guest.start().push(machine)
    assert "no agent type 'unheard_of'" in until(lambda: result_of(hub, machine))["summary"]


def test_a_cli_that_hangs_is_ended_at_its_limit_with_all_it_started(hub, guest, until):
    script = "trap '' TERM; (trap '' TERM; sleep 600) & echo $! > child; wait; sleep 600"
    machine = hub.machine(command=["/bin/sh", "-c", script], limits={"wall_seconds": 1})
    guest.start().push(machine)
    result = until(lambda: result_of(hub, machine))
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


def test_a_restored_machine_takes_its_new_identity_and_goes_on(hub, guest, until):
    machine = hub.machine(command=["/bin/sh", "-c", "echo x >> count; test $(wc -l < count) = 2 || sleep 600"])
    guest.start().push(machine)
    until(lambda: (guest.workspace / "count").exists())
    hub.change(machine, generation=2, enrolled_nonce=None, status="spawning")
    guest.push(machine)
    assert until(lambda: result_of(hub, machine))["outcome"] == "succeeded"
    assert (guest.workspace / "count").read_text() == "x\nx\n"
    assert hub.get(machine).enrolled_generation == 2


#: Counts its starts, and ends only when it is allowed to.
SLOW = "echo x >> count; echo $AUTOVIBE_RESUMED >> resumed; echo $$ > pid; until test -e go; do sleep 0.1; done"


def pid_of_cli(guest, until, other_than=None):
    """The pid that the command has written last, when it is another one."""
    path = guest.workspace / "pid"

    def read():
        text = path.read_text().strip() if path.exists() else ""
        return int(text) if text and int(text) != other_than else None

    return until(read)


def agent_of(cli):
    return int(Path(f"/proc/{cli}/stat").read_text().rpartition(")")[2].split()[1])


def test_an_agent_that_is_killed_goes_on_with_its_work(hub, guest, until):
    machine = hub.machine(command=["/bin/sh", "-c", SLOW])
    guest.start().push(machine)
    first = pid_of_cli(guest, until)
    os.kill(agent_of(first), signal.SIGKILL)
    second = pid_of_cli(guest, until, other_than=first)
    assert has_ended(first)
    # The CLI itself can be killed too: by a guest that has run out of memory.
    os.kill(second, signal.SIGKILL)
    pid_of_cli(guest, until, other_than=second)
    (guest.workspace / "go").touch()
    assert until(lambda: result_of(hub, machine))["outcome"] == "succeeded"
    assert (guest.workspace / "count").read_text() == "x\nx\nx\n"
    assert (guest.workspace / "resumed").read_text() == "0\n1\n1\n"
    assert len([text for text in texts_of(hub, machine) if "going on" in text]) == 2
    assert len(ends_of(hub, machine)) == 1


def test_an_agent_that_is_told_to_end_asks_for_a_checkpoint_first(hub, guest, until):
    machine = hub.machine(command=["/bin/sh", "-c", SLOW])
    guest.start().push(machine)
    first = pid_of_cli(guest, until)
    (agent,) = guest.agents()
    os.kill(agent, signal.SIGTERM)

    def asked():
        with hub.session() as session:
            query = select(Operation).where(Operation.machine_uuid == machine.uuid, Operation.kind == "checkpoint")
            return session.scalars(query).all()

    assert len(until(asked)) == 1
    pid_of_cli(guest, until, other_than=first)
    (guest.workspace / "go").touch()
    assert until(lambda: result_of(hub, machine))["outcome"] == "succeeded"


def test_work_that_is_not_to_be_resumed_is_not(hub, guest, until):
    machine = hub.machine(command=["/bin/sh", "-c", SLOW], limits={"max_resumes": 0})
    guest.start().push(machine)
    cli = pid_of_cli(guest, until)
    os.kill(agent_of(cli), signal.SIGKILL)
    result = until(lambda: result_of(hub, machine))
    assert (result["outcome"], result["summary"]) == ("failed", "the work was interrupted, and it is not to be resumed")
    assert (guest.workspace / "count").read_text() == "x\n"
    until(lambda: has_ended(cli))


def test_work_is_resumed_so_often_and_no_more(hub, guest, until):
    machine = hub.machine(command=["/bin/sh", "-c", "echo x >> count; kill -9 $$"], limits={"max_resumes": 2})
    guest.start().push(machine)
    result = until(lambda: result_of(hub, machine))
    assert (result["outcome"], result["exit_code"]) == ("failed", -9)
    assert (guest.workspace / "count").read_text() == "x\n" * 3


def test_after_a_reboot_the_next_generation_goes_on(hub, guest, until):
    machine = hub.machine(command=["/bin/sh", "-c", SLOW])
    guest.start().push(machine)
    old_token = until(lambda: (guest.workspace / "count").exists() and (guest.root / "run/autovibe/token").read_text())
    guest.reboot()
    hub.change(machine, generation=2, enrolled_nonce=None, status="spawning")
    guest.push(machine)
    until(lambda: (guest.workspace / "count").read_text() == "x\nx\n")
    until(lambda: hub.get(machine).enrolled_generation == 2)
    (guest.workspace / "go").touch()
    assert until(lambda: result_of(hub, machine))["outcome"] == "succeeded"
    assert (guest.workspace / "resumed").read_text() == "0\n1\n"
    assert hub.call("GET", "/agent/v1/assignment", token=old_token).code == "bad_token"


def test_a_result_that_the_hub_has_not_heard_is_told_after_a_reboot(hub, guest, until):
    machine = hub.machine(command=["/bin/sh", "-c", "echo x >> count; until test -e go; do sleep 0.1; done"])
    guest.start().push(machine)
    until(lambda: (guest.workspace / "count").exists())
    hub.down()
    (guest.workspace / "go").touch()
    state = guest.root / "var/lib/autovibe/state.json"
    until(lambda: json.loads(state.read_text())["phase"] == "ended")
    guest.reboot()
    hub.up()
    hub.change(machine, generation=2, enrolled_nonce=None, status="spawning")
    guest.push(machine)
    assert until(lambda: result_of(hub, machine))["outcome"] == "succeeded"
    assert (guest.workspace / "count").read_text() == "x\n"


def test_work_that_failed_while_its_machine_was_being_paused_is_gone_on_with(hub, guest, until):
    machine = hub.machine(command=["/bin/sh", "-c", "echo x >> count; test -e go || exit 3"])
    with hub.session() as session:
        pause = machines.pause(session, hub.settings, session.get_one(Machine, machine.uuid), reason="budget")
    guest.start().push(machine)
    state = guest.root / "var/lib/autovibe/state.json"
    until(lambda: (guest.workspace / "count").exists() and guest.agents() == [])
    assert (json.loads(state.read_text())["phase"], result_of(hub, machine)) == ("started", {})
    guest.reboot()
    with hub.session() as session:
        operations.finish(session, pause.uuid, result={})
    hub.change(machine, generation=2, enrolled_nonce=None, status="spawning")
    (guest.workspace / "go").touch()
    guest.push(machine)
    assert until(lambda: result_of(hub, machine))["outcome"] == "succeeded"
    assert (guest.workspace / "count").read_text() == "x\nx\n"


def test_a_branch_does_its_own_work_where_its_parent_was(hub, guest, until):
    parent, branch = (
        hub.machine(command=["/bin/sh", "-c", SLOW]),
        hub.machine(command=["/bin/sh", "-c", "echo y > own"]),
    )
    guest.start().push(parent)
    until(lambda: (guest.workspace / "count").exists())
    guest.reboot()
    guest.push(branch)
    assert until(lambda: result_of(hub, branch))["outcome"] == "succeeded"
    assert (guest.workspace / "own").read_text() == "y\n"
    assert (guest.workspace / "count").read_text() == "x\n"
    assert result_of(hub, parent) == {}


def test_a_cli_that_makes_no_progress_is_ended_and_gone_on_with(hub, guest, until):
    # Busy, and yet nothing comes of it: that it uses the processor counts for nothing.
    script = "echo x >> count; test $(wc -l < count) = 1 || exit 0; while :; do :; done"
    machine = hub.machine(command=["/bin/sh", "-c", script], limits={"idle_seconds": 2})
    guest.start().push(machine)
    assert until(lambda: result_of(hub, machine))["outcome"] == "succeeded"
    assert [text for text in texts_of(hub, machine) if "no output, model call or changed file for 2 seconds" in text]
    assert (guest.workspace / "count").read_text() == "x\nx\n"


@pytest.mark.parametrize("sign", ["echo .", "touch file"])
def test_output_and_changed_files_are_progress(hub, guest, until, sign):
    # Longer than it may be idle altogether; between two signs there is room for a busy machine to stand still.
    script = f"echo x >> count; for i in $(seq 20); do {sign}; sleep 0.3; done"
    machine = hub.machine(command=["/bin/sh", "-c", script], limits={"idle_seconds": 5})
    guest.start().push(machine)
    assert until(lambda: result_of(hub, machine))["outcome"] == "succeeded"
    assert (guest.workspace / "count").read_text() == "x\n"


def test_a_flood_of_output_ends_the_work(hub, guest, until):
    machine = hub.machine(command=["/bin/sh", "-c", "yes"], limits={"output_bytes": 100_000})
    guest.start().push(machine)
    result = until(lambda: result_of(hub, machine))
    assert (result["outcome"], result["summary"]) == ("failed", "stopped at its limit of 100000 bytes of output")


def test_time_worked_before_a_break_counts(hub, guest, until):
    machine = hub.machine(command=["/bin/sh", "-c", SLOW], limits={"wall_seconds": 600})
    guest.start().push(machine)
    state = guest.root / "var/lib/autovibe/state.json"
    until(lambda: state.exists() and json.loads(state.read_text()).get("worked_seconds", 0) > 0)
    guest.reboot()
    kept = json.loads(state.read_text())
    assert kept["worked_seconds"] < 60
    state.write_text(json.dumps({**kept, "worked_seconds": 599.5}))
    hub.change(machine, generation=2, enrolled_nonce=None, status="spawning")
    guest.push(machine)
    result = until(lambda: result_of(hub, machine))
    assert result["summary"] == "stopped at its limit of 600 seconds"


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


def test_a_hub_that_is_away_is_waited_for_and_told_all(hub, guest, until):
    script = "touch began; n=0; until test -e go; do n=$((n+1)); echo line $n; sleep 0.05; done; echo $n > said"
    machine = hub.machine(command=["/bin/sh", "-c", script])
    hub.down()
    guest.start().push(machine)
    until(lambda: guest.says("trying again"))
    hub.up()
    until(lambda: (guest.workspace / "began").exists())
    hub.down()
    until(lambda: guest.says("hub does not answer"))
    (guest.workspace / "go").touch()
    said = int(until(lambda: (guest.workspace / "said").exists() and (guest.workspace / "said").read_text()))
    hub.up()
    assert until(lambda: result_of(hub, machine))["outcome"] == "succeeded"
    told = [text for text in texts_of(hub, machine) if text.startswith("line")]
    assert told == [f"line {number}" for number in range(1, said + 1)]


def test_what_a_killed_agent_had_not_told_is_told_once(hub, guest, until):
    script = (
        "echo x >> count; test $(wc -l < count) = 1 || exit 0; for i in $(seq 300); do echo line $i; done; sleep 600"
    )
    machine = hub.machine(command=["/bin/sh", "-c", script])
    guest.start().push(machine)
    until(lambda: "line 1" in texts_of(hub, machine))
    (agent,) = guest.agents()
    os.kill(agent, signal.SIGKILL)
    assert until(lambda: result_of(hub, machine))["outcome"] == "succeeded"
    told = [text for text in texts_of(hub, machine) if text.startswith("line")]
    assert told == [f"line {number}" for number in range(1, len(told) + 1)]


def test_a_type_that_a_package_brings_is_served_to_its_machines(hub, guest, until, tmp_path):
    from autovibe.tests.test_agentpack import package

    hub.down()
    hub.up(PYTHONPATH=str(package(tmp_path / "site")))
    try:
        machine = hub.machine("says the goose", machine_type="goose")
        guest.start().push(machine)
        assert until(lambda: result_of(hub, machine))["outcome"] == "succeeded"
        assert "honk: says the goose" in texts_of(hub, machine)
    finally:
        hub.down()
        hub.up()
