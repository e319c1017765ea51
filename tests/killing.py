"""Kills, at random, whatever serves machines whose agents run beside null guests (`null_agents`)."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from uuid import UUID

import psutil
from autovibe import db, postgres
from autovibe.models import Machine, Operation
from autovibe.operations import MAX_ATTEMPTS
from autovibe.settings import load_settings
from null_agents import AWAY, NullAgents
from sites import Site
from sqlalchemy import func, select

#: Of one machine: its agent; its command; its VM is stopped, or reset.
OF_A_MACHINE = ("agent", "command", "guest", "reset")
#: Of all of them: the worker; a process of the machines' API and the gateway; all of the hub's; these with their
#: Ansible and the database; the network, which is silent for a while.
OF_THE_HUB = ("worker", "gateway", "hub", "power", "network")
#: How often each of them, of a number of kills at random: those that the hub takes long to get over more seldom.
WEIGHTS = {
    "agent": 3, "command": 3, "guest": 1, "reset": 1, "worker": 2, "gateway": 3, "hub": 1, "power": 1, "network": 2
}  # fmt: skip
#: Each costs an operation that is under way one of its attempts.
COST_ATTEMPTS = ("worker", "hub", "power")


class Killer:
    """Kills something of these machines; what is not there just then is not killed. `done` counts the kinds."""

    def __init__(self, site: Site, agents: NullAgents, rng: random.Random) -> None:
        self.site, self.agents, self.rng = site, agents, rng
        self.settings = load_settings(state_dir=site.state)
        self.done: Counter[str] = Counter()
        self._calls: dict[UUID, int] = {}

    def kill(self, kind: str, machines: list[UUID]) -> bool:
        """One of the machines is hit, or all of them; False when none of them is to be hit in this way just now."""
        if kind in COST_ATTEMPTS and self._last_attempt():
            kind = "gateway"
        if kind in ("guest", "reset"):
            machines = self._progressed(machines)
        if not machines:
            return False
        victim = self.rng.choice(machines)
        self.done[kind] += 1
        print(f"{time.strftime('%H:%M:%S')} {kind} {victim if kind in OF_A_MACHINE else ''}", flush=True)
        with contextlib.suppress(*AWAY, psutil.NoSuchProcess, ProcessLookupError):
            getattr(self, f"_{kind}")(*([victim] if kind in OF_A_MACHINE else []))
        return True

    def _last_attempt(self) -> bool:
        """Whether an operation would fail for its number of attempts, were its run killed once more."""
        most = select(func.max(Operation.attempts)).where(Operation.status.in_(("queued", "running")))
        with db.session_scope(self.settings) as session:
            return (session.scalar(most) or 0) >= MAX_ATTEMPTS - 1

    def _progressed(self, machines: list[UUID]) -> list[UUID]:
        """Those that have made a model call since their VM was hit last: without one, a few in a row end a machine.

        And that are not just being started: that would rightly fail.
        """
        starting = select(Operation.machine_uuid).where(
            Operation.kind.in_(("spawn", "resume")), Operation.status.in_(("queued", "running"))
        )
        query = select(Machine.uuid, Machine.api_calls).where(Machine.uuid.in_(machines), Machine.uuid.not_in(starting))
        with db.session_scope(self.settings) as session:
            return [uuid for uuid, calls in session.execute(query) if calls > self._calls.get(uuid, -1)]

    def _note_calls(self, machine: UUID) -> None:
        with db.session_scope(self.settings) as session:
            self._calls[machine] = session.get_one(Machine, machine).api_calls

    def _agent(self, machine: UUID) -> None:
        self.agents.kill(machine, of_cli=False)

    def _command(self, machine: UUID) -> None:
        self.agents.kill(machine, of_cli=True)

    def _guest(self, machine: UUID) -> None:
        self._note_calls(machine)
        self.agents.vm(machine).status.stop.post()
        self.agents.power_off(machine)

    def _reset(self, machine: UUID) -> None:
        self._note_calls(machine)
        self.agents.vm(machine).status.reset.post()
        self.agents.power_off(machine)

    def _worker(self) -> None:
        self._of_module("autovibe.worker")[0].kill()

    def _gateway(self) -> None:
        self.rng.choice(self._of_module("autovibe.api")).kill()

    def _hub(self) -> None:
        self._kill_supervisor(recursive=False)
        self.site.autovibe("up", "--detach")

    def _power(self) -> None:
        self._kill_supervisor(recursive=True)
        if (postmaster := postgres.server(self.settings).postmaster()) is not None:
            _kill_all([postmaster, *postmaster.children(recursive=True)])
        db.dispose(self.settings)
        self.site.autovibe("up", "--detach")

    def _network(self) -> None:
        """Nothing comes through, and nobody is told so."""
        silent = self._of_module("autovibe.api")
        try:
            for process in silent:
                process.send_signal(signal.SIGSTOP)
            time.sleep(self.rng.uniform(0.2, 3))
        finally:
            for process in silent:
                process.send_signal(signal.SIGCONT)

    def _kill_supervisor(self, recursive: bool) -> None:
        """Without `recursive`, what Ansible is doing goes on, as it does when a worker is killed."""
        supervisor = self.site.supervisor()
        _kill_all([supervisor, *supervisor.children(recursive=recursive)])

    def _of_module(self, module: str) -> list[psutil.Process]:
        """The hub's processes of this module; there may be none for a moment, then NoSuchProcess."""
        found = [child for child in self.site.supervisor().children() if child.cmdline()[1:3] == ["-m", module]]
        if not found:
            raise psutil.NoSuchProcess(-1, module)
        return found


def _kill_all(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=30)


def chosen(rng: random.Random, count: int) -> list[str]:
    """So many kills, by their weights."""
    return rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=count)


def seeded() -> random.Random:
    """A failing run is repeated with AUTOVIBE_SEED=<the seed that it prints>."""
    seed = int(os.environ.get("AUTOVIBE_SEED") or random.randrange(2**32))
    print(f"AUTOVIBE_SEED={seed}")
    return random.Random(seed)
