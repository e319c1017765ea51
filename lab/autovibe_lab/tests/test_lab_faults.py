"""Faults on demand, and the Python client for them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from autovibe_lab.testing import Aids

START = "/nodes/pve1/qemu/100/status/start"


@pytest.fixture
def aids(lab, client) -> Aids:
    client.create()
    return lab.aids


def running(client) -> bool:
    return client.node.qemu(100).status.current.get()["status"] == "running"


def test_the_next_calls_fail_and_the_first_may_be_skipped(client, aids):
    aids.fail("PUT", ".*/config", status=503, reason="worn out", skip=1, count=2)
    config = client.node.qemu(100).config
    config.put(name="one")
    for _ in range(2):
        error = client.refused(config.put, name="two")
        assert (error.status_code, error.content) == (503, "worn out")
    assert config.get()["name"] == "one"
    config.put(name="three")
    assert [(fault["matched"], fault["left"]) for fault in aids.faults()] == [(2, 0)]


def test_a_dropped_call_is_executed_before_or_not_at_all(client, aids):
    aids.drop_before("POST", START)
    with pytest.raises(requests.ConnectionError):
        client.node.qemu(100).status.start.post()
    assert not running(client)
    assert aids.tasks()[-1]["type"] == "qmcreate"
    aids.drop_after("POST", START)
    with pytest.raises(requests.ConnectionError):
        client.node.qemu(100).status.start.post()
    assert aids.tasks()[-1]["type"] == "qmstart"
    client.ok(aids.tasks()[-1]["upid"])
    assert running(client)
    assert [(call["status"], call["fault"]) for call in aids.calls() if call["path"] == START] == [(0, "1"), (0, "2")]


def test_a_lock_that_is_not_to_be_had(client, aids):
    aids.lock("*", ".*/snapshot")
    error = client.refused(client.node.qemu(100).snapshot.post, snapname="s1")
    assert error.content == "can't lock file '/var/lock/qemu-server/lock-100.conf' - got timeout"
    client.ok(client.node.qemu(100).snapshot.post(snapname="s1"))


def test_a_delayed_call_is_executed_later(client, aids):
    aids.delay("POST", START, seconds=0.2)
    begun = time.monotonic()
    client.ok(client.node.qemu(100).status.start.post())
    assert time.monotonic() - begun >= 0.2


def test_a_held_answer(client, aids, lab):
    with ThreadPoolExecutor(1) as thread:
        with aids.held("POST", START) as held:
            answer = thread.submit(client.node.qemu(100).status.start.post)
            held.wait()
            assert not answer.done()
        client.ok(answer.result(60))


def test_reset_forgets_everything(client, aids):
    aids.fail("*", ".*", count=100)
    assert client.refused(client.api.version.get).status_code == 500
    aids.reset()
    assert aids.faults() == aids("GET", "holds") == []
    assert client.api.version.get()["release"] == "8.4"


@pytest.mark.parametrize("wrong", [{"action": "explode"}, {"action": "status"}, {"path": "("}, {"often": 3}])
def test_what_makes_no_sense_is_refused(aids, wrong):
    with pytest.raises(requests.HTTPError, match="400"):
        aids("POST", "faults", {"method": "GET", "path": "/version", "action": "lock"} | wrong)


def test_calls_since_a_number(client, aids, lab):
    last = aids.last()
    client.node.qemu(100).config.put(name="new")
    client.node.qemu(100).config.get()
    assert aids.writes(last) == ["PUT /nodes/pve1/qemu/100/config"]
    assert len(aids.calls(last)) == 2
    assert Aids.of(lab.state).last() == aids.last()
