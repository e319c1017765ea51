"""The time that things take: profiles, delays changed live, and pvedaemon's three workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from autovibe_lab.latency import DIRECT, Delays, Shared
from autovibe_lab.tests.testing import Client, LabInThread


@pytest.fixture
def slow_lab(tmp_path: Path) -> Iterator[LabInThread]:
    lab = LabInThread(tmp_path / "lab", latency="pve84", time_scale=0.2)
    yield lab
    lab.close()


def seconds(work: object) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def test_work_takes_the_time_of_a_real_server(slow_lab):
    client = Client(slow_lab)
    client.template(100)
    assert seconds(lambda: client.clone(100, 101)) >= 0.2 * 0.3
    assert seconds(lambda: client.ok(client.node.qemu(101).status.start.post())) >= 0.2 * 0.9
    assert seconds(lambda: client.clone(101, 102)) >= 0.2 * 1024 / 100  # a full copy of 1 GiB


def test_what_shares_two_cores_takes_its_turn():
    async def eight() -> float:
        cores = Shared(2)
        begun = time.monotonic()
        await asyncio.gather(*(cores.use(0.05) for _ in range(8)))
        return time.monotonic() - begun

    assert asyncio.run(eight()) >= 8 * 0.05 / 2 * 0.9


def test_delays_are_changed_live(lab, client):
    assert lab.aid("GET", "latency")["profile"] == "off"
    changed = lab.aid("PUT", "latency", {"profile": "pve84", "time_scale": 0.5, "lock_timeout": 1})
    assert (changed["profile"], changed["time_scale"], changed["lock_timeout"]) == ("pve84", 0.5, 1)
    assert lab.node.lock_timeout == 0.5
    for wrong in ({"profile": "fast"}, {"patience": 1}, {"time_scale": -1}):
        with pytest.raises(requests.HTTPError, match="400"):
            lab.aid("PUT", "latency", wrong)
    assert lab.node.delays == Delays("pve84", 0.5, 1, 0, 5)


def test_a_call_that_no_worker_takes_is_a_596_and_not_executed(lab, client):
    client.create(100)
    # What comes next is to be seen while the three wait.
    lab.aid("PUT", "latency", {"hang_delay": 0.1, "lock_timeout": 6})
    holding = lab.node.machines[100].lock.hold(1, shared=True)
    lab.run(holding.__aenter__())
    with ThreadPoolExecutor(3) as threads:
        blocked = [threads.submit(client.refused, lab.api().nodes("pve1").qemu(100).config.put, cores=2) for _ in "123"]
        while not any(call["status"] is None for call in lab.aid("GET", "calls")[-3:]) or not _blocked(lab):
            assert not any(future.done() for future in blocked)
        assert client.refused(client.api.pools.post, poolid="never").status_code == 596
        assert client.node.qemu(100).config.get()["name"] == "base"  # pveproxy answers this itself
        assert all("got timeout" in future.result().content for future in blocked)
    lab.run(holding.__aexit__(None, None, None))
    assert [pool["poolid"] for pool in client.api.pools.get()] == []


def _blocked(lab: LabInThread) -> bool:
    return len(lab.node.machines[100].lock._waiters) == 3


@pytest.mark.parametrize(
    ("path", "direct"),
    [
        ("/nodes/pve1/tasks", True),
        ("/nodes/pve1/tasks/UPID:x/status", False),
        ("/nodes/pve1/qemu", False),
        ("/nodes/pve1/qemu/100/config", True),
        ("/nodes/pve1/qemu/100/status/current", False),
        ("/cluster/resources", True),
    ],
)
def test_what_goes_through_pvedaemon(path, direct):
    assert bool(DIRECT.fullmatch(path)) == direct
