"""The real Claude Code and qwen-code wait for a checkpoint before a risky command; a test makes it, as a worker."""

import pytest
from autovibe.models import Checkpoint, MachineEvent, Operation
from autovibe.tests import world
from sqlalchemy import select

PROMPT = "- write a small program with a test, and clean up"
SCRATCH = [{"path": "scratch/precious.txt", "content_base64": "aGVsbG8="}]
CLIS = [("claude", "claude_code"), ("qwen", "qwen_coder")]


def machine_that_cleans_up(hub, kind, **policy):
    return hub.machine(PROMPT, machine_type=kind, files=SCRATCH, checkpoints={"calls": 0, "seconds": 0, **policy})


def asked_of(hub, machine):
    with hub.session() as session:
        mine = Operation.machine_uuid == machine.uuid, Operation.kind == "checkpoint"
        query = select(Operation.status, Operation.not_before, Checkpoint.description, Checkpoint.file_manifest)
        found = session.execute(query.join(Checkpoint, Checkpoint.uuid == Operation.checkpoint_uuid).where(*mine))
        return [tuple(row) for row in found]


def errors_of(hub, machine):
    with hub.session() as session:
        query = select(MachineEvent.text).where(MachineEvent.machine_uuid == machine.uuid, MachineEvent.kind == "error")
        return list(session.scalars(query))


@pytest.mark.parametrize(("name", "kind"), CLIS)
def test_a_risky_command_runs_once_its_checkpoint_is_there(paid_hub, guest_with, until, name, kind):
    guest = guest_with(name)
    machine = machine_that_cleans_up(paid_hub, kind, risky_seconds=120)
    guest.start().push(machine)
    ((status, not_before, description, manifest),) = until(lambda: asked_of(paid_hub, machine), 120)
    # The model call that the command came with may not be settled yet; nobody waits for it.
    assert (status, not_before) == ("queued", None)
    assert description.startswith("before: rm -rf ")
    assert {"scratch/precious.txt", "wordcount.py"} <= {file["path"] for file in manifest["files"]}
    assert (guest.workspace / "scratch/precious.txt").exists()
    with paid_hub.session() as session:
        assert world.do(session, paid_hub.settings, kind="checkpoint")
    result = until(lambda: paid_hub.get(machine).result, 120)
    assert result["outcome"] == "succeeded", result
    assert not (guest.workspace / "scratch").exists()
    assert len(asked_of(paid_hub, machine)) == 1
    assert not errors_of(paid_hub, machine)


@pytest.mark.parametrize(("name", "kind"), [CLIS[0], pytest.param(*CLIS[1], marks=pytest.mark.soak)])
def test_it_runs_without_one_after_a_while_and_says_so(paid_hub, guest_with, until, name, kind):
    guest = guest_with(name)
    machine = machine_that_cleans_up(paid_hub, kind, risky_seconds=1, hold_seconds=1)
    guest.start().push(machine)
    result = until(lambda: paid_hub.get(machine).result, 120)
    assert result["outcome"] == "succeeded", result
    assert not (guest.workspace / "scratch").exists()
    (said,) = errors_of(paid_hub, machine)
    assert said.startswith("no checkpoint before rm -rf ")
    assert "not made within 1 seconds" in said
