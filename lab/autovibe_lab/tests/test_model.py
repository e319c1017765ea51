"""The demo model: its script played by a small client with real files, and its HTTP server."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from autovibe_lab.model import conversation, programs, protocol, script

WRITE = "Write a small program with a test."
EXTEND = "Add a command-line option to the program that is here, and a test of it."
ALL_TOOLS = ("Bash", "Edit", "Read", "Write")


def run_tool(name: str, arguments: dict) -> tuple[str, bool]:
    """What a coding agent's tools do, as far as the script uses them: (text, failed)."""
    if name == "Bash":
        done = subprocess.run(["bash", "-c", arguments["command"]], capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr, done.returncode != 0
    path = Path(arguments["file_path"])
    if name == "Write":
        path.write_text(arguments["content"])
        return "written", False
    if name == "Read":
        return path.read_text(), False
    text = path.read_text()
    if text.count(arguments["old_string"]) != 1:
        return "String to replace not found", True
    path.write_text(text.replace(arguments["old_string"], arguments["new_string"]))
    return "edited", False


def play(prompt: str, folder: Path, tools: tuple[str, ...] = ALL_TOOLS, system: str = "CWD: {}") -> list[str]:
    """Talk with the script until it ends; returns what it said."""
    messages: list[dict] = [{"role": "user", "content": f"<system-reminder>be nice</system-reminder>{prompt}"}]
    offered = [{"name": name} for name in tools]
    said = []
    for _ in range(20):
        request = {"messages": messages, "tools": offered, "system": system.format(folder), "max_tokens": 4096}
        reply = script.answer(conversation.read(request))
        said += [block["text"] for block in reply.blocks if block["type"] == "text"]
        if reply.stop_reason == "end_turn":
            return said
        results = []
        for block in reply.blocks:
            if block["type"] == "tool_use":
                text, failed = run_tool(block["name"], block["input"])
                result = {"type": "tool_result", "tool_use_id": block["id"], "content": text, "is_error": failed}
                results.append(result)
        messages += [{"role": "assistant", "content": reply.blocks}, {"role": "user", "content": results}]
    raise AssertionError("the script does not end")


@pytest.mark.parametrize("tools", [ALL_TOOLS, ("Bash",)])
def test_it_writes_a_program_with_a_test_and_extends_both(tmp_path, tools):
    folder = tmp_path / "a folder with a ' in it"
    folder.mkdir()
    assert play(WRITE, folder, tools)[-1].endswith("The tests pass.")
    assert {path.name for path in folder.iterdir()} >= {programs.PROGRAM_NAME, programs.TEST_NAME}

    assert "--top" in play(EXTEND, folder, tools)[-1]
    tests = subprocess.run([sys.executable, "-m", "unittest"], cwd=folder, capture_output=True, text=True)
    assert "Ran 4 tests" in tests.stderr
    assert tests.returncode == 0
    text = tmp_path / "text"
    text.write_text("b a b")
    shown = subprocess.run(
        [sys.executable, folder / "wordcount.py", "--top", "1", text], capture_output=True, text=True
    )
    assert shown.stdout == "3 words, 2 different\n     2 b\n"

    assert "has the option --top already" in play(EXTEND, folder, tools)[-1]


def test_it_says_when_the_program_is_not_there(tmp_path):
    assert "are not in" in play(EXTEND, tmp_path)[-1]
    assert list(tmp_path.iterdir()) == []


def test_it_says_honestly_when_the_tests_fail(tmp_path):
    play(WRITE, tmp_path)
    program = tmp_path / programs.PROGRAM_NAME
    program.write_text(program.read_text().replace("text.lower()", "text"))
    last = play(EXTEND, tmp_path)[-1]
    assert last.startswith("Not done (demo model)")
    assert "FAILED" in last


def test_it_stops_when_an_edit_fails(tmp_path):
    play(WRITE, tmp_path)
    (tmp_path / programs.PROGRAM_NAME).write_text("something else\n")
    assert "so I stop here" in play(EXTEND, tmp_path)[-1]


@pytest.mark.parametrize("prompt", ["What is the meaning of life?", "Bonjour", "Delete everything"])
def test_an_unknown_prompt_ends_with_what_to_do(tmp_path, prompt):
    (said,) = play(prompt, tmp_path)
    assert "demo model" in said
    assert "ANTHROPIC_API_KEY" in said


@pytest.mark.parametrize(
    "prompt", ["write a small program with a test", "Please create a tiny Python script and a test for it", WRITE]
)
def test_ways_to_ask_for_a_program(tmp_path, prompt):
    assert "Done" in play(prompt, tmp_path)[-1]


@pytest.mark.parametrize("system", ["CWD: {}\nDate: today", "# Environment\n - Primary working directory: {}\n - x: y"])
def test_it_works_in_the_folder_that_the_client_names(tmp_path, system):
    play(WRITE, tmp_path, system=system)
    assert (tmp_path / programs.PROGRAM_NAME).exists()


def test_side_requests_get_sensible_answers():
    def ask(**request: object) -> str:
        messages = [{"role": "user", "content": "quota"}]
        return script.answer(conversation.read({"messages": messages, **request})).blocks[0]["text"]

    assert ask(max_tokens=1) == "demo"
    assert "Demo model" in json.loads(ask(max_tokens=100, system="Generate a title for this session"))["title"]


def test_an_answer_is_cut_at_max_tokens():
    cut = protocol.fit(script.Answer([{"type": "text", "text": "a" * 100}], "end_turn"), 5)
    assert (cut.blocks[0]["text"], cut.stop_reason) == ("a" * 20, "max_tokens")


# The server


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("model")
    (folder / "key").write_text("the-key\n")
    command = [sys.executable, "-m", "autovibe_lab.model", "--key-file", folder / "key", "--port-file", folder / "port"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (folder / "port").exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    yield f"http://127.0.0.1:{(folder / 'port').read_text().strip()}"
    process.terminate()
    assert process.wait(60) == 0


KEY = {"x-api-key": "the-key"}
BODY = {"model": "claude-opus-5-5", "max_tokens": 500, "messages": [{"role": "user", "content": "hello"}]}


def bill(server: str) -> list[dict]:
    return requests.get(f"{server}/bill", headers=KEY, timeout=60).json()["lines"]


def test_it_wants_its_key(server):
    for headers in (
        {},
        {"x-api-key": "wrong"},
        {"Authorization": "Bearer wrong"},
        KEY | {"Authorization": "Bearer wrong"},
    ):
        response = requests.post(f"{server}/v1/messages", json=BODY, headers=headers, timeout=60)
        assert (response.status_code, response.json()["error"]["type"]) == (401, "authentication_error")
    bearer = {"Authorization": "Bearer the-key"}
    assert requests.post(f"{server}/v1/messages", json=BODY, headers=bearer, timeout=60).status_code == 200


def test_a_stream_says_what_the_whole_message_says(server):
    whole = requests.post(f"{server}/v1/messages", json=BODY, headers=KEY, timeout=60).json()
    raw = requests.post(f"{server}/v1/messages", json=BODY | {"stream": True}, headers=KEY, timeout=60).text
    events = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: ")]
    assert [events[0]["type"], *(event["type"] for event in events[-2:])] == [
        "message_start",
        "message_delta",
        "message_stop",
    ]
    text = "".join(event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta")
    assert text == whole["content"][0]["text"]
    assert events[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    assert [line["usage"] for line in bill(server)[-2:]] == [whole["usage"]] * 2


def test_a_cached_prompt_is_written_then_read(server):
    mark = {"type": "text", "text": "s" * 4000, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    first = requests.post(f"{server}/v1/messages", json=BODY | {"system": [mark]}, headers=KEY, timeout=60).json()[
        "usage"
    ]
    assert first["cache_creation"]["ephemeral_1h_input_tokens"] == first["cache_creation_input_tokens"] > 1000
    talk = [*BODY["messages"], {"role": "assistant", "content": "yes"}, {"role": "user", "content": "more"}]
    later = BODY | {"system": [mark], "messages": talk}
    second = requests.post(f"{server}/v1/messages", json=later, headers=KEY, timeout=60).json()["usage"]
    assert second["cache_read_input_tokens"] > 1000
    assert second["cache_creation_input_tokens"] < 100


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"model": "gpt-1"}, 404),
        ({"max_tokens": 0}, 400),
        ({"messages": []}, 400),
        ({"thinking": {"type": "enabled", "budget_tokens": 9000}}, 400),
    ],
)
def test_a_wrong_request_is_refused_and_not_billed(server, change, status):
    before = len(bill(server))
    response = requests.post(f"{server}/v1/messages", json=BODY | change, headers=KEY, timeout=60)
    assert (response.status_code, response.json()["type"]) == (status, "error")
    assert len(bill(server)) == before


def test_faults_come_as_often_as_asked(server):
    fault = {"kind": "status", "status": 429, "count": 2, "headers": {"retry-after": "3"}}
    assert requests.post(f"{server}/lab/faults", json=fault, headers=KEY, timeout=60).status_code == 200
    assert requests.get(f"{server}/lab/faults", headers=KEY, timeout=60).json() == {"waiting": 2}
    seen = [requests.post(f"{server}/v1/messages", json=BODY, headers=KEY, timeout=60) for _ in range(3)]
    assert requests.get(f"{server}/lab/faults", headers=KEY, timeout=60).json() == {"waiting": 0}
    assert [response.status_code for response in seen] == [429, 429, 200]
    assert seen[0].headers["retry-after"] == "3"
    assert requests.post(f"{server}/lab/faults", json={"kind": "x"}, headers=KEY, timeout=60).status_code == 400


def test_a_cut_stream_is_billed(server):
    before = len(bill(server))
    requests.post(f"{server}/lab/faults", json={"kind": "cut", "after_events": 2}, headers=KEY, timeout=60)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.post(f"{server}/v1/messages", json=BODY | {"stream": True}, headers=KEY, timeout=60)
    assert len(bill(server)) == before + 1


def test_models_and_counts(server):
    models = requests.get(f"{server}/v1/models", headers=KEY, timeout=60).json()["data"]
    assert all("demo model" in model["display_name"] for model in models)
    counted = requests.post(f"{server}/v1/messages/count_tokens", json=BODY, headers=KEY, timeout=60).json()
    assert 0 < counted["input_tokens"] < 100


@pytest.mark.parametrize(("content", "reason"), [(None, "cannot read its key file"), ("", "is empty")])
def test_without_a_key_it_does_not_start(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "key").write_text(content)
    command = [sys.executable, "-m", "autovibe_lab.model", "--key-file", str(tmp_path / "key")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert reason in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
