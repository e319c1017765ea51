"""Long tests: a fleet of null guests, with the worker killed again and again while it is made and while it is ended."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from autovibe import db, machines, operations, projects
from autovibe.settings import Settings, load_settings
from sites import Site, running_site
from test_worker_kills import Aids, wait_for, worker_of

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

FLEET = 60
#: Fewer than an operation's attempts: each kill may cost every operation one.
KILLS = 4


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site("--no-image") as site:
        site.autovibe("template", "build", "--null")
        site.autovibe("project", "create", "fleet", "--budget", "100")
        yield site


@pytest.fixture(scope="module")
def settings(site: Site) -> Settings:
    return load_settings(state_dir=site.state, hub_port=site.hub_port)


def unfinished(settings: Settings, asked: list[Any]) -> list[Any]:
    with db.session_scope(settings) as session:
        found = [operations.get(session, uuid) for uuid in asked]
        assert not [one.error for one in found if one.status == "failed"]
        return [one.uuid for one in found if one.status != "succeeded"]


def another_worker(site: Site, victim: psutil.Process) -> bool:
    try:
        return worker_of(site).pid != victim.pid
    except (StopIteration, psutil.NoSuchProcess):
        return False


def kill_until_done(site: Site, settings: Settings, asked: list[Any], seed: int) -> None:
    """Kill the worker at KILLS random moments of the work, then wait for its end."""
    at = sorted(random.Random(seed).sample(range(1, FLEET), KILLS), reverse=True)
    for left in at:
        wait_for(lambda left=left: len(unfinished(settings, asked)) <= left, f"{left} left", 600)
        victim = worker_of(site)
        victim.kill()
        wait_for(lambda victim=victim: another_worker(site, victim), "a new worker")
    wait_for(lambda: not unfinished(settings, asked), "the end of the work", 600)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_fleet_is_made_and_ended_once(site: Site, settings: Settings, seed: int) -> None:
    with db.session_scope(settings) as session:
        project = projects.get(session, "fleet")
        made = [
            machines.spawn(session, settings, project=project, prompt="soak", template="autovibe-null")
            for _ in range(FLEET)
        ]
        asked = [operations.pending(session, machine.uuid, "spawn")[0].uuid for machine in made]
    kill_until_done(site, settings, asked, seed)
    aids = Aids(site)
    for machine in made:
        with db.session_scope(settings) as session:
            vm_id = machines.find(session, machine.uuid).vm_id
        assert aids.vms(str(machine.uuid)) == [vm_id]
        assert aids.tasks(vm_id)["qmstart"] == 1

    with db.session_scope(settings) as session:
        ends = [machines.terminate(session, settings, machines.find(session, machine.uuid)).uuid for machine in made]
    kill_until_done(site, settings, ends, seed)
    assert not [machine.uuid for machine in made if aids.vms(str(machine.uuid))]
    with db.session_scope(settings) as session:
        assert {machines.find(session, machine.uuid).status for machine in made} == {"terminated"}
