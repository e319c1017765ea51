"""A real guest with the real Claude Code runs out of money amid its work, and finishes it after a top-up."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from sites import Site, running_site

pytestmark = [pytest.mark.vm, pytest.mark.soak, pytest.mark.timeout(1800)]


def wait_for(condition: Any, what: str, seconds: float = 600) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.5)
    return found


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site(environment={"AUTOVIBE_RESERVATION_WAIT_SECONDS": "1"}) as site:
        site.autovibe("template", "build")
        yield site


def money(site: Site) -> dict[str, Decimal]:
    row = next(one for one in site.json("budget", "show", "tight") if one["resource"] == "money")
    return {name: Decimal(row[name]) for name in ("allocated", "used", "reserved", "overrun", "available")}


def test_work_that_ran_out_of_money_is_finished_after_a_top_up(site: Site) -> None:
    site.autovibe("project", "create", "tight", "--budget", "5")
    prompt = "Write a small program with a test: count the words of a text. Run the test."
    site.autovibe("machine", "spawn", "tight", "--name", "saver", "--prompt", prompt, "--no-wait")
    wait_for(lambda: site.json("machine", "show", "saver")["api_calls"] >= 1, "its first call")

    def paused() -> Any:
        # What its calls have left of their reservations is taken away, until none can be paid any more.
        site.autovibe("budget", "set", "tight", str(money(site)["used"] + Decimal("0.0005")))
        shown = site.json("machine", "show", "saver")
        assert shown["status"] != "terminated", shown
        return shown["status"] == "paused" and shown

    before = wait_for(paused, "the pause")
    assert before["pause_reason"] == "budget"
    left = money(site)
    assert left["overrun"] == 0
    assert left["reserved"] < Decimal("0.01"), "nothing of its runtime, only of its disk"
    site.autovibe("budget", "top-up", "tight", "4")
    ended = wait_for(
        lambda: (now := site.json("machine", "show", "saver"))["status"] == "terminated" and now, "its end"
    )
    assert ended["outcome"] == "succeeded", json.dumps(ended, indent=1)
    assert {"wordcount.py", "test_wordcount.py"} <= {file["path"] for file in ended["files"]}
    assert [one["kind"] for one in ended["operations"]].count("resume") == 1
    with site.nothing_booked():
        after, lines = money(site), site.json("usage", "tight", "--last", "10000")["lines"]
    assert after["overrun"] == 0
    assert after["used"] == sum(Decimal(line["cost_cad"] or 0) for line in lines)
