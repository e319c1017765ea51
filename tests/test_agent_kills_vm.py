"""Claude Code in a real guest, with the worker that makes its checkpoints: each of them is killed at random moments.

A failing run is repeated with AUTOVIBE_SEED=<the seed that it prints>.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from autovibe import db
from autovibe.budgets import AI_CALL
from autovibe.models import Checkpoint, Reservation, Usage
from autovibe.settings import load_settings
from null_agents import node_of
from proxmoxer import ResourceException
from sites import Site, running_site
from sqlalchemy import select
from test_worker_kills import Aids, wait_for, worker_of

pytestmark = [pytest.mark.vm, pytest.mark.soak, pytest.mark.timeout(3000)]

KINDS = ("agent", "cli", "guest", "reset", "worker", "hub", "network")
PROMPT = "Write a small program with a test, and clean up."
#: In the guest: kills by its command line, which is not this one's own.
KILL = 'for p in /proc/[0-9]*; do grep -aqE "{}" $p/cmdline && kill -9 ${{p#/proc/}}; done; true'
PATTERNS = {"agent": "[-]-agent-sha256", "cli": "bin/[c]laude"}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    quick = {"HEARTBEAT_SECONDS": "2", "MACHINE_REVIVE_SECONDS": "20", "CALL_HOLD_SECONDS": "20"}
    environment = {f"AUTOVIBE_{name}": value for name, value in quick.items()} | {"AUTOVIBE_DEFAULT_MEMORY": "1536"}
    with running_site(environment=environment) as site:
        site.autovibe("template", "build")
        site.autovibe("project", "create", "kills", "--budget", "50")
        site.autovibe("checkpoint", "policy", "kills", "--calls", "1", "--floor-seconds", "0")
        yield site


@pytest.fixture(scope="module")
def node(site: Site) -> Any:
    """The node as its owner finds it, beside the hub."""
    return node_of(site)


def provider_bill(site: Site) -> list[dict[str, Any]]:
    lab = site.state / "lab"
    request = urllib.request.Request(f"http://127.0.0.1:{(lab / 'model-port').read_text().strip()}/bill")
    request.add_header("x-api-key", (lab / "model-key").read_text().strip())
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)["lines"]


class Killer:
    """Kills something of a machine's; what is not there just then is not killed."""

    def __init__(self, site: Site, node: Any, machine: dict[str, Any]) -> None:
        self.site, self.node, self.machine = site, node, machine

    def shown(self) -> dict[str, Any]:
        return self.site.json("machine", "show", self.machine["uuid"])

    def kill(self, kind: str) -> None:
        vm = self.node.qemu(self.shown()["vm_id"])
        with contextlib.suppress(ResourceException, psutil.NoSuchProcess, StopIteration):
            if kind in PATTERNS:
                vm.agent("exec").post(command=["sh", "-c", KILL.format(PATTERNS[kind])])
            elif kind == "guest":
                vm.status.stop.post()
            elif kind == "reset":
                vm.status.reset.post()
            elif kind == "worker":
                worker_of(self.site).kill()
            elif kind == "network":
                _cut_off(_hub_of(self.site))
            else:
                _hub_of(self.site).kill()


def _cut_off(hub: psutil.Process, seconds: float = 15) -> None:
    """Nothing comes through, and nobody is told so: for longer than a heartbeat, shorter than anybody's patience."""
    hub.suspend()
    try:
        time.sleep(seconds)
    finally:
        hub.resume()


def _hub_of(site: Site) -> psutil.Process:
    """The process that serves the machines."""
    children = site.supervisor().children(recursive=True)
    return next(child for child in children if child.cmdline()[1:3] == ["-m", "autovibe.api"])


def the_books_agree(site: Site, machine: str, bill: list[dict[str, Any]]) -> None:
    """Each call that was billed is in the ledger once: by its own usage, or, where a kill hid that, at its bound."""
    with db.session_scope(load_settings(state_dir=site.state)) as session:
        mine = (Usage.machine_uuid == machine, Usage.resource_type == "money")
        lines = [dict(line) for line in session.scalars(select(Usage.metadata_).where(*mine))]
    exact = Counter(line["message_id"] for line in lines if line.get("basis") == "usage")
    billed = {line["id"] for line in bill}
    assert set(exact.values()) <= {1}
    assert set(exact) <= billed
    at_bound = [line for line in lines if line.get("basis") in ("bound", "partial") or line.get("settled_at_bound")]
    assert len(billed - set(exact)) <= len(at_bound)


def held_for_calls(site: Site, machine: str) -> list[str]:
    """What is still held for calls of the machine; for its stored checkpoints some always is."""
    with db.session_scope(load_settings(state_dir=site.state)) as session:
        mine = (Reservation.machine_uuid == machine, Reservation.status == "held")
        return [str(one.uuid) for one in session.scalars(select(Reservation).where(*mine)) if one.purpose == AI_CALL]


def no_checkpoint_is_lost_or_doubled(site: Site, machine: dict[str, Any]) -> int:
    with db.session_scope(load_settings(state_dir=site.state)) as session:
        mine = Checkpoint.creating_machine_uuid == machine["uuid"]
        rows = session.execute(select(Checkpoint.verification_status, Checkpoint.proxmox_snapshot_id).where(mine)).all()
    verified = [name for status, name in rows if status == "verified"]
    assert {status for status, _ in rows} <= {"verified", "failed"}
    assert sorted(verified) == sorted(Aids(site).snapshots(machine["vm_id"]))
    return len(verified)


@pytest.fixture
def rng() -> random.Random:
    seed = int(os.environ.get("AUTOVIBE_SEED") or random.randrange(2**32))
    print(f"AUTOVIBE_SEED={seed}")
    return random.Random(seed)


@pytest.mark.parametrize("life", range(6))
def test_it_ends_its_work_whatever_is_killed(site: Site, node: Any, rng: random.Random, life: int) -> None:
    before = len(provider_bill(site))
    made = site.json("machine", "spawn", "kills", "--no-wait", "--prompt", PROMPT, "--wall-seconds", "1500")
    killer = Killer(site, node, made)
    wait_for(lambda: killer.shown()["enrolled_at"], "its agent", 300)
    for kind in rng.sample(KINDS, 5):
        calls, end = killer.shown()["api_calls"], time.monotonic() + rng.uniform(1, 120)
        wait_for(
            lambda calls=calls, end=end: (
                time.monotonic() > end or killer.shown()["api_calls"] > calls or killer.shown()["result"]
            ),
            "a moment",
            180,
        )
        print(f"{kind} after {killer.shown()['api_calls']} calls, {killer.shown()['status']}")
        killer.kill(kind)
    shown = wait_for(lambda: (now := killer.shown())["status"] == "terminated" and now, "its end", 1500)
    said = "\n".join(line["text"] for line in site.json("machine", "logs", made["uuid"]))
    assert shown["outcome"] == "succeeded", (shown, said)
    assert "The tests pass" in shown["result"]["summary"]
    assert no_checkpoint_is_lost_or_doubled(site, shown) >= 1
    wait_for(lambda: not held_for_calls(site, made["uuid"]), "the reaper", 120)
    the_books_agree(site, made["uuid"], provider_bill(site)[before:])
