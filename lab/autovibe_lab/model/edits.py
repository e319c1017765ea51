"""Edits as aider reads them out of an answer's text: whole files, or blocks of what to search and replace."""

from __future__ import annotations

from autovibe_lab.model import programs
from autovibe_lab.model.conversation import Conversation

WHOLE, BLOCKS = "whole", "blocks"
FILES = {programs.PROGRAM_NAME: programs.PROGRAM, programs.TEST_NAME: programs.TEST}


def format_of(talk: Conversation) -> str | None:
    """How the client wants its edits, from its system prompt; None when it wants none."""
    if "SEARCH/REPLACE" in talk.system:
        return BLOCKS
    return WHOLE if "*file listing*" in talk.system else None


def program(form: str) -> str:
    """The program and its test as new files."""
    return "\n".join(_block(name, "", text) if form == BLOCKS else _listing(name, text) for name, text in FILES.items())


def extension(talk: Conversation, form: str) -> str | None:
    """The edits of both files; None when they are not in the chat as they were written."""
    if not all(text in talk.said for text in FILES.values()):
        return None
    if form == BLOCKS:
        return "\n".join(_block(*edit) for edit in programs.EXTENSION)
    changed = dict(FILES)
    for name, old, new in programs.EXTENSION:
        changed[name] = changed[name].replace(old, new)
    return "\n".join(_listing(name, text) for name, text in changed.items())


def _listing(name: str, text: str) -> str:
    return f"{name}\n```\n{text}```\n"


def _block(name: str, old: str, new: str) -> str:
    return f"{name}\n```python\n<<<<<<< SEARCH\n{old}=======\n{new}>>>>>>> REPLACE\n```\n"
