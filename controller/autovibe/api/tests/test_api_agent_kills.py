"""Work is interrupted at random: its agent, its CLI, its guest, its hub are killed, its network is cut. It ends well.

A failing run is repeated with AUTOVIBE_SEED=<the seed that it prints>.
"""

import contextlib
import os
import random
import signal
from collections import Counter

import pytest
from autovibe.models import Checkpoint, MachineEvent, Operation
from sqlalchemy import select

KINDS = ("agent", "cli", "guest", "hub", "network")
STEPS = 60
#: Goes on where it was, and says each step that it has done.
SCRIPT = f"""
touch steps
n=$(wc -l < steps)
while [ $n -lt {STEPS} ]; do n=$((n+1)); echo "step $n"; echo "step $n" >> steps; sleep 0.05; done
"""


@pytest.fixture
def rng():
    seed = int(os.environ.get("AUTOVIBE_SEED") or random.randrange(2**32))
    print(f"AUTOVIBE_SEED={seed}")
    return random.Random(seed)


class Interrupter:
    """Interrupts the work of one machine."""

    def __init__(self, hub, guest, machine, progress, until):
        self.hub, self.guest, self.machine, self.progress, self.until = hub, guest, machine, progress, until

    def wait_for(self, more):
        """Until so much more is done, or all is."""
        begun = self.progress()
        self.until(lambda: self.progress() >= begun + more or self.hub.get(self.machine).result, 120)

    def interrupt(self, kind, rng):
        getattr(self, f"_{kind}")(rng)

    def _agent(self, rng):
        self._kill(self.guest.agents())

    def _cli(self, rng):
        self._kill(self.guest.processes(of_cli=True))

    def _guest(self, rng):
        self.guest.crash()
        now = self.hub.get(self.machine)
        # What the hub does for a machine that it starts again; it does not for one that has told its result.
        if not now.result:
            self.hub.change(self.machine, generation=now.generation + 1, enrolled_nonce=None, status="spawning")
        self.guest.push(self.machine)

    def _hub(self, rng):
        self.hub.kill()

    def _network(self, rng):
        """Nothing comes through, and nobody is told so."""
        self.hub.process.send_signal(signal.SIGSTOP)
        try:
            with contextlib.suppress(AssertionError):
                begun = self.progress()
                self.until(lambda: self.progress() > begun + 3, rng.uniform(0.2, 3))
        finally:
            self.hub.process.send_signal(signal.SIGCONT)

    @staticmethod
    def _kill(pids):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def lines_of(path):
    return path.read_text().splitlines() if path.exists() else []


def live(hub, guest, until, kinds, rng):
    """One machine's work, interrupted once in each of these ways."""
    machine = hub.machine(command=["/bin/sh", "-c", SCRIPT], limits={"max_resumes": 100})
    steps = guest.workspace / "steps"
    guest.start().push(machine)
    interrupter = Interrupter(hub, guest, machine, lambda: len(lines_of(steps)), until)
    for kind in kinds:
        interrupter.wait_for(rng.randint(1, STEPS // len(kinds)))
        interrupter.interrupt(kind, rng)
    result = until(lambda: hub.get(machine).result, 120)
    assert result["outcome"] == "succeeded", result
    assert lines_of(steps) == [f"step {number}" for number in range(1, STEPS + 1)]
    with hub.session() as session:
        said = session.scalars(select(MachineEvent.text).where(MachineEvent.machine_uuid == machine.uuid)).all()
        ends = session.scalars(
            select(Operation).where(Operation.machine_uuid == machine.uuid, Operation.kind == "terminate")
        ).all()
        finals = session.scalars(select(Checkpoint).where(Checkpoint.creating_machine_uuid == machine.uuid)).all()
    told = Counter(text for text in said if text.startswith("step"))
    # A step may be said by a CLI that is killed before it notes it; then it is said again, by the next one.
    assert sum(told.values()) <= STEPS + len(kinds)
    assert len(ends) == 1
    assert [row.checkpoint_type for row in finals].count("final") == 1


def test_work_survives_five_interruptions(hub, guest, until, rng):
    live(hub, guest, until, rng.sample(KINDS, len(KINDS)), rng)


@pytest.mark.soak
@pytest.mark.parametrize("life", range(30))
def test_work_survives_many_interruptions(hub, guest, until, rng, life):
    live(hub, guest, until, rng.choices(KINDS, k=10), rng)


@pytest.mark.soak
@pytest.mark.parametrize("life", range(15))
def test_claude_code_survives_interruptions_and_is_paid_once(paid_hub, claude_guest, until, rng, life):
    machine = paid_hub.machine("write a small program with a test", machine_type="claude_code")
    claude_guest.start().push(machine)
    billed = paid_hub.bill()
    interrupter = Interrupter(paid_hub, claude_guest, machine, lambda: paid_hub.get(machine).api_calls, until)
    for kind in rng.choices(("agent", "cli", "guest", "network"), k=4):
        interrupter.wait_for(1)
        interrupter.interrupt(kind, rng)
    result = until(lambda: paid_hub.get(machine).result, 300)
    assert result["outcome"] == "succeeded", result
    assert "The tests pass" in result["summary"]
    assert paid_hub.paid_once(machine) == paid_hub.bill() - billed
