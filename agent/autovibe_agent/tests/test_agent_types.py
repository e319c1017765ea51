"""What each agent type starts and how it reads what its CLI says."""

import json
import os
import pwd

import pytest
from autovibe_agent.base import Assignment, UnknownAgentType, find_type
from autovibe_agent.paths import Paths, User


@pytest.fixture
def make(tmp_path):
    (tmp_path / "run/autovibe").mkdir(parents=True)
    entry = pwd.getpwuid(os.geteuid())
    user = User(entry.pw_name, entry.pw_uid, entry.pw_gid, tmp_path / "home")

    def of(agent_type="claude_code", **answer):
        assignment = Assignment.of({"agent_type": agent_type, "gateway_url": "https://hub:8000", **answer})
        return find_type(agent_type)(assignment, Paths(tmp_path), user)

    return of


@pytest.mark.parametrize(
    "name", ["base", "life", "no_such", "os", "../claude_code", "claude_code.x", "", "CommandAgent"]
)
def test_only_agent_types_are_agent_types(name):
    with pytest.raises(UnknownAgentType):
        find_type(name)


def test_each_type_is_found_by_its_name():
    assert [find_type(name).NAME for name in ("command", "claude_code")] == ["command", "claude_code"]


def test_a_command_is_run_as_given(make):
    agent = make("command", command=["make", "-j2"], prompt="p")
    assert (agent.argv(), agent.stdin()) == (["make", "-j2"], b"p")


def test_claude_gets_its_prompt_on_standard_input_and_no_secret_in_its_environment(make, tmp_path):
    (tmp_path / "run/autovibe/token").write_text("a.machine.token")
    agent = make(prompt="--help me", model="m", limits={"max_turns": 7})
    agent.prepare()
    argv = agent.argv()
    assert "--help me" not in argv
    assert agent.stdin() == b"--help me"
    assert argv[argv.index("--max-turns") + 1] == "7"
    assert argv[argv.index("--model") + 1] == "m"
    environment = agent.environment()
    assert environment["ANTHROPIC_BASE_URL"] == "https://hub:8000"
    assert environment["DISABLE_TELEMETRY"] == "1"
    assert "a.machine.token" not in json.dumps([argv, environment, agent.settings_path.read_text()])
    assert not [name for name in environment if "KEY" in name and "TTL" not in name]


@pytest.mark.parametrize(("cores", "value"), [(1, "0"), (2, None)])
def test_claude_collects_garbage_beside_its_work_only_where_there_is_a_core_for_it(make, monkeypatch, cores, value):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert make(prompt="p").environment().get("BUN_JSC_useConcurrentGC") == value


def line(**event):
    return json.dumps(event)


def test_claudes_stream_becomes_messages(make):
    agent = make()
    content = [
        {"type": "text", "text": "I write it."},
        {"type": "text", "text": "  "},
        {"type": "tool_use", "name": "Bash", "input": {"command": "make test"}},
        {"type": "tool_use", "name": "Odd", "input": {"x": [1]}},
        {"type": "thinking", "thinking": "…"},
    ]
    results = [
        {"type": "tool_result", "is_error": True, "content": [{"type": "text", "text": "exit 1"}]},
        {"type": "tool_result", "content": "fine"},
    ]
    said = agent.read_output(line(type="assistant", message={"content": content}))
    said += agent.read_output(line(type="user", message={"content": results}))
    assert [(message.kind, message.text) for message in said] == [
        ("text", "I write it."),
        ("tool", "Bash make test"),
        ("tool", 'Odd {"x": [1]}'),
        ("error", "exit 1"),
    ]


@pytest.mark.parametrize("text", ["[]", "null", '{"type": "assistant"}', '{"type": "user", "message": {"content": 5}}'])
def test_odd_lines_do_no_harm(make, text):
    assert make().read_output(text) == []


