"""The real Claude Code, through the agent, the gateway and the demo model: all over the hub's own TLS."""

import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from autovibe import allocations
from autovibe.models import Machine, MachineEvent, Usage
from sqlalchemy import func, select

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autovibe"
PROGRAMS = sorted(CACHE.glob("claude-[0-9]*"))

pytestmark = pytest.mark.skipif(not PROGRAMS, reason="no Claude Code in the image's cache: run `autovibe lab image`")


@pytest.fixture(scope="module")
def paid_hub(hub, until, tmp_path_factory):
    """The hub with the demo model as its provider."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "key").write_text("sk-demo")
    argv = [sys.executable, "-m", "autovibe_lab.model", "--key-file", folder / "key", "--port-file", folder / "port"]
    model = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:
        port = until(lambda: (folder / "port").exists() and (folder / "port").read_text())
        hub.down()
        hub.up(AUTOVIBE_UPSTREAM_URL=f"http://127.0.0.1:{port.strip()}", ANTHROPIC_API_KEY="sk-demo")
        yield hub
    finally:
        model.terminate()
        model.wait()
        hub.down()
        hub.up()


@pytest.fixture
def claude_guest(paid_hub, guest):
    folder = guest.root / "usr/local/bin"
    folder.mkdir(parents=True)
    # A copy by hard link where it can be: the user that runs it may not enter the cache.
    try:
        os.link(PROGRAMS[-1], folder / "claude")
    except OSError:
        import shutil

        shutil.copy(PROGRAMS[-1], folder / "claude")
    return guest


def test_it_writes_a_program_and_its_test(paid_hub, claude_guest, until):
    machine = paid_hub.machine("- write a small program with a test", machine_type="claude_code")
    claude_guest.start().push(machine)
    result = until(lambda: paid_hub.get(machine).result, 90)
    assert result["outcome"] == "succeeded", result
    assert result["details"]["num_turns"] > 1
    files = {path.name for path in claude_guest.workspace.iterdir()}
    assert any(name.startswith("test_") for name in files)
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


def test_without_money_it_is_out_of_budget(paid_hub, claude_guest, until):
    machine = paid_hub.machine("write a small program", machine_type="claude_code", budget=Decimal("0.000001"))
    claude_guest.start().push(machine)
    result = until(lambda: paid_hub.get(machine).result, 90)
    assert result["outcome"] == "out_of_budget", result
    assert result["details"]["api_error_status"] == 402
