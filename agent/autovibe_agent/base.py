"""What an agent type is: how one coding CLI is started, what its output means, how it ended.

A new type is one module of this package, named as the type, with one subclass of CodingAgent whose NAME is that name.
"""

import importlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from autovibe_agent.paths import Paths, User

SUCCEEDED, FAILED, OUT_OF_BUDGET, STOPPED = "succeeded", "failed", "out_of_budget", "stopped"
TAIL_CHARS = 2000


@dataclass(frozen=True)
class Assignment:
    """What the hub gives this machine to do."""

    agent_type: str
    prompt: str
    command: list[str] | None
    files: list[dict]
    wall_seconds: float
    max_turns: int | None
    checkpoint_seconds: float
    checkpoint_calls: int
    gateway_url: str
    model: str | None

    @classmethod
    def of(cls, answer: dict) -> "Assignment":
        limits, checkpoint = answer.get("limits") or {}, answer.get("checkpoint") or {}
        return cls(
            agent_type=str(answer["agent_type"]),
            prompt=str(answer.get("prompt") or ""),
            command=[str(word) for word in answer["command"]] if answer.get("command") else None,
            files=list(answer.get("files") or []),
            wall_seconds=float(limits.get("wall_seconds") or 3600),
            max_turns=limits.get("max_turns"),
            checkpoint_seconds=float(checkpoint.get("every_seconds") or 300),
            checkpoint_calls=int(checkpoint.get("every_calls") or 5),
            gateway_url=str(answer["gateway_url"]),
            model=answer.get("model"),
        )


@dataclass(frozen=True)
class Message:
    """One thing worth telling: kind is text, tool, system or error."""

    kind: str
    text: str


@dataclass
class Outcome:
    """How the work ended: succeeded, failed, out_of_budget or stopped."""

    outcome: str
    summary: str
    exit_code: int | None = None
    details: dict = field(default_factory=dict)


class UnknownAgentType(LookupError):
    """This hub's agent does not have such an agent type."""


class CodingAgent:
    """One run of one CLI. Subclasses say argv, environment and what its lines mean."""

    NAME = ""

    def __init__(self, assignment: Assignment, paths: Paths, user: User):
        self.assignment = assignment
        self.paths = paths
        self.user = user
        self.error_tail = ""

    def prepare(self) -> None:
        """Writes what the CLI needs before it starts."""

    def argv(self) -> list[str]:
        """The command line. Nothing secret in it: it shows in the process list."""
        raise NotImplementedError

    def stdin(self) -> bytes:
        """What the CLI reads; most read their prompt here, where it can be of any size and begin with a dash."""
        return b""

    def environment(self) -> dict[str, str]:
        """The whole environment of the CLI; nothing of the agent's own goes in."""
        return {
            "HOME": str(self.user.home),
            "USER": self.user.name,
            "LOGNAME": self.user.name,
            "SHELL": "/bin/bash",
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "AUTOVIBE_GATEWAY_URL": self.assignment.gateway_url,
            "AUTOVIBE_TOKEN_FILE": str(self.paths.token),
            "AUTOVIBE_CA_FILE": str(self.paths.ca),
        }

    def read_output(self, line: str) -> list[Message]:
        """What one line of standard output says."""
        return [Message("text", line)] if line.strip() else []

    def read_error(self, line: str) -> list[Message]:
        """What one line of standard error says."""
        self.error_tail = (self.error_tail + line)[-TAIL_CHARS:]
        return [Message("error", line)] if line.strip() else []

    def context(self) -> dict:
        """What a checkpoint should remember of the run, such as the session to go on with."""
        return {"agent_type": self.NAME}

    def outcome(self, exit_code: int) -> Outcome:
        """How it ended, told from its own ending: not stopped by anybody."""
        if exit_code == 0:
            return Outcome(SUCCEEDED, "command ended with 0", exit_code)
        return Outcome(FAILED, f"command {ending(exit_code)}: {self.error_tail.strip()[-500:]}", exit_code)


def ending(exit_code: int) -> str:
    """An exit code in words."""
    return f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with {exit_code}"


def find_type(name: str) -> type[CodingAgent]:
    """The class of an agent type; UnknownAgentType when no module has it."""
    known = re.fullmatch(r"[a-z][a-z0-9_]{0,40}", name) is not None
    if known:
        try:
            module = importlib.import_module(f"autovibe_agent.{name}")
        except ModuleNotFoundError:
            module = None
        for value in vars(module).values() if module else ():
            if isinstance(value, type) and issubclass(value, CodingAgent) and name == value.NAME:
                return value
    raise UnknownAgentType(f"this hub's agent has no agent type {name!r}")


def make_home(user: User) -> Path:
    """The user's home folder, made when the image has none."""
    if not user.home.is_dir():
        user.home.mkdir(parents=True, mode=0o700)
        if os.geteuid() == 0:
            os.chown(user.home, user.uid, user.gid)
    return user.home
