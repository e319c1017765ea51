"""Calls of a client's tools: Claude Code's by their names, and qwen-code's.

Without tools that write, edit or read (a client may leave them out) the same is done with its shell.
"""

from __future__ import annotations

import shlex
import uuid
from typing import Any

from autovibe_lab.model.conversation import STEP_ID, Conversation

Block = dict[str, Any]

SHELL = ("Bash", "run_shell_command")
WRITE = ("Write", "write_file")
READ = ("Read", "read_file")
EDIT = ("Edit", "edit")


def can_work(talk: Conversation) -> bool:
    return _offered(talk, SHELL) is not None


def shell(talk: Conversation, step: str, command: str, description: str) -> Block:
    name = _offered(talk, SHELL) or SHELL[0]
    arguments: dict[str, Any] = {"command": command, "description": description}
    if "is_background" in talk.tools.get(name, ()):
        arguments["is_background"] = False
    return _tool_use(step, name, arguments)


def write_file(talk: Conversation, step: str, name: str, content: str) -> Block:
    path = f"{talk.folder}/{name}"
    if tool := _offered(talk, WRITE):
        return _tool_use(step, tool, {_path(talk, tool): path, "content": content})
    return shell(talk, step, f"cat > {shlex.quote(path)} <<'END_OF_FILE'\n{content}END_OF_FILE", f"Write {name}")


def read_file(talk: Conversation, step: str, name: str) -> Block:
    path = f"{talk.folder}/{name}"
    if tool := _offered(talk, READ):
        return _tool_use(step, tool, {_path(talk, tool): path})
    return shell(talk, step, f"cat {shlex.quote(path)}", f"Read {name}")


def edit_file(talk: Conversation, step: str, name: str, old: str, new: str) -> Block:
    path = f"{talk.folder}/{name}"
    if tool := _offered(talk, EDIT):
        return _tool_use(step, tool, {_path(talk, tool): path, "old_string": old, "new_string": new})
    program = (
        "import sys; path, old, new = sys.argv[1:]; text = open(path).read(); "
        "sys.exit('the text to replace is not there exactly once') if text.count(old) != 1 else "
        "open(path, 'w').write(text.replace(old, new))"
    )
    command = shlex.join(["python3", "-c", program, path, old, new])
    return shell(talk, step, command, f"Edit {name}")


def _offered(talk: Conversation, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in talk.tools), None)


def _path(talk: Conversation, tool: str) -> str:
    """What the tool calls its path: that changes from version to version."""
    known = ("file_path", "absolute_path", "path")
    return next((name for name in known if name in talk.tools[tool]), known[0])


def _tool_use(step: str, name: str, arguments: dict[str, Any]) -> Block:
    return {"type": "tool_use", "id": f"{STEP_ID}{step}_{uuid.uuid4().hex[:12]}", "name": name, "input": arguments}
