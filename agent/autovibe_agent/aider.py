"""Agent type `aider`: aider, scripted, its model calls through the hub's gateway."""

import json
import os
from pathlib import Path

from autovibe_agent.base import FAILED, GO_ON, SUCCEEDED, CodingAgent, Outcome
from autovibe_agent.paths import write_private

# With so few and small files all are in the chat from the start, as a person would add them; else aider finds its own.
FEW_FILES, FEW_BYTES = 20, 100_000
# It knows no price of a model behind a gateway, and would look for one where the guest gets no answer.
MODEL_INFO = {
    "litellm_provider": "openai",
    "mode": "chat",
    "max_input_tokens": 200_000,
    "max_output_tokens": 8192,
    "input_cost_per_token": 0,
    "output_cost_per_token": 0,
}
OPTIONS = (
    "--yes-always",
    "--no-stream",
    "--no-pretty",
    "--no-check-update",
    "--no-show-release-notes",
    "--no-show-model-warnings",
    "--no-suggest-shell-commands",
    "--no-detect-urls",
    "--no-gitignore",
    "--no-auto-commits",
    "--no-dirty-commits",
    "--analytics-disable",
    "--restore-chat-history",
)


class AiderAgent(CodingAgent):
    """It has no machine-readable output and ends with 0 whatever happens: what its calls came to decides."""

    NAME = "aider"
    NEEDS_LOCAL_GATEWAY = True

    @property
    def model(self) -> str:
        return f"openai/{self.assignment.model}"

    @property
    def _folder(self) -> Path:
        return self.user.home / ".autovibe-aider"

    def prepare(self) -> None:
        self._folder.mkdir(exist_ok=True)
        if os.geteuid() == 0:
            os.chown(self._folder, self.user.uid, self.user.gid)
        prompt = f"{self.assignment.prompt}\n\n{GO_ON}" if self.resumed else self.assignment.prompt
        write_private(self._folder / "prompt", prompt, self.user)
        write_private(self._folder / "models.json", json.dumps({self.model: MODEL_INFO}), self.user)

    def argv(self) -> list[str]:
        argv = [str(self.paths.root / "usr/local/bin/aider"), "--model", self.model, *OPTIONS]
        argv += ["--message-file", str(self._folder / "prompt")]
        argv += ["--model-metadata-file", str(self._folder / "models.json")]
        argv += ["--chat-history-file", str(self._folder / "chat.md")]
        argv += ["--input-history-file", str(self._folder / "input")]
        if not (self.paths.workspace / ".git").exists():
            argv += ["--no-git"]
        return argv + [word for name in self._few_files() for word in ("--file", name)]

    def environment(self) -> dict[str, str]:
        return super().environment() | {
            "OPENAI_API_BASE": f"{self.local_gateway.url}/v1",
            "OPENAI_API_KEY": self.local_gateway.key,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }

    def outcome(self, exit_code: int) -> Outcome:
        details = {"turns": self.turns}
        if exit_code == 0 and self.local_gateway.answers and self.local_gateway.last_status == 200:
            return Outcome(SUCCEEDED, self.output_tail.strip()[-2000:], exit_code, details)
        if exit_code == 0 and self.local_gateway.last_status is None:
            return Outcome(FAILED, f"aider made no model call: {self.output_tail.strip()[-500:]}", exit_code, details)
        return self.ended_by_gateway(exit_code, f"aider: {self.output_tail.strip()[-500:]}", details)

    def _few_files(self) -> list[str]:
        """The text files of the workspace, when they are few and small."""
        found, size = [], 0
        for top, folders, names in os.walk(self.paths.workspace):
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
            for name in sorted(names):
                path = Path(top) / name
                if name.startswith(".") or path.is_symlink() or not _is_text(path):
                    continue
                size += path.stat().st_size
                found.append(str(path))
                if len(found) > FEW_FILES or size > FEW_BYTES:
                    return []
        return found


def _is_text(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.read(4096).decode()
        return True
    except (OSError, UnicodeDecodeError):
        return False
