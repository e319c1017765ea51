"""What Claude Code and qwen-code have in common: a session that can be resumed, and one JSON event a line."""

import json
import uuid

from autovibe_agent.base import GO_ON, CodingAgent, Message


class SessionAgent(CodingAgent):
    """A CLI that keeps a session of its own making under an id that we choose; goes on with it when it is there."""

    #: Where the session `{id}` stands in the home folder, and what the CLI says of one that it cannot read.
    TRANSCRIPT = ""
    NO_SESSION = ""

    def __init__(self, *args):
        super().__init__(*args)
        self.session_id = str(uuid.uuid4())
        self.result: dict | None = None
        self.goes_on = False

    def resume(self, session: dict) -> None:
        super().resume(session)
        kept = session.get("session_id")
        # The session is there as soon as the CLI has written its first line; else the work begins anew.
        found = self.user.home.glob(self.TRANSCRIPT.format(id=kept)) if kept else ()
        self.goes_on = any(file.stat().st_size for file in found)
        if self.goes_on:
            self.session_id = kept

    @property
    def session_is_lost(self) -> bool:
        """Whether the CLI could not read its session: the next attempt begins anew."""
        return self.goes_on and self.NO_SESSION in self.error_tail

    def session(self) -> dict:
        return super().session() | ({} if self.session_is_lost else {"session_id": self.session_id})

    @property
    def hook_settings(self) -> dict:
        """What the CLI's settings have of hooks."""
        return {"hooks": self.hooks.settings} if self.hooks is not None else {}

    def session_options(self) -> list[str]:
        return ["--resume" if self.goes_on else "--session-id", self.session_id]

    def stdin(self) -> bytes:
        return (GO_ON if self.goes_on else self.assignment.prompt).encode()

    def context(self) -> dict:
        return {**super().context(), "session_id": self.session_id}


def event_of(line: str) -> dict | None:
    """The event in a line; None when the line is no JSON, {} when it is JSON without an event."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else {}


def messages_of(event: dict) -> list[Message]:
    """The text, tool calls and failed tool results of an `assistant` or `user` event."""
    message = event.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    blocks = content if isinstance(content, list) else []
    return [found for block in blocks if isinstance(block, dict) for found in _block(block)]


def message_id(event: dict) -> str | None:
    """The id of an assistant's message; several events may be parts of one."""
    message = event.get("message")
    found = message.get("id") if event.get("type") == "assistant" and isinstance(message, dict) else None
    return found if isinstance(found, str) else None


def _block(block: dict) -> list[Message]:
    kind = block.get("type")
    if kind == "text" and str(block.get("text", "")).strip():
        return [Message("text", str(block["text"]))]
    if kind == "tool_use":
        return [Message("tool", f"{block.get('name')} {_tool_target(block.get('input'))}".strip())]
    if kind == "tool_result" and block.get("is_error"):
        return [Message("error", _result_text(block.get("content")))]
    return []


def _tool_target(arguments) -> str:
    """What a tool call is about, in one line: its command, its file, or its arguments."""
    if not isinstance(arguments, dict):
        return ""
    for key in ("command", "file_path", "path", "pattern", "url", "description"):
        if isinstance(arguments.get(key), str):
            return arguments[key]
    return json.dumps(arguments)[:200]


def _result_text(content) -> str:
    if isinstance(content, str):
        return content
    texts = [str(part.get("text", "")) for part in content or [] if isinstance(part, dict)]
    return "\n".join(texts)
