"""Reading a Messages request: the prompt, the folder, the tools, and what has been done since the prompt.

The demo model keeps nothing between calls. What it has done, it reads from the conversation: the ids of its tool calls
name its steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

STEP_ID = "toolu_demo_"
WEB_SEARCH = "web_search_20250305"
DEFAULT_FOLDER = "/workspace"

_FOLDER = re.compile(
    r"^[\s*-]*(?:CWD|(?:Primary |Current )?working directory|I'm currently working in the directory):"
    r"[ \t]*(\S.*?)[ \t]*$",
    re.MULTILINE | re.I,
)
#: Words that name no task of their own: whoever says so wants the one before to be gone on with.
_GO_ON = re.compile(r"you were interrupted\b", re.I)
#: What Claude Code and qwen-code say of a tool call whose session ended under it: nobody knows what came of it.
_UNKNOWN = re.compile(r"\[?Tool call interrupted|Tool execution result was not recorded")
_REMINDER = re.compile(r"<system-reminder>.*?</system-reminder>", re.DOTALL)


@dataclass(frozen=True)
class Result:
    """A tool's result, as the client reported it."""

    text: str
    failed: bool


@dataclass(frozen=True)
class Conversation:
    """What a request says, as far as the script needs it.

    tools: name → the names of its parameters. searches: how many web searches at the provider it allows.
    """

    prompt: str
    folder: str
    tools: dict[str, frozenset[str]]
    system: str
    max_tokens: int
    said: str = ""
    searches: int = 0
    results: dict[str, Result] = field(default_factory=dict)

    @property
    def fresh(self) -> bool:
        """Nothing has been done about the prompt yet."""
        return not self.results


def read(request: dict[str, Any]) -> Conversation:
    """The conversation in a request that `protocol.check` has accepted."""
    messages = request.get("messages", [])
    system = "\n".join([_text(request.get("system", "")), *(_text(m["content"]) for m in _of(messages, "system"))])
    start = _last_prompt(messages)
    said = "\n".join(_text(message["content"]) for message in _of(messages, "user"))
    folder = _FOLDER.search(system) or _FOLDER.search(said)
    return Conversation(
        prompt=_prompt_text(messages[start]) if start is not None else "",
        folder=folder.group(1) if folder else DEFAULT_FOLDER,
        tools={str(tool.get("name")): _parameters(tool) for tool in _offered(request)},
        system=system,
        said=said,
        searches=sum(int(tool.get("max_uses") or 1) for tool in _offered(request) if tool.get("type") == WEB_SEARCH),
        max_tokens=int(request.get("max_tokens") or 0),
        results=_results(messages[start + 1 :]) if start is not None else {},
    )


def _offered(request: dict[str, Any]) -> list[dict[str, Any]]:
    return [tool for tool in request.get("tools") or [] if not tool.get("defer_loading")]


def _parameters(tool: dict[str, Any]) -> frozenset[str]:
    return frozenset((tool.get("input_schema") or {}).get("properties") or {})


def step_of(tool_use_id: str) -> str | None:
    """The script's step that a tool call made, from its id: `toolu_demo_<step>_<unique>`."""
    if not tool_use_id.startswith(STEP_ID):
        return None
    return tool_use_id.removeprefix(STEP_ID).rpartition("_")[0]


def _of(messages: list[dict[str, Any]], role: str) -> Iterator[dict[str, Any]]:
    return (message for message in messages if message.get("role") == role)


def _blocks(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content or [])


def _text(content: Any) -> str:
    return "\n".join(str(block.get("text", "")) for block in _blocks(content) if block.get("type") == "text")


def _prompt_text(message: dict[str, Any]) -> str:
    return _REMINDER.sub("", _text(message["content"])).strip()


def _last_prompt(messages: list[dict[str, Any]]) -> int | None:
    """The index of the last user message with a task: not one that carries tool results, or only says to go on."""
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if message.get("role") != "user":
            continue
        carries_results = any(block.get("type") == "tool_result" for block in _blocks(message["content"]))
        words = _prompt_text(message)
        if words and not carries_results and not _GO_ON.match(words):
            return index
    return None


def _results(messages: list[dict[str, Any]]) -> dict[str, Result]:
    """step → its result, for the script's own tool calls; without those that were interrupted: they are made again."""
    results = {}
    for message in _of(messages, "user"):
        for block in _blocks(message["content"]):
            step = step_of(str(block.get("tool_use_id", ""))) if block.get("type") == "tool_result" else None
            said = _text(block.get("content"))
            if step and not _UNKNOWN.match(said):
                results[step] = Result(said, bool(block.get("is_error")))
    return results
