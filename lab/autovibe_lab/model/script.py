"""The script of the demo model: from a conversation to the next answer."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from autovibe_lab.model import edits, programs, searches
from autovibe_lab.model.conversation import Conversation, Result
from autovibe_lab.model.tools import Block, can_work, edit_file, read_file, shell, write_file

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
_CLEAN = re.compile(r"\bclean\s+up\b", re.I)
_TITLE = re.compile(r"\btitle\b", re.I)


@dataclass(frozen=True)
class Answer:
    """The content blocks of an assistant message and why it stops."""

    blocks: list[Block]
    stop_reason: str


def answer(talk: Conversation) -> Answer:
    """What the demo model says next."""
    if talk.searches and (found := searches.asked(talk.prompt, talk.searches)):
        said = searches.cited("I am the demo model. What I found in my web is in this answer.")
        return Answer([*found, said], "end_turn")
    if not talk.tools:
        return _edit_in_words(talk) or _side_answer(talk)
    if _WRITE.search(talk.prompt):
        steps = (_write_program, _write_test, _run_tests)
        return _go_on(talk, "write", (*steps[:2], _clean_up, steps[2]) if _CLEAN.search(talk.prompt) else steps)
    if _EXTEND.search(talk.prompt):
        return _extend(talk)
    return _say(UNKNOWN)


def _edit_in_words(talk: Conversation) -> Answer | None:
    """For a client without tools that reads edits out of the text (aider): the program, or its extension."""
    written = edits.format_of(talk)
    if written is None:
        return None
    if _WRITE.search(talk.prompt):
        return _say(f"I am the demo model. Here are a word counter and its test.\n\n{edits.program(written)}")
    if _EXTEND.search(talk.prompt):
        changed = edits.extension(talk, written)
        if changed is None:
            return _say(
                f"Demo model: add {programs.PROGRAM_NAME} and {programs.TEST_NAME} to the chat as I wrote them; "
                "my script can only extend these two. I have changed nothing."
            )
        return _say(f"I am the demo model. I add the option --top N and a test of it.\n\n{changed}")
    return None


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
            "I am the demo model. My script needs a tool that runs shell commands, which this client does not offer. "
            "Nothing was done."
        )
    for index, step in enumerate(steps):
        name = step.__name__.strip("_")
        result = talk.results.get(name)
        if result is None:
            return step(talk)
        if result.failed and index < len(steps) - 1:
            return _say(f"Demo model: the step {name!r} failed, so I stop here. The tool said: {_tail(result.text)}")
    return _report(talk, plan)


def _write_program(talk: Conversation) -> Answer:
    text = f"I am the demo model. I will write a word counter in {talk.folder}, then its test, and run it."
    return _do(text, write_file(talk, "write_program", programs.PROGRAM_NAME, programs.PROGRAM))


def _write_test(talk: Conversation) -> Answer:
    return _do("Now its test.", write_file(talk, "write_test", programs.TEST_NAME, programs.TEST))


def _run_tests(talk: Conversation) -> Answer:
    command = f"cd {shlex.quote(talk.folder)} && python3 -m unittest -v"
    return _do("Now I run the tests.", shell(talk, "run_tests", command, "Run the tests"))


def _clean_up(talk: Conversation) -> Answer:
    """Something that cannot be taken back."""
    command = f"rm -rf {shlex.quote(talk.folder)}/scratch {shlex.quote(talk.folder)}/__pycache__"
    return _do("I clean up what is not needed.", shell(talk, "clean_up", command, "Remove scratch files"))


def _extend(talk: Conversation) -> Answer:
    """Look, read, edit, test; the edits follow from what was read."""
    if not can_work(talk):
        return _go_on(talk, "extend", ())
    look = talk.results.get("look")
    if look is None:
        call = shell(talk, "look", f"ls -1 {shlex.quote(talk.folder)}", "List files in the workspace")
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
