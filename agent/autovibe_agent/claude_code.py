"""Agent type `claude_code`: Claude Code, headless, its model calls through the hub's gateway."""

import json
import os
import shlex
import uuid

from autovibe_agent.base import FAILED, OUT_OF_BUDGET, SUCCEEDED, CodingAgent, Message, Outcome, ending

KEY_HELPER_TTL_MS = 60_000
PAYMENT_REQUIRED = 402
# Nothing but model calls: the guest reaches no other host, and waiting for one costs time.
QUIET = (
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
    "DISABLE_TELEMETRY",
    "DISABLE_AUTOUPDATER",
    "DISABLE_ERROR_REPORTING",
    "DISABLE_BUG_COMMAND",
    "CLAUDE_CODE_DISABLE_TERMINAL_TITLE",
)
# With one core, threads that collect garbage beside the program only take its time: a quarter of the start, measured
# in an emulated guest. Names of Bun's engine; one that does not know them ignores them.
ONE_CORE = {"BUN_JSC_useConcurrentGC": "0", "BUN_JSC_numberOfGCMarkers": "1"}
WHY_FAILED = {
    "error_max_turns": "stopped at the limit of turns",
    "error_during_execution": "failed while it worked",
    "error_max_budget_usd": "stopped at its own limit of money",
}


class ClaudeCodeAgent(CodingAgent):
    """Reads the stream of JSON lines that `claude -p --output-format stream-json` writes."""

    NAME = "claude_code"

    def __init__(self, *args):
        super().__init__(*args)
        self.session_id = str(uuid.uuid4())
        self.result: dict | None = None
        self.settings_path = self.paths.run / "claude-settings.json"

    def prepare(self) -> None:
        # The key is the machine's token: asked for anew by the helper, so that a renewed one is used.
        settings = {"apiKeyHelper": f"cat {shlex.quote(str(self.paths.token))}"}
        self.settings_path.write_text(json.dumps(settings), encoding="utf-8")
        self.settings_path.chmod(0o644)

    def argv(self) -> list[str]:
        argv = [str(self.paths.root / "usr/local/bin/claude"), "-p", "--output-format", "stream-json", "--verbose"]
        argv += ["--permission-mode", "bypassPermissions", "--settings", str(self.settings_path)]
        argv += ["--session-id", self.session_id]
        if self.assignment.max_turns:
            argv += ["--max-turns", str(self.assignment.max_turns)]
        if self.assignment.model:
            argv += ["--model", self.assignment.model]
        return argv

    def stdin(self) -> bytes:
        return self.assignment.prompt.encode()

    def environment(self) -> dict[str, str]:
        own = {
            "ANTHROPIC_BASE_URL": self.assignment.gateway_url,
            "CLAUDE_CODE_API_KEY_HELPER_TTL_MS": str(KEY_HELPER_TTL_MS),
            "NODE_EXTRA_CA_CERTS": str(self.paths.ca),
        }
        engine = ONE_CORE if os.cpu_count() == 1 else {}
        return {**super().environment(), **dict.fromkeys(QUIET, "1"), **engine, **own}

    def read_output(self, line: str) -> list[Message]:
        try:
            event = json.loads(line)
        except ValueError:
            return super().read_output(line)
        if not isinstance(event, dict):
            return []
        kind = event.get("type")
        if kind == "result":
            self.result = event
            return []
        if kind == "system" and event.get("subtype") == "init":
            return [Message("system", f"Claude Code {event.get('claude_code_version', '')} with {event.get('model')}")]
        if kind in ("assistant", "user"):
            return _messages(event.get("message"))
        return []

    def context(self) -> dict:
        return {**super().context(), "session_id": self.session_id}

    def outcome(self, exit_code: int) -> Outcome:
        if self.result is None:
            why = self.error_tail.strip()[-500:] or "it said nothing"
            return Outcome(FAILED, f"claude {ending(exit_code)} without a result: {why}", exit_code)
        result = self.result
        keys = ("subtype", "num_turns", "session_id", "total_cost_usd", "usage", "terminal_reason", "api_error_status")
        details = {key: result[key] for key in keys if result.get(key) is not None}
        text = str(result.get("result") or "")[:4000]
        # An API error comes as is_error with subtype "success": is_error decides.
        if not result.get("is_error") and result.get("subtype") == "success" and exit_code == 0:
            return Outcome(SUCCEEDED, text, exit_code, details)
        if _is_out_of_budget(result):
            return Outcome(OUT_OF_BUDGET, text or "the budget is used up", exit_code, details)
        why = WHY_FAILED.get(str(result.get("subtype")), f"claude {ending(exit_code)}")
        return Outcome(FAILED, f"{why}: {text}" if text else why, exit_code, details)


def _is_out_of_budget(result: dict) -> bool:
    status = result.get("api_error_status")
    if status is not None:
        return str(status) == str(PAYMENT_REQUIRED)
    return bool(result.get("is_error")) and str(result.get("result") or "").startswith("API Error: 402")


def _messages(message) -> list[Message]:
    """The text, tool calls and failed tool results of one message."""
    content = message.get("content") if isinstance(message, dict) else None
    blocks = content if isinstance(content, list) else []
    return [found for block in blocks if isinstance(block, dict) for found in _block(block)]


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
