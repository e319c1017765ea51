"""Agent type `claude_code`: Claude Code, headless, its model calls through the hub's gateway."""

import json
import os
import shlex

from autovibe_agent.base import (
    FAILED,
    OUT_OF_BUDGET,
    PAYMENT_REQUIRED,
    SUCCEEDED,
    TRY_AGAIN,
    Message,
    Outcome,
    ending,
    was_killed,
)
from autovibe_agent.stream_json import SessionAgent, event_of, message_id, messages_of

KEY_HELPER_TTL_MS = 60_000
NO_ANSWER = ("API Error: Unable to connect", "API Error: Connection", "API Error: Request timed out", "API Error: 5")
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


class ClaudeCodeAgent(SessionAgent):
    """Reads the stream of JSON lines that `claude -p --output-format stream-json` writes."""

    NAME = "claude_code"
    HAS_HOOKS = True

    TRANSCRIPT = ".claude/projects/*/{id}.jsonl"
    NO_SESSION = "No conversation found with session ID"

    def __init__(self, *args):
        super().__init__(*args)
        self._turns: set[str] = set()
        self.settings_path = self.paths.run / "claude-settings.json"

    @property
    def turns(self) -> int:
        return self._turns_before + len(self._turns)

    def prepare(self) -> None:
        # The key is the machine's token: asked for anew by the helper, so that a renewed one is used.
        settings = {"apiKeyHelper": f"cat {shlex.quote(str(self.paths.token))}", **self.hook_settings}
        self.settings_path.write_text(json.dumps(settings), encoding="utf-8")
        self.settings_path.chmod(0o644)

    def argv(self) -> list[str]:
        argv = [str(self.paths.root / "usr/local/bin/claude"), "-p", "--output-format", "stream-json", "--verbose"]
        argv += ["--permission-mode", "bypassPermissions", "--settings", str(self.settings_path)]
        argv += self.session_options()
        if self.turns_left:
            argv += ["--max-turns", str(self.turns_left)]
        if self.assignment.model:
            argv += ["--model", self.assignment.model]
        return argv

    def environment(self) -> dict[str, str]:
        own = {
            "ANTHROPIC_BASE_URL": self.assignment.gateway_url,
            "CLAUDE_CODE_API_KEY_HELPER_TTL_MS": str(KEY_HELPER_TTL_MS),
            "NODE_EXTRA_CA_CERTS": str(self.paths.ca),
        }
        engine = ONE_CORE if os.cpu_count() == 1 else {}
        return {**super().environment(), **dict.fromkeys(QUIET, "1"), **engine, **own}

    def read_output(self, line: str) -> list[Message]:
        event = event_of(line)
        if event is None:
            return super().read_output(line)
        kind = event.get("type")
        if kind == "result":
            self.result = event
            return []
        if kind == "system" and event.get("subtype") == "init":
            return [Message("system", f"Claude Code {event.get('claude_code_version', '')} with {event.get('model')}")]
        if (answer := message_id(event)) is not None:
            self._turns.add(answer)
        return messages_of(event) if kind in ("assistant", "user") else []

    def outcome(self, exit_code: int) -> Outcome:
        if self.result is None:
            why = self.error_tail.strip()[-500:] or "it said nothing"
            summary = f"claude {ending(exit_code)} without a result: {why}"
            return Outcome(FAILED, summary, exit_code, passing=was_killed(exit_code))
        result = self.result
        keys = ("subtype", "num_turns", "session_id", "total_cost_usd", "usage", "terminal_reason", "api_error_status")
        details = {key: result[key] for key in keys if result.get(key) is not None} | {"turns": self.turns}
        text = str(result.get("result") or "")[:4000]
        # An API error comes as is_error with subtype "success": is_error decides.
        if not result.get("is_error") and result.get("subtype") == "success" and exit_code == 0:
            return Outcome(SUCCEEDED, text, exit_code, details)
        if _is_out_of_budget(result):
            return Outcome(OUT_OF_BUDGET, text or "the budget is used up", exit_code, details)
        why = WHY_FAILED.get(str(result.get("subtype")), f"claude {ending(exit_code)}")
        summary = f"{why}: {text}" if text else why
        passing = _is_passing(result) or self.session_is_lost
        return Outcome(FAILED, summary, exit_code, details, passing=passing)


def _is_out_of_budget(result: dict) -> bool:
    status = result.get("api_error_status")
    if status is not None:
        return str(status) == str(PAYMENT_REQUIRED)
    return bool(result.get("is_error")) and str(result.get("result") or "").startswith("API Error: 402")


def _is_passing(result: dict) -> bool:
    """Whether the hub did not answer, or not in time: nothing is wrong with the work."""
    status = str(result.get("api_error_status") or "")
    if status:
        return status.isdecimal() and (int(status) >= 500 or int(status) in TRY_AGAIN)
    return bool(result.get("is_error")) and str(result.get("result") or "").startswith(NO_ANSWER)
