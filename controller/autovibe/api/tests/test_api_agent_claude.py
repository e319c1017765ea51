"""The real Claude Code, through the agent, the gateway and the demo model: all over the hub's own TLS."""

import json
import os
import signal
from decimal import Decimal

from autovibe import allocations
from autovibe.models import Machine, MachineEvent, Usage
from sqlalchemy import func, select


def test_it_writes_a_program_and_its_test(paid_hub, claude_guest, until):
    machine = paid_hub.machine("- write a small program with a test", machine_type="claude_code")
    claude_guest.start().push(machine)
    result = until(lambda: paid_hub.get(machine).result, 240)
    assert result["outcome"] == "succeeded", result
    assert result["details"]["num_turns"] > 1
    files = {path.name for path in claude_guest.workspace.iterdir()}
    assert any(name.startswith("test_") for name in files)
    assert paid_hub.paid_once(machine) > 0
    with paid_hub.session() as session:
        events = session.scalars(select(MachineEvent).where(MachineEvent.machine_uuid == machine.uuid)).all()
        assert {event.kind for event in events} >= {"text", "tool", "system"}
        spent = session.scalar(select(func.sum(Usage.cost_cad)).where(Usage.machine_uuid == machine.uuid))
        budget = allocations.get(session, machine.project_uuid)
        assert spent == budget.used_amount > 0
        assert budget.reserved_amount == 0
        assert session.get_one(Machine, machine.uuid).api_calls > 0
    seen = claude_guest.log.read_text() + "".join(event.text for event in events)
    assert "sk-demo" not in seen


def test_it_goes_on_with_its_session_after_a_kill_and_a_reboot(paid_hub, claude_guest, until):
    machine = paid_hub.machine("- write a small program with a test", machine_type="claude_code")
    billed = paid_hub.bill()
    claude_guest.start().push(machine)
    until(lambda: (claude_guest.workspace / "wordcount.py").exists(), 240)
    state = claude_guest.root / "var/lib/autovibe/state.json"
    session_id = json.loads(state.read_text())["session"]["session_id"]
    (agent,) = claude_guest.agents()
    os.kill(agent, signal.SIGKILL)
    until(lambda: claude_guest.agents() not in ([], [agent]))
    until(lambda: json.loads(state.read_text())["resumes"] or (claude_guest.workspace / "test_wordcount.py").exists())
    claude_guest.reboot()
    paid_hub.change(machine, generation=2, enrolled_nonce=None, status="spawning")
    claude_guest.push(machine)
    result = until(lambda: paid_hub.get(machine).result, 240)
    assert result["outcome"] == "succeeded", result
    assert result["details"]["session_id"] == session_id
    assert "The tests pass" in result["summary"]
    assert paid_hub.paid_once(machine) == paid_hub.bill() - billed


def test_without_money_it_is_out_of_budget(paid_hub, claude_guest, until):
    machine = paid_hub.machine(
        "write a small program", machine_type="claude_code", budget=Decimal("0.000001"), when_exhausted="end"
    )
    claude_guest.start().push(machine)
    result = until(lambda: paid_hub.get(machine).result, 240)
    assert result["outcome"] == "out_of_budget", result
    assert result["details"]["api_error_status"] == 402
