"""The lab answers as a real node did: recorded calls are made again and the answers compared."""

from __future__ import annotations

import re
import threading

import pytest
from autovibe_lab.tests import reference, replay
from autovibe_lab.tests.replay_clock import ReplayLoop
from autovibe_lab.tests.replay_compare import Comparison

#: So many of the recorded calls agree, on any machine and however busy it is; README's table has the same number.
AGREE = 1383


@pytest.mark.skipif(not (reference.folder() / "pve").exists(), reason="no recording: set AUTOVIBE_REFERENCE")
def test_the_lab_answers_as_the_recorded_node(capsys: pytest.CaptureFixture) -> None:
    results = replay.replayed()
    with capsys.disabled():
        print("\n" + replay.table(results))
    agree = sum(result.agrees for result in results)
    assert agree == AGREE, f"{agree} of {len(results)} agree: see python -m autovibe_lab.tests.replay"
    assert len(results) == len(reference.recorded_calls())
    readme = replay.README.read_text()
    assert replay.table(results) in readme
    named = re.findall(r"^\| ([\d, ]+) \| [^|]+ \|$", readme, re.MULTILINE)
    differ = [result.call["seq"] for result in results if not result.agrees]
    assert sorted(int(number) for row in named for number in row.split(", ")) == differ, "each is named in README"


def compared(recorded: object, answered: object) -> list[str]:
    comparison = Comparison()
    comparison.value(recorded, answered)
    return comparison.deviations


def test_what_is_made_up_is_not_compared_but_learnt() -> None:
    comparison = Comparison()
    recorded = "UPID:pve1:000000C4:0004CAD6:6B02F7B8:qmstart:4242:root@pam:"
    ours = "UPID:pve1:00000ABC:0000CAD6:6A000000:qmstart:4242:root@pam:"
    comparison.value({"data": recorded}, {"data": ours})
    assert comparison.deviations == []
    assert comparison.made_up == {recorded: ours}


def test_a_task_of_another_type_or_guest_differs() -> None:
    recorded = "UPID:pve1:000000C4:0004CAD6:6B02F7B8:qmstart:100:root@pam:"
    assert compared({"data": recorded}, {"data": recorded.replace("qmstart", "qmstop")})
    assert compared({"data": recorded}, {"data": recorded.replace(":100:", ":101:")})


@pytest.mark.parametrize(
    ("recorded", "answered"),
    [
        ({"a": 1}, {}),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": 1}, {"a": "1"}),
        ({"a": 1}, {"a": 2}),
        ({"a": None}, {"a": 0}),
        ({"type": "qemu", "maxmem": 25276510208}, {"type": "qemu", "maxmem": 8 << 30}),
        ({"data": [{"vmid": 100}]}, {"data": []}),
        ({"cpu": 0.5}, {"cpu": "0.5"}),
        ({"data": [{"n": 1, "t": "TASK OK"}]}, {"data": [{"n": 1, "t": "TASK ERROR: no"}]}),
    ],
)
def test_another_shape_or_value_differs(recorded: dict, answered: dict) -> None:
    assert compared(recorded, answered)


@pytest.mark.parametrize(
    ("recorded", "answered"),
    [
        ({"cpu": 0.5, "mem": 10}, {"cpu": 0, "mem": 12}),
        ({"type": "node", "maxmem": 25276510208}, {"type": "node", "maxmem": 8 << 30}),
        ({"file": "state-2026-11-22.raw"}, {"file": "state-2027-01-01.raw"}),
        ({"t": "starting: vzdump 101 --node a --mode b"}, {"t": "starting: vzdump 101 --mode b --node a"}),
        ({"content": "backup", "size": 10}, {"content": "backup", "size": 12}),
        ({"content": "iso,images"}, {"content": "images,iso"}),
        ({"data": [{"vmid": 100}, {"vmid": 99}]}, {"data": [{"vmid": 99}, {"vmid": 100}]}),
    ],
)
def test_measures_and_the_order_of_hashes_agree(recorded: dict, answered: dict) -> None:
    assert not compared(recorded, answered)


def test_calls_that_were_made_at_the_same_time_are_made_so_again() -> None:
    one = {"section": "s", "method": "POST", "path": "/a", "http_status": 200}
    calls = [one | {"note": f"two starts #{number}"} for number in range(2)] + [one | {"note": "alone"}]
    assert [len(group) for group in replay.groups(calls)] == [2, 1]


def test_the_clock_of_a_replay_waits_for_nobody() -> None:
    """Half an hour of the lab's passes at once, in order, and not a moment before a call is sent."""
    loop, happened = ReplayLoop(), []
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    for seconds in (1800.0, 2.0, 900.0):
        loop.call_soon_threadsafe(loop.call_later, seconds, happened.append, seconds)
    assert (loop.time(), happened) == (0, [])
    loop.until(lambda: 2.0 in happened, 10)
    assert (loop.time(), happened) == (2, [2.0])
    loop.until(lambda: False, 3600)
    assert (loop.time(), happened) == (3602, [2.0, 900.0, 1800.0])
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
