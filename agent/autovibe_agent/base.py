"""What an agent type is: how one coding CLI is started, what its output means, how it ended.

A new type is one module of this package, named as the type, with one subclass of CodingAgent whose NAME is that name.
"""

import importlib
import os
import re
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from autovibe_agent.paths import Paths, User

if TYPE_CHECKING:
    from autovibe_agent.hooks import Hooks
    from autovibe_agent.local_gateway import LocalGateway

SUCCEEDED, FAILED, OUT_OF_BUDGET, STOPPED = "succeeded", "failed", "out_of_budget", "stopped"
PAYMENT_REQUIRED = 402
#: Statuses below 500 of a hub or a provider that may answer later.
TRY_AGAIN = (408, 429)
TAIL_CHARS = 2000
MAX_RESUMES = 10
IDLE_SECONDS = 1800.0
OUTPUT_BYTES = 256 << 20
GO_ON = (
    "You were interrupted: the machine that you work on was stopped and started again. Go on with your task from where "
    "you were. Look first at what is done already; do not do it again."
)


@dataclass(frozen=True)
class Guard:
    """When a CLI that has hooks is checkpointed by what it does.

    Before a command that one of the patterns `risky` finds something in, for which it waits `risky_seconds` at most (0:
    never); and at the end of a turn that is not its last.
    """

    risky: tuple[str, ...] = ()
    risky_seconds: float = 0.0
    turns: bool = False

    @classmethod
    def of(cls, answer: dict) -> "Guard":
        return cls(
            risky=tuple(str(pattern) for pattern in answer.get("risky") or ()),
            risky_seconds=float(answer.get("risky_seconds") or 0),
            turns=bool(answer.get("turns")),
        )

    def __bool__(self) -> bool:
        return self.turns or bool(self.risky and self.risky_seconds)


@dataclass(frozen=True)
class Assignment:
    """What the hub gives this machine to do."""

    agent_type: str
    prompt: str
    command: list[str] | None
    files: list[dict]
    wall_seconds: float
    max_turns: int | None
    max_resumes: int
    idle_seconds: float
    output_bytes: int
    gateway_url: str
    model: str | None
    guard: Guard = Guard()

    @classmethod
    def of(cls, answer: dict) -> "Assignment":
        limits = answer.get("limits") or {}
        return cls(
            agent_type=str(answer["agent_type"]),
            prompt=str(answer.get("prompt") or ""),
            command=[str(word) for word in answer["command"]] if answer.get("command") else None,
            files=list(answer.get("files") or []),
            wall_seconds=float(limits.get("wall_seconds") or 3600),
            max_turns=limits.get("max_turns"),
            max_resumes=int(limits.get("max_resumes", MAX_RESUMES)),
            idle_seconds=float(limits.get("idle_seconds") or IDLE_SECONDS),
            output_bytes=int(limits.get("output_bytes") or OUTPUT_BYTES),
            gateway_url=str(answer["gateway_url"]),
            model=answer.get("model"),
            guard=Guard.of(answer.get("checkpoints") or {}),
        )


@dataclass(frozen=True)
class Message:
    """One thing worth telling: kind is text, tool, system or error."""

    kind: str
    text: str


@dataclass
class Outcome:
    """How the work ended: succeeded, failed, out_of_budget or stopped.

    `passing`: what ended it says nothing of the work (a killed process, a hub that was away); it may be gone on with.
    """

    outcome: str
    summary: str
    exit_code: int | None = None
    details: dict = field(default_factory=dict)
    passing: bool = False


class UnknownAgentType(LookupError):
    """This hub's agent does not have such an agent type."""


class CodingAgent:
    """One run of one CLI. Subclasses say argv, environment, what its lines mean, and how it goes on after a break."""

    NAME = ""
    #: Whether the CLI reads its key once (an OpenAI-style one): it is then given `local_gateway` before `prepare`.
    NEEDS_LOCAL_GATEWAY = False
    local_gateway: "LocalGateway | None" = None
    #: Whether the CLI posts hooks as Claude Code does: it is given `hooks` before `prepare`, unless it needs none.
    HAS_HOOKS = False
    hooks: "Hooks | None" = None

    def __init__(self, assignment: Assignment, paths: Paths, user: User):
        self.assignment = assignment
        self.paths = paths
        self.user = user
        self.error_tail = self.output_tail = ""
        self.resumed = False
        self._turns_before = 0

    def resume(self, session: dict) -> None:
        """Makes this run go on with what an earlier one, of which `session` is kept, has begun.

        Called before `prepare`. Without more, the CLI begins again, in the workspace as it is.
        """
        self.resumed = True
        self._turns_before = int(session.get("turns") or 0)

    def session(self) -> dict:
        """What `resume` needs to know of this run: kept on the disk while it works. JSON, small."""
        return {"turns": self.turns}

    @property
    def turns(self) -> int:
        """The model's answers so far, those before a resume included; 0 when nobody counts them."""
        return self._turns_before + (self.local_gateway.answers if self.local_gateway else 0)

    @property
    def turns_left(self) -> int | None:
        """How many more answers a resumed run may have, at least one; None without a limit."""
        limit = self.assignment.max_turns
        return max(1, int(limit) - self._turns_before) if limit else None

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
            "AUTOVIBE_RESUMED": "1" if self.resumed else "0",
        }

    def read_output(self, line: str) -> list[Message]:
        """What one line of standard output says."""
        self.output_tail = (self.output_tail + line)[-TAIL_CHARS:]
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
        why = f"command {ending(exit_code)}: {self.error_tail.strip()[-500:]}"
        return Outcome(FAILED, why, exit_code, passing=was_killed(exit_code))

    def ended_by_gateway(self, exit_code: int, why: str, details: dict) -> Outcome:
        """How a CLI that did not succeed has ended, by what the local gateway has seen last."""
        status = self.local_gateway.last_status if self.local_gateway else None
        if status == PAYMENT_REQUIRED:
            return Outcome(OUT_OF_BUDGET, why, exit_code, details)
        if self.local_gateway and self.local_gateway.is_exhausted:
            return Outcome(FAILED, f"stopped at the limit of turns: {why}", exit_code, details)
        passing = was_killed(exit_code) or (status is not None and (status >= 500 or status in TRY_AGAIN))
        return Outcome(FAILED, why, exit_code, details, passing=passing)


def ending(exit_code: int) -> str:
    """An exit code in words."""
    return f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with {exit_code}"


def was_killed(exit_code: int) -> bool:
    """Whether somebody else ended it (the kernel that ran out of memory, a person): SIGKILL or SIGTERM."""
    return exit_code in (-signal.SIGKILL, -signal.SIGTERM)


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
