"""The demo model's chat completions: its script played by a client of that API, and as aider reads edits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from autovibe_lab.model import chat, conversation, edits, programs, protocol, script

WRITE = "Write a small program with a test."
EXTEND = "Add a command-line option to the program that is here, and a test of it."
QWEN_TOOLS = {
    "run_shell_command": ("command", "is_background"),
    "write_file": ("file_path", "content"),
    "read_file": ("absolute_path",),
    "edit": ("file_path", "old_string", "new_string"),
}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    asked = chat.as_messages(chat.check(request))
    reply = protocol.fit(script.answer(conversation.read(asked)), asked["max_tokens"])
    return chat.completion(request, reply, protocol.usage(asked, reply))


def run_tool(name: str, arguments: dict[str, Any]) -> str:
    if name == "run_shell_command":
        assert arguments["is_background"] is False
        done = subprocess.run(["bash", "-c", arguments["command"]], capture_output=True, text=True, timeout=60)
        return f"Command: {arguments['command']}\nOutput: {done.stdout}{done.stderr}\nExit Code: {done.returncode}"
    if name == "read_file":
        return Path(arguments["absolute_path"]).read_text()
    path = Path(arguments["file_path"])
    if name == "write_file":
        path.write_text(arguments["content"])
    else:
        path.write_text(path.read_text().replace(arguments["old_string"], arguments["new_string"]))
    return "done"


def play(prompt: str, folder: Path) -> str:
    """Talk as qwen-code does until there are no more calls; returns the last words."""
    schemas = {name: {"properties": dict.fromkeys(names, {})} for name, names in QWEN_TOOLS.items()}
    tools = [{"type": "function", "function": {"name": name, "parameters": one}} for name, one in schemas.items()]
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "You are an agent."},
        {"role": "user", "content": f"This is the context.\nI'm currently working in the directory: {folder}\n"},
        {"role": "assistant", "content": "Got it."},
        {"role": "user", "content": [{"type": "text", "text": prompt}]},
    ]
    for _ in range(20):
        message = answer({"model": "qwen", "messages": messages, "tools": tools})["choices"][0]["message"]
        messages.append(message)
        if not message.get("tool_calls"):
            return message["content"]
        for call in message["tool_calls"]:
            text = run_tool(call["function"]["name"], json.loads(call["function"]["arguments"]))
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": text})
    raise AssertionError("the script does not end")


def test_it_writes_a_program_with_a_test_and_extends_both(tmp_path):
    assert play(WRITE, tmp_path).endswith("The tests pass.")
    assert "--top" in play(EXTEND, tmp_path)
    tests = subprocess.run([sys.executable, "-m", "unittest"], cwd=tmp_path, capture_output=True, text=True)
    assert "Ran 4 tests" in tests.stderr
    assert tests.returncode == 0


@pytest.mark.parametrize("system", ["use *SEARCH/REPLACE block*s", "you MUST return a *file listing*"])
def test_a_client_without_tools_gets_its_edits_as_it_wants_them(system):
    def ask(prompt: str, *before: str) -> str:
        said = [{"role": "user", "content": text} for text in (*before, prompt)]
        request = {"model": "m", "messages": [{"role": "system", "content": system}, *said]}
        return answer(request)["choices"][0]["message"]["content"]

    written = ask(WRITE)
    assert programs.PROGRAM in written
    assert programs.TEST in written
    assert ("<<<<<<< SEARCH" in written) == ("SEARCH" in system)
    assert "I have changed nothing" in ask(EXTEND)
    assert "--top" in ask(EXTEND, *edits.FILES.values())


def test_a_stream_says_what_the_whole_completion_says():
    request = {
        "model": "m",
        "messages": [{"role": "user", "content": WRITE}],
        "tools": [
            {"type": "function", "function": {"name": "write_file"}},
            {"type": "function", "function": {"name": "run_shell_command"}},
        ],
    }
    whole = answer(request)
    events = [event.decode()[6:].strip() for event in chat.chunks(whole, True)]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert chunks.pop()["usage"] == whole["usage"]
    deltas = [one["choices"][0]["delta"] for one in chunks]
    assert "".join(delta.get("content") or "" for delta in deltas) == whole["choices"][0]["message"]["content"]
    arguments = "".join(call["function"]["arguments"] for delta in deltas for call in delta.get("tool_calls", []))
    assert arguments == whole["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    "change", [{"model": ""}, {"messages": []}, {"messages": [{"role": "king"}]}, {"max_tokens": -1}]
)
def test_a_wrong_request_is_refused(change):
    with pytest.raises(protocol.BadRequest):
        chat.check({"model": "m", "messages": [{"role": "user", "content": "x"}]} | change)
