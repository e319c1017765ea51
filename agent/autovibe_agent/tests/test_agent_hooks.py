"""Hooks: a risky command waits for its checkpoint, a harmless one for nothing, and neither for ever."""

import http.client
import json
import threading
import time
from urllib.parse import urlsplit

import pytest
from autovibe_agent.base import Assignment, Guard
from autovibe_agent.checkpoints import Checkpoints
from autovibe_agent.hooks import Hooks
from autovibe_agent.hub import HubRefused
from autovibe_agent.manifest import Manifest

RM = r"\brm\s+-rf\b"


class FarHub:
    """A hub whose checkpoint gets the status that a test says."""

    def __init__(self, status="pending", refusal=None):
        self.status, self.refusal, self.asked = status, refusal, []

    def call(self, method, path, body=None, **_):
        if method == "POST":
            self.asked.append(body)
            if self.refusal is not None:
                raise self.refusal
            return {"checkpoint": "c"}
        return {"status": self.status}

    persist = call


class Cli:
    """What a CLI with hooks does: posts an event to the URL in its settings, and waits."""

    def __init__(self, hooks):
        self.settings = hooks.settings

    def post(self, event, **fields):
        ((group,),) = [self.settings[event]]
        (hook,) = group["hooks"]
        return self.send(hook, json.dumps({"hook_event_name": event, **fields}), hook["timeout"])

    def send(self, hook, body, timeout=60):
        url = urlsplit(hook["url"])
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=timeout)
        try:
            connection.request("POST", url.path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def run(self, command):
        return self.post("PreToolUse", tool_name="Bash", tool_input={"command": command})


@pytest.fixture
def serve(tmp_path):
    """Hooks at a hub, with what they have told: (hooks, messages)."""
    served = []

    def at(hub, next_turn_seconds=60, **guard):
        told = []
        checkpoints = Checkpoints(hub, Manifest(tmp_path), lambda: {"session_id": "s"}, poll_seconds=0.01)
        guard = Guard.of({"risky": [RM], "risky_seconds": 60, "turns": True, **guard})
        served.append(Hooks(guard, checkpoints, told.append, next_turn_seconds))
        return served[-1], told

    yield at
    for hooks in served:
        hooks.close()


def test_a_risky_command_waits_until_its_checkpoint_is_there(serve, tmp_path):
    (tmp_path / "work.txt").write_text("work")
    hub = FarHub()
    hooks, told = serve(hub)
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(Cli(hooks).run("cd /w &&\n rm -rf build")))
    waiting.start()
    wait_until(lambda: hub.asked)
    assert not answers
    hub.status = "verified"
    waiting.join(60)
    assert answers == [(200, b"{}")]
    assert not told
    (body,) = hub.asked
    assert (body["description"], body["standing"]) == ("before: cd /w && rm -rf build", True)
    assert [file["path"] for file in body["manifest"]["files"]] == ["work.txt"]


@pytest.mark.parametrize(
    ("hub", "seconds", "why"),
    [
        (FarHub("pending"), 1, "not made within 1 seconds"),
        (FarHub("failed"), 60, "it failed"),
        (FarHub(refusal=HubRefused(409, "stopping", "no")), 60, "the hub said stopping"),
    ],
)
def test_without_a_checkpoint_it_runs_all_the_same_and_that_is_said(serve, hub, seconds, why):
    hooks, told = serve(hub, risky_seconds=seconds)
    began = time.monotonic()
    assert Cli(hooks).run("rm -rf " + "x" * 500)[0] == 200
    assert time.monotonic() - began < 30
    (message,) = told
    assert message.kind == "error"
    assert message.text.startswith("no checkpoint before rm -rf x")
    assert why in message.text
    assert len(message.text) < 300


def test_a_harmless_command_waits_for_nothing(serve):
    hub = FarHub()
    hooks, _ = serve(hub)
    assert Cli(hooks).run("rm file; echo rm-rf") == (200, b"{}")
    assert not hub.asked


@pytest.mark.parametrize("line", ["true\n{}\n", "x " * 2000 + "{}", "{} " + "x " * 2000, "true; \\\n{}"])
def test_it_is_found_wherever_it_stands(serve, line):
    hooks, _ = serve(FarHub())
    assert hooks.is_risky(line.format("rm -rf ."))
    assert not hooks.is_risky(line.format("rm -f ."))


@pytest.mark.parametrize(
    ("body", "status"), [("", 400), ("nonsense", 400), ("[1]", 200), ('{"tool_input": [1]}', 200), ('{"a": 1}', 200)]
)
def test_nonsense_is_answered_and_asks_for_nothing(serve, body, status):
    hub = FarHub()
    hooks, _ = serve(hub)
    cli = Cli(hooks)
    assert cli.send(hooks.settings["PreToolUse"][0]["hooks"][0], body)[0] == status
    assert not hub.asked


def test_a_turn_that_is_followed_by_another_is_checkpointed(serve):
    hub = FarHub("verified")
    hooks, _ = serve(hub, next_turn_seconds=0.05)
    assert Cli(hooks).post("Stop")[0] == 200
    wait_until(lambda: hub.asked)
    assert (hub.asked[0]["description"], hub.asked[0]["standing"]) == ("at the end of a turn", False)


def test_the_last_turn_has_the_final_checkpoint(serve):
    hub = FarHub("verified")
    before = threading.active_count()
    hooks, _ = serve(hub, next_turn_seconds=30)
    Cli(hooks).post("Stop")
    hooks.close()
    wait_until(lambda: threading.active_count() <= before)
    assert not hub.asked


def test_a_policy_without_them_has_no_hooks(serve):
    assert not Guard.of({"risky": [RM], "risky_seconds": 0, "turns": False})
    assert not Assignment.of({"agent_type": "x", "gateway_url": "u"}).guard
    hooks, _ = serve(FarHub(), risky_seconds=0)
    assert list(hooks.settings) == ["Stop"]


def test_a_pattern_that_this_python_does_not_know_is_left_out(serve):
    hooks, _ = serve(FarHub(), risky=["(", RM])
    assert hooks.is_risky("rm -rf x")


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come"
        time.sleep(0.01)
