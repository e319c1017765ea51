"""The script of the demo model: from a conversation to the next answer."""

from __future__ import annotations

import json
import re
import shlex
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autovibe_lab.model import programs
from autovibe_lab.model.conversation import STEP_ID, Conversation, Result

Block = dict[str, Any]

UNKNOWN = (
    "I am autovibe's demo model, not a language model: I know only the demo's prompts, such as "
    '"Write a small program with a test" and "Add a command-line option to the program that is here, and a test". '
    "I have changed nothing. For a real model, set ANTHROPIC_API_KEY where autovibe runs (see `autovibe doctor`) "
    "and start it again."
)

_WRITE = re.compile(
    r"\b(write|create|build|make|implement)\s+(?:me\s+)?(?:a|an|some)\s+(?:[\w-]+,?\s+){0,4}?(program|script|tool|app)\b",
    re.I,
)
_EXTEND = re.compile(
    r"\b(extend|add|improve|change)\b.*\b(option|program|feature|test|flag|script)\b", re.I | re.DOTALL
)
_TITLE = re.compile(r"\btitle\b", re.I)


@dataclass(frozen=True)
class Answer:
    """The content blocks of an assistant message and why it stops."""

    blocks: list[Block]
    stop_reason: str


def answer(talk: Conversation) -> Answer:
    """What the demo model says next."""
    if not talk.tools:
        return _side_answer(talk)
    if _WRITE.search(talk.prompt):
        return _go_on(talk, "write", (_write_program, _write_test, _run_tests))
    if _EXTEND.search(talk.prompt):
        return _extend(talk)
    return _say(UNKNOWN)


def _side_answer(talk: Conversation) -> Answer:
    """Answers to what a client asks beside the work: titles of sessions, quota probes, summaries."""
    if _TITLE.search(talk.system):
        return _say(json.dumps({"title": "Demo model session"}))
    if talk.max_tokens <= 1 or not talk.prompt:
        return _say("demo")
    return _say(UNKNOWN)


def _say(text: str) -> Answer:
    return Answer([{"type": "text", "text": text}], "end_turn")


def _do(text: str, *calls: Block) -> Answer:
    return Answer([{"type": "text", "text": text}, *calls], "tool_use")


def _go_on(talk: Conversation, plan: str, steps: tuple[Callable[[Conversation], Answer], ...]) -> Answer:
    """The first step of a plan that has no result yet; a failed step ends the plan."""
    if not can_work(talk):
        return _say(
            "I am the demo model. My script needs the tool Bash, which this client does not offer. Nothing was done."
        )
    for index, step in enumerate(steps):
        name = step.__name__.strip("_")
        result = talk.results.get(name)
        if result is None:
            return step(talk)
        if result.failed and index < len(steps) - 1:
            return _say(f"Demo model: the step {name!r} failed, so I stop here. The tool said: {_tail(result.text)}")
    return _report(talk, plan)


def can_work(talk: Conversation) -> bool:
    return "Bash" in talk.tools


def _write_program(talk: Conversation) -> Answer:
    text = f"I am the demo model. I will write a word counter in {talk.folder}, then its test, and run it."
    return _do(text, write_file(talk, "write_program", programs.PROGRAM_NAME, programs.PROGRAM))


def _write_test(talk: Conversation) -> Answer:
    return _do("Now its test.", write_file(talk, "write_test", programs.TEST_NAME, programs.TEST))


def _run_tests(talk: Conversation) -> Answer:
    command = f"cd {shlex.quote(talk.folder)} && python3 -m unittest -v"
    return _do("Now I run the tests.", bash("run_tests", command, "Run the tests"))


