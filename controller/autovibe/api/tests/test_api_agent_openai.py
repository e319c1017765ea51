"""The real qwen-code and aider, through the agent, its local gateway, the hub's gateway and the demo model."""

import json
import os
import signal
from decimal import Decimal

import pytest
from autovibe.models import MachineEvent
from sqlalchemy import select


def said_by(hub, machine):
    with hub.session() as session:
        query = select(MachineEvent).where(MachineEvent.machine_uuid == machine.uuid)
        return {(event.kind, event.text) for event in session.scalars(query)}


def test_qwen_code_writes_a_program_and_goes_on_after_a_kill(paid_hub, guest_with, until):
    guest = guest_with("qwen")
    machine = paid_hub.machine("write a small program with a test", machine_type="qwen_coder")
    billed = paid_hub.bill()
    token = guest.start().push(machine)["token"]
    until(lambda: (guest.workspace / "wordcount.py").exists(), 120)
    state = guest.root / "var/lib/autovibe/state.json"
    session_id = json.loads(state.read_text())["session"]["session_id"]
    os.kill(guest.agents()[0], signal.SIGKILL)
    result = until(lambda: paid_hub.get(machine).result, 120)
    assert result["outcome"] == "succeeded", result
    assert "The tests pass" in result["summary"]
    assert result["details"]["session_id"] == session_id
    assert result["details"]["turns"] >= 3
    assert paid_hub.paid_once(machine) == paid_hub.bill() - billed
    said = said_by(paid_hub, machine)
    assert {kind for kind, _ in said} >= {"text", "tool", "system"}
    seen = guest.log.read_text() + str(said)
    assert "sk-demo" not in seen
    assert token not in seen


@pytest.mark.soak
def test_qwen_code_without_money_is_out_of_budget(paid_hub, guest_with, until):
    machine = paid_hub.machine("write a program", machine_type="qwen_coder", budget=Decimal("0.000001"))
    guest_with("qwen").start().push(machine)
    assert until(lambda: paid_hub.get(machine).result, 120)["outcome"] == "out_of_budget"


@pytest.mark.soak
def test_qwen_code_is_held_to_its_turns(paid_hub, guest_with, until):
    machine = paid_hub.machine(
        "write a small program with a test", machine_type="qwen_coder", limits={"max_turns": 1, "max_resumes": 0}
    )
    guest_with("qwen").start().push(machine)
    result = until(lambda: paid_hub.get(machine).result, 120)
    assert result["outcome"] == "failed"
    assert "limit of turns" in result["summary"]
    assert paid_hub.paid_once(machine) == 1


@pytest.mark.soak
def test_aider_writes_a_program(paid_hub, guest_with, until):
    guest = guest_with("aider")
    machine = paid_hub.machine("write a small program with a test", machine_type="aider")
    billed = paid_hub.bill()
    guest.start().push(machine)
    result = until(lambda: paid_hub.get(machine).result, 300)
    assert result["outcome"] == "succeeded", result
    assert {path.name for path in guest.workspace.iterdir()} == {"wordcount.py", "test_wordcount.py"}
    assert result["details"]["turns"] == paid_hub.paid_once(machine) == paid_hub.bill() - billed