RESULTS = [
    ({"subtype": "success", "is_error": False, "result": "done"}, 0, "succeeded", "done"),
    # An API error says is_error with subtype "success".
    (
        {"subtype": "success", "is_error": True, "api_error_status": 402, "result": "API Error"},
        1,
        "out_of_budget",
        "API",
    ),
    ({"subtype": "success", "is_error": True, "result": "API Error: 402 budget"}, 1, "out_of_budget", "402"),
    ({"subtype": "success", "is_error": True, "api_error_status": 403, "result": "402"}, 1, "failed", "402"),
    ({"subtype": "error_max_turns", "is_error": True}, 1, "failed", "limit of turns"),
    ({"subtype": "error_during_execution", "is_error": True, "result": "x"}, 1, "failed", "while it worked: x"),
    ({"subtype": "success", "is_error": False, "result": "done"}, 1, "failed", "ended with 1"),
    (None, -9, "failed", "killed by signal 9 without a result"),
    (None, 0, "failed", "without a result"),
]


@pytest.mark.parametrize(("result", "code", "outcome", "summary"), RESULTS)
def test_how_claude_ended(make, result, code, outcome, summary):
    agent = make()
    if result is not None:
        agent.read_output(line(type="result", **result))
    ended = agent.outcome(code)
    assert ended.outcome == outcome
    assert summary in ended.summary


def test_its_complaints_are_in_the_summary(make):
    agent = make()
    agent.read_error("Invalid API key\n")
    assert "Invalid API key" in agent.outcome(1).summary


class Gateway:
    """What an agent type sees of its local gateway."""

    url, key = "http://127.0.0.1:1", "local-key"

    def __init__(self, last_status=200, answers=1, is_exhausted=False):
        self.last_status, self.answers, self.is_exhausted = last_status, answers, is_exhausted


QWEN_ENDS = [
    ({"subtype": "success", "is_error": False, "result": "done"}, 0, Gateway(), "succeeded"),
    # On a slow machine it ends with 1 after a result that is good.
    ({"subtype": "success", "is_error": False, "result": "done"}, 1, Gateway(), "succeeded"),
    (
        {"subtype": "error_during_execution", "is_error": True, "error": {"message": "402"}},
        1,
        Gateway(402),
        "out_of_budget",
    ),
    ({"subtype": "error_during_execution", "is_error": True}, 1, Gateway(400), "failed"),
    ({"subtype": "error_max_turns", "is_error": True}, 53, Gateway(200, 5, True), "failed"),
    (None, 0, Gateway(), "failed"),
    (None, -9, Gateway(), "failed"),
]


@pytest.mark.parametrize(("result", "code", "gateway", "outcome"), QWEN_ENDS)
def test_how_qwen_code_ended(make, result, code, gateway, outcome):
    agent = make("qwen_coder", prompt="p")
    agent.local_gateway = gateway
    if result is not None:
        agent.read_output(line(type="result", **result))
    assert agent.outcome(code).outcome == outcome
    assert agent.outcome(code).passing == (code == -9)


@pytest.mark.parametrize(
    ("code", "gateway", "outcome", "passing"),
    [
        (0, Gateway(), "succeeded", False),
        (0, Gateway(None, 0), "failed", False),
        (0, Gateway(402), "out_of_budget", False),
        (0, Gateway(529), "failed", True),
        (0, Gateway(400), "failed", False),
        (1, Gateway(), "failed", False),
        (-9, Gateway(), "failed", True),
    ],
)
def test_how_aider_ended(make, code, gateway, outcome, passing):
    agent = make("aider", prompt="p", model="m")
    agent.local_gateway = gateway
    ended = agent.outcome(code)
    assert (ended.outcome, ended.passing) == (outcome, passing)


def test_no_type_puts_its_key_or_prompt_on_the_command_line(make, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "workspace").mkdir()
    for kind in ("qwen_coder", "aider"):
        agent = make(kind, prompt="--secret plan", model="m")
        agent.local_gateway = Gateway()
        agent.prepare()
        assert not {"local-key", "--secret plan"} & set(agent.argv())
        assert agent.environment()["OPENAI_API_KEY"] == "local-key"
