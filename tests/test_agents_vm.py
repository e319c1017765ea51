"""Agents in real guests: restored, branched and paused in the middle of their work; the real qwen-code and aider."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from autovibe import client
from autovibe.settings import load_settings
from sites import Site, running_site

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

AGENTS = "autovibe-agents"
#: Ends with its second start; says who it is and what time it is.
STARTS = (
    'echo x >> starts; echo "start $(wc -l < starts) resumed $AUTOVIBE_RESUMED at $(date +%s)"; '
    "test $(wc -l < starts) -gt 1 || sleep 900"
)
WHO = 'echo "starts $(wc -l < starts) machine $(cat /etc/machine-id) host $(hostname) address $(hostname -I)"'


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site(environment={"AUTOVIBE_DEFAULT_MEMORY": "1536"}) as site:
        site.autovibe("template", "build")
        site.autovibe("project", "create", "agents", "--budget", "20")
        yield site


def until(condition: Callable[[], Any], seconds: float = 300) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "the condition did not come"
        time.sleep(0.3)
    return value


def spawn(site: Site, *words: str) -> str:
    return site.json("machine", "spawn", "agents", "--no-wait", *words)["name"]


def lines(site: Site, machine: str) -> list[str]:
    return [line["text"] for line in site.json("machine", "logs", machine)]


def ended(site: Site, machine: str) -> dict[str, Any]:
    found = until(lambda: (row := site.json("machine", "show", machine))["status"] == "terminated" and row, 600)
    assert found["outcome"] == "succeeded", (found, lines(site, machine))
    return found


def test_a_restored_machine_goes_on_and_branches_are_machines_of_their_own(site: Site) -> None:
    machine = spawn(site, "--command", f"/bin/sh -c '{STARTS}'")
    until(lambda: any(line.startswith("start 1 resumed 0") for line in lines(site, machine)))
    checkpoint = site.json("machine", "checkpoint", machine)["uuid"]
    branches = [spawn(site, "--from", checkpoint, "--command", f"/bin/sh -c '{WHO}'") for _ in range(2)]
    with client.connect(load_settings(state_dir=site.state)) as hub:
        hub.post(f"/machines/{machine}/restore", body={"checkpoint": checkpoint})
    ended(site, machine)
    (again,) = (line for line in lines(site, machine) if line.startswith("start 2"))
    assert again.startswith("start 2 resumed 1 at ")
    assert abs(int(again.split()[-1]) - time.time()) < 600
    said = []
    for branch in branches:
        ended(site, branch)
        said += [line.split() for line in lines(site, branch) if line.startswith("starts")]
    assert [words[1] for words in said] == ["1", "1"]
    for place in (3, 5, 7):
        assert len({words[place] for words in said}) == 2


@pytest.mark.soak
@pytest.mark.parametrize("after", [0, 1, 2])
def test_claude_code_goes_on_after_a_pause(site: Site, after: int) -> None:
    machine = spawn(site, "--prompt", "Write a small program with a test.")
    until(lambda: site.json("machine", "show", machine)["api_calls"] >= after)
    if site.run("machine", "pause", machine).returncode == 0:
        until(lambda: site.json("machine", "show", machine)["status"] in ("paused", "terminated"))
        site.run("machine", "resume", machine)
    assert "The tests pass" in ended(site, machine)["result"]["summary"]


@pytest.fixture(scope="module")
def agents(site: Site) -> Site:
    """The site with a template that has qwen-code and aider."""
    site.autovibe("lab", "image", "--flavour", "agents", "--install", "--state", str(site.state / "lab"))
    site.autovibe("template", "build", AGENTS, "--disk", f"local:import/{AGENTS}.qcow2")
    return site


@pytest.mark.soak
@pytest.mark.parametrize(("kind", "turns"), [("qwen_coder", 3), ("aider", 1)])
def test_other_clis_work_in_a_guest(agents: Site, kind: str, turns: int) -> None:
    words = ("--type", kind, "--template", AGENTS, "--prompt", "Write a small program with a test.")
    machine = ended(agents, spawn(agents, *words))
    assert {"wordcount.py", "test_wordcount.py"} <= {file["path"] for file in machine["files"]}
    assert machine["result"]["details"]["turns"] >= turns
    assert machine["api_calls"] >= turns
    assert "wordcount.py" in agents.autovibe("machine", "patch", machine["name"])