def _extend(talk: Conversation) -> Answer:
    """Look, read, edit, test; the edits follow from what was read."""
    if not can_work(talk):
        return _go_on(talk, "extend", ())
    look = talk.results.get("look")
    if look is None:
        call = bash("look", f"ls -1 {shlex.quote(talk.folder)}", "List files in the workspace")
        return _do("I am the demo model. First I look at what is here.", call)
    if not {programs.PROGRAM_NAME, programs.TEST_NAME} <= set(look.text.split()):
        return _say(
            f"Demo model: {programs.PROGRAM_NAME} and {programs.TEST_NAME} are not in {talk.folder}, and my script can "
            "only extend these two. Ask me first to write a small program with a test. I have changed nothing."
        )
    if "read_program" not in talk.results:
        reads = [
            read_file(talk, "read_program", programs.PROGRAM_NAME),
            read_file(talk, "read_test", programs.TEST_NAME),
        ]
        return _do("The program and its test are here. I read both.", *reads)
    if programs.EXTENSION_MARK in talk.results["read_program"].text:
        return _go_on(talk, "again", (_run_tests,))
    edits = tuple(_edit(index) for index in range(len(programs.EXTENSION)))
    return _go_on(talk, "extend", (*edits, _run_tests))


def _edit(index: int) -> Callable[[Conversation], Answer]:
    name, old, new = programs.EXTENSION[index]

    def step(talk: Conversation) -> Answer:
        return _do(f"I edit {name}.", edit_file(talk, step.__name__, name, old, new))

    step.__name__ = f"edit_{index}"
    return step


def _report(talk: Conversation, plan: str) -> Answer:
    """The last words: what was done, and honestly whether the tests passed."""
    result = talk.results["run_tests"]
    done = {
        "write": f"I wrote {programs.PROGRAM_NAME} (a word counter) and {programs.TEST_NAME}",
        "extend": f"I added the option --top N to {programs.PROGRAM_NAME}, and a test of it to {programs.TEST_NAME}",
        "again": f"{programs.PROGRAM_NAME} has the option --top already; I changed nothing and ran its tests",
    }[plan]
    if tests_passed(result):
        return _say(f"Done (demo model). {done}, in {talk.folder}. The tests pass.")
    return _say(f"Not done (demo model). {done}, but the tests did not pass. They said: {_tail(result.text)}")


def tests_passed(result: Result) -> bool:
    """unittest's verdict: its last line is OK, and the command did not fail."""
    return not result.failed and re.search(r"^OK\b", result.text, re.MULTILINE) is not None


def _tail(text: str, length: int = 400) -> str:
    return text.strip()[-length:] or "(nothing)"


# Tool calls. Without Write, Edit or Read (a client may leave them out) the same is done with Bash.


def tool_use(step: str, name: str, arguments: dict[str, Any]) -> Block:
    return {"type": "tool_use", "id": f"{STEP_ID}{step}_{uuid.uuid4().hex[:12]}", "name": name, "input": arguments}


def bash(step: str, command: str, description: str) -> Block:
    return tool_use(step, "Bash", {"command": command, "description": description})


def write_file(talk: Conversation, step: str, name: str, content: str) -> Block:
    path = f"{talk.folder}/{name}"
    if "Write" in talk.tools:
        return tool_use(step, "Write", {"file_path": path, "content": content})
    return bash(step, f"cat > {shlex.quote(path)} <<'END_OF_FILE'\n{content}END_OF_FILE", f"Write {name}")


def read_file(talk: Conversation, step: str, name: str) -> Block:
    path = f"{talk.folder}/{name}"
    if "Read" in talk.tools:
        return tool_use(step, "Read", {"file_path": path})
    return bash(step, f"cat {shlex.quote(path)}", f"Read {name}")


def edit_file(talk: Conversation, step: str, name: str, old: str, new: str) -> Block:
    path = f"{talk.folder}/{name}"
    if "Edit" in talk.tools:
        return tool_use(step, "Edit", {"file_path": path, "old_string": old, "new_string": new})
    program = (
        "import sys; path, old, new = sys.argv[1:]; text = open(path).read(); "
        "sys.exit('the text to replace is not there exactly once') if text.count(old) != 1 else "
        "open(path, 'w').write(text.replace(old, new))"
    )
    command = shlex.join(["python3", "-c", program, path, old, new])
    return bash(step, command, f"Edit {name}")
