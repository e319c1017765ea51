"""What machines themselves cost, on a site with null guests: metered, stopped before it is overspent, resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from autovibe import db, metering
from autovibe.models import Reservation
from autovibe.settings import load_settings
from sites import BINARIES, ROOT, Site, running_site
from sqlalchemy import select

# So dear that a budget is used up within a minute: 0.50 CAD a second for two cores.
RATES = """
[[rates]]
from = 2026-01-01
core_hour = "900"
memory_gb_hour = "0"
storage_gb_hour = "0.01"
"""
AHEAD = 60


def wait_for(condition: Any, what: str, seconds: float = 240) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    rates = tmp_path_factory.mktemp("rates") / "rates.toml"
    rates.write_text(RATES)
    quick = {
        "AUTOVIBE_COMPUTE_RATES_FILE": str(rates),
        "AUTOVIBE_METER_SECONDS": "2",
        "AUTOVIBE_RUNTIME_AHEAD_SECONDS": str(AHEAD),
    }
    with running_site("--no-image", environment=quick) as site:
        site.autovibe("template", "build", "--null")
        yield site


def spawn(site: Site, project: str, name: str) -> None:
    command = ("--name", name, "--command", "true", "--template", "autovibe-null", "--cores", "2", "--no-wait")
    site.autovibe("machine", "spawn", project, *command)


def show(site: Site, machine: str) -> dict[str, Any]:
    return site.json("machine", "show", machine)


def succeeded(site: Site, machine: str, kind: str) -> dict[str, Any] | None:
    done = [one for one in show(site, machine)["operations"] if one["kind"] == kind and one["status"] == "succeeded"]
    return done[-1] if done else None


def budget(site: Site, project: str) -> dict[str, Decimal]:
    row = next(one for one in site.json("budget", "show", project) if one["resource"] == "money")
    return {name: Decimal(row[name]) for name in ("allocated", "used", "reserved", "overrun")}


def lines(site: Site, project: str) -> list[dict[str, Any]]:
    return site.json("usage", project, "--last", "100000")["lines"]


def account(site: Site, project: str) -> tuple[dict[str, Decimal], list[dict[str, Any]]]:
    """The budget and the ledger's lines as they stand together: what ended still has a disk that is paid for."""
    with site.nothing_booked():
        return budget(site, project), lines(site, project)


def test_a_machines_whole_money_from_the_first_minute_to_the_top_up(site: Site) -> None:
    site.autovibe("project", "create", "dear", "--budget", "40")
    spawn(site, "dear", "one")
    wait_for(lambda: succeeded(site, "one", "spawn"), "the machine")
    wait_for(lambda: {line["type"] for line in lines(site, "dear")} >= {"time", "cpu", "storage"}, "its first lines")
    # Not what is reserved now: on a slow machine the pause may have come by then.
    assert max(reserved_for_runtime(site)) > 20, "the next minute is reserved"

    paused = wait_for(lambda: (now := show(site, "one"))["status"] == "paused" and now, "the pause")
    assert paused["pause_reason"] == "budget"
    vm = site.state / "lab" / "qemu-server" / f"{paused['vm_id']}.conf"
    assert f"[av-{paused['last_checkpoint'].replace('-', '')}]" in vm.read_text(), "its snapshot"
    after, found = account(site, "dear")
    assert after["overrun"] == 0
    assert after["reserved"] < 1, "nothing of its runtime, only of its disk"
    assert Decimal(10) < after["used"] <= after["allocated"] == 40
    assert after["used"] == sum(Decimal(line["cost_cad"]) for line in found)
    by_type = site.json("usage", "dear", "--by", "type")
    assert {row["type"] for row in by_type} == {"cpu/vm_cpu", "memory/vm_memory", "storage/vm_disk", "time/vm_runtime"}

    raised = site.json("budget", "top-up", "dear", "40")
    assert raised["resumed"] == [paused["uuid"]]
    wait_for(lambda: succeeded(site, "one", "resume"), "the resume")
    assert show(site, "one")["status"] == "spawning", "its agent has to enrol again"
    at = budget(site, "dear")["used"]
    wait_for(lambda: budget(site, "dear")["used"] > at, "the next line")

    site.autovibe("machine", "terminate", "one")
    ended, found = account(site, "dear")
    assert ended["overrun"] == 0
    assert ended["used"] == sum(Decimal(line["cost_cad"]) for line in found)
    assert not overlaps(found)


