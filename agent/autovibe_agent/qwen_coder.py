"""Agent type `qwen_coder`: qwen-code, headless, its model calls through the hub's gateway."""

import json
from pathlib import Path

from autovibe_agent.base import FAILED, SUCCEEDED, Message, Outcome, ending
from autovibe_agent.stream_json import SessionAgent, event_of, messages_of

# Nothing but model calls leaves the guest, and nobody is there to be asked or shown anything.
SETTINGS = {
    "general": {"enableAutoUpdate": False, "disableAutoUpdate": True},
    "privacy": {"usageStatisticsEnabled": False},
    "telemetry": {"enabled": False},
}


class QwenCoderAgent(SessionAgent):
    """Reads the stream of JSON lines that `qwen -o stream-json` writes."""

    NAME = "qwen_coder"
    NEEDS_LOCAL_GATEWAY = True
    HAS_HOOKS = True

    TRANSCRIPT = ".qwen/projects/*/chats/{id}.jsonl"
    NO_SESSION = "No saved session found"

    @property
    def settings_path(self) -> Path:
        return self.paths.run / "qwen-settings.json"

    def prepare(self) -> None:
        self.settings_path.write_text(json.dumps({**SETTINGS, **self.hook_settings}), encoding="utf-8")
        self.settings_path.chmod(0o644)

    def argv(self) -> list[str]:
        argv = [str(self.paths.root / "usr/local/bin/qwen"), "--output-format", "stream-json"]
        argv += ["--approval-mode", "yolo", "--auth-type", "openai"]
        argv += self.session_options()
        if self.assignment.model:
            argv += ["--model", self.assignment.model]
        return argv

    def environment(self) -> dict[str, str]:
        return super().environment() | {
            "OPENAI_BASE_URL": f"{self.local_gateway.url}/v1",
            "OPENAI_API_KEY": self.local_gateway.key,
            "QWEN_CODE_SYSTEM_SETTINGS_PATH": str(self.settings_path),
            "QWEN_CODE_SUPPRESS_YOLO_WARNING": "1",
        }

    def read_output(self, line: str) -> list[Message]:
        event = event_of(line)
        if event is None:
            return super().read_output(line)
        kind = event.get("type")
        if kind == "result":
            self.result = event
        if kind == "system" and event.get("subtype") == "init":
            return [Message("system", f"qwen-code {event.get('qwen_code_version', '')} with {event.get('model')}")]
        return messages_of(event) if kind in ("assistant", "user") else []

    def outcome(self, exit_code: int) -> Outcome:
        result = self.result or {}
        details = {key: result[key] for key in ("subtype", "num_turns", "session_id") if key in result}
        # Not `usage`, which is what was billed: its prompts count what was cached as well.
        details |= {"turns": self.turns, "tokens": result.get("usage")}
        error = result.get("error")
        text = str(result.get("result") or (error.get("message") if isinstance(error, dict) else "") or "")[:4000]
        # After its result it may still end with 1: on a slow machine it waits in vain for what it does beside the work.
        if result.get("subtype") == "success" and not result.get("is_error"):
            return Outcome(SUCCEEDED, text, exit_code, details)
        why = f"qwen {ending(exit_code)}: {text or self.error_tail.strip()[-500:] or 'it said nothing'}"
        ended = self.ended_by_gateway(exit_code, why, details)
        ended.passing = ended.passing or (ended.outcome == FAILED and self.session_is_lost)
        return ended