def reserved_for_runtime(site: Site) -> list[Decimal]:
    """What has ever been reserved for VMs, at a time."""
    with db.session_scope(load_settings(state_dir=site.state)) as session:
        return list(session.scalars(select(Reservation.amount_cad).where(Reservation.purpose == metering.PURPOSE)))


def overlaps(found: list[dict[str, Any]]) -> list[Any]:
    """Times of one VM and resource that were booked twice."""
    spans: dict[tuple[Any, str], list[list[str]]] = {}
    for line in found:
        spans.setdefault((line["metadata"]["vm_id"], line["type"]), []).append(line["metadata"]["period"].split("/"))
    return [
        (key, before, after)
        for key, periods in spans.items()
        for before, after in zip(sorted(periods), sorted(periods)[1:], strict=False)
        if before[1] > after[0]
    ]


def test_a_killed_meter_run_books_everything_once(site: Site) -> None:
    site.autovibe("project", "create", "killed", "--budget", "5000")
    for name in ("k1", "k2"):
        spawn(site, "killed", name)
    for name in ("k1", "k2"):
        wait_for(lambda name=name: succeeded(site, name, "spawn"), "the machines")
    for _ in range(2):
        folders = wait_for(lambda: metering_runs(site), "a run of the meter")
        victim = wait_for(lambda: site.service("autovibe.scheduler"), "the scheduler")
        os.kill(victim.pid, signal.SIGKILL)
        wait_for(lambda victim=victim: not victim.is_running(), "its end")
        wait_for(lambda folders=folders: metering_runs(site) - folders, "the next run")
    for name in ("k1", "k2"):
        site.autovibe("machine", "terminate", name)
    left, found = account(site, "killed")
    assert not overlaps(found)
    for vm_id in {line["metadata"]["vm_id"] for line in found}:
        periods = sorted(
            line["metadata"]["period"].split("/") for line in found
            if (line["metadata"]["vm_id"], line["type"]) == (vm_id, "time")
        )  # fmt: skip
        assert all(before[1] == after[0] for before, after in zip(periods, periods[1:], strict=False)), "no gap"
    assert (left["reserved"], left["overrun"]) == (0, 0)
    assert left["used"] == sum(Decimal(line["cost_cad"]) for line in found)


def metering_runs(site: Site) -> set[Path]:
    """Folders of runs that are not in the database: those of the meter."""
    return {path.parent for path in site.state.glob("runs/*/artifacts") if not list(path.parent.glob("secrets/*"))}


def test_a_person_pauses_and_resumes(site: Site) -> None:
    site.autovibe("project", "create", "calm", "--budget", "5000")
    spawn(site, "calm", "two")
    assert "is paused" in site.autovibe("machine", "pause", "two")
    assert budget(site, "calm")["reserved"] < 1, "nothing of its runtime, only of its disk"
    refused = site.run("machine", "pause", "two")
    assert (refused.returncode, "paused already (person)" in refused.stderr) == (1, True)
    site.autovibe("machine", "resume", "two")
    assert succeeded(site, "two", "resume")
    refused = site.run("machine", "resume", "two")
    assert (refused.returncode, "is not paused" in refused.stderr) == (1, True), refused.stdout + str(show(site, "two"))
    site.autovibe("machine", "terminate", "two")
    assert show(site, "two")["status"] == "terminated"


def test_the_meter_reads_every_node_wherever_machines_are_made(site: Site) -> None:
    command = [str(BINARIES / "ansible-playbook"), "playbooks/meter.yml", "-v", "-e", "proxmox_node=elsewhere"]
    done = subprocess.run(command, cwd=ROOT, env=site.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "vm_id:" in done.stdout, "the template is listed, at least"


def test_the_doctor_says_that_no_job_is_overdue(site: Site) -> None:
    found = {one["name"]: one for one in json.loads(site.run("doctor", "--json").stdout)}
    assert found["scheduler"]["state"] == "ok", found["scheduler"]
