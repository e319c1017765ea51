"""When checkpoints are made by themselves, and how long they are kept: defaults, a project's words, a machine's own.

A policy is given as a mapping of some of its fields; what is not given comes from the next larger one. Who makes them:
the hub says in its answer to a heartbeat that one is due and why; the agent asks for it, with its workspace's manifest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from autovibe.errors import Invalid
from autovibe.models import Machine, Project

DAY_SECONDS = 86_400
#: In `Making.risky`: these, which the hub knows.
DEFAULT = "default"
#: What is found (`re.search`) in a shell command that is hard to take back. A guard against slips, not against malice:
#: a script's own commands are not seen, and a wrong alarm costs a checkpoint.
RISKY = (
    r"\brm\s+([^\s;|&]+[ \t]+)*?(-[a-zA-Z]*[rR]|--recursive\b)",
    r"\bfind\b.*\s(-delete\b|-exec\s+rm\b)",
    r"\bgit\b.*\bpush\b.*(\s-[a-zA-Z]*[fd]\b|\s--(force|mirror|delete|prune)|\s\+)",
    r"\bgit\b.*\breset\b.*\s--hard\b",
    r"\bgit\b.*\bclean\b.*\s-[a-zA-Z]*f",
    r"\bgit\b.*\b(checkout|restore)\b.*\s(--|\.)(\s|$)",
    r"\bgit\b.*\b(filter-branch|filter-repo|branch\s+-D|stash\s+(drop|clear)|reflog\s+expire)\b",
    r"\bgit\s+(-\S+\s+\S+\s+)*rebase\b",
    r"(?i)\b(drop|truncate)\s+(database|schema|table)\b|\bdropdb\b|\bflush(all|db)\b",
    r"(?i)\bdelete\s+from\s+\S+\s*(;|\"|'|$)",
    r"\b(apt|apt-get|aptitude|dnf|yum|zypper)\s+([^\s;|&]+[ \t]+)*?(remove|purge|autoremove|erase)\b",
    r"\b(dpkg\s+([^\s;|&]+[ \t]+)*?(-[rP]\b|--remove|--purge)|apk\s+([^\s;|&]+[ \t]+)*?del\b|pacman\s+-R|rpm\s+-e)",
    r"\b(pip3?|uv\s+pip|npm|pnpm|gem)\s+([^\s;|&]+[ \t]+)*?(uninstall|unlink)\b",
    r"\bdd\b.*\bof=",
    r"\b(mkfs(\.\w+)?|wipefs|shred|blkdiscard|fdisk|sfdisk|sgdisk|parted)\s",
    r"\b(chmod|chown|chgrp)\s+([^\s;|&]+[ \t]+)*?(-[a-zA-Z]*R|--recursive\b)",
    r"\btruncate\s+([^\s;|&]+[ \t]+)*?(-s|--size)",
    r">\s*/dev/(sd|vd|nvme|xvd)",
    r"\b(docker|podman)\b.*\b(prune|rm|rmi|down\s+(-v|--volumes))\b",
    r"\bterraform\s+destroy\b|\bkubectl\s+delete\b",
)
PATTERNS_MOST, PATTERN_CHARS = 50, 300


class InvalidPolicy(Invalid):
    """That policy makes no sense."""

    code = "invalid_policy"


@dataclass(frozen=True)
class Making:
    """When a working machine's checkpoints are due; 0 means never for that reason.

    seconds, calls (of the model): since the last one. budget_percent: of the project's money, spent by this machine
    since the last one. floor_seconds: the least time between two that nobody asked for. hold_seconds: how long a model
    call waits for a checkpoint at most, and a checkpoint for a model call.

    Where the CLI has hooks: risky: patterns (`re.search`) of commands before which one is made, and for which the
    command waits risky_seconds at most; "default" stands for `RISKY`. turns: at the end of a turn that is not the last.
    """

    seconds: int = 300
    calls: int = 5
    budget_percent: int = 10
    floor_seconds: int = 10
    hold_seconds: int = 20
    risky: tuple[str, ...] = (DEFAULT,)
    risky_seconds: int = 60
    turns: bool = True

    MOST = {
        "seconds": 30 * DAY_SECONDS,
        "calls": 1_000_000,
        "budget_percent": 100,
        "floor_seconds": DAY_SECONDS,
        "hold_seconds": 300,
        "risky_seconds": 600,
    }

    @property
    def risky_patterns(self) -> list[str]:
        """The patterns in full."""
        return [one for given in self.risky for one in (RISKY if given == DEFAULT else (given,))]


@dataclass(frozen=True)
class Keeping:
    """Which checkpoints are kept: all of the last `days`; then the newest of each day and of each week (UTC).

    The words are those of the collection's `checkpoint` module, as far as it has them: `daily` and `weekly` are counts,
    of days and of weeks back from now. With `parents`, one that another goes on from is kept, too: only tips go.
    """

    days: int = 7
    daily: int = 30
    weekly: int = 26
    parents: bool = False

    MOST = {"days": 36_500, "daily": 36_500, "weekly": 5_200}


Policy = TypeVar("Policy", Making, Keeping)


def making(session: Session, machine: Machine) -> Making:
    """The machine's: its own words over its project's."""
    project = session.get_one(Project, machine.project_uuid)
    own = (machine.assignment or {}).get("checkpoints") or {}
    return of(of(Making(), project.checkpoint_policy), own)


def keeping(project: Project) -> Keeping:
    """The project's."""
    return of(Keeping(), project.retention)


def of(base: Policy, words: Mapping[str, Any] | None) -> Policy:
    """`base` with these fields instead of its own; InvalidPolicy."""
    kinds = {field.name: field.type for field in fields(base)}
    for name, value in (words or {}).items():
        if name not in kinds:
            raise InvalidPolicy(f"A policy has no {name!r}", f"It has: {', '.join(kinds)}.")
        if kinds[name].startswith("tuple"):
            _check_patterns(name, value)
        elif kinds[name] == "bool":
            if not isinstance(value, bool):
                raise InvalidPolicy(f"{name} is yes or no, not {value!r}")
        elif isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= base.MOST[name]:
            raise InvalidPolicy(f"{name} is a whole number from 0 to {base.MOST[name]}, not {value!r:.40}")
    return replace(base, **{name: tuple(v) if isinstance(v, list) else v for name, v in (words or {}).items()})


def _check_patterns(name: str, value: Any) -> None:
    if not isinstance(value, list | tuple) or len(value) > PATTERNS_MOST:
        raise InvalidPolicy(f"{name} is a list of at most {PATTERNS_MOST} patterns")
    for pattern in value:
        if not isinstance(pattern, str) or not 0 < len(pattern) <= PATTERN_CHARS or "\0" in pattern:
            raise InvalidPolicy(f"{name}: a pattern is a text of at most {PATTERN_CHARS} characters")
        try:
            re.compile(pattern)
        except re.error as error:
            raise InvalidPolicy(f"{name}: {pattern!r:.60} is no pattern: {error}") from None


def as_words(policy: Policy) -> dict[str, Any]:
    """All its fields."""
    return asdict(policy)


def change(project: Project, *, made: Mapping[str, Any] | None = None, kept: Mapping[str, Any] | None = None) -> None:
    """Set some fields of a project's policies; InvalidPolicy, and then nothing is changed."""
    new_making = {**project.checkpoint_policy, **(made or {})}
    new_keeping = {**project.retention, **(kept or {})}
    of(Making(), new_making)
    of(Keeping(), new_keeping)
    project.checkpoint_policy, project.retention = new_making, new_keeping


def noted(machine: Machine) -> None:
    """A checkpoint of the machine has been asked for: the next one is counted from here."""
    mark = {"at": datetime.now(UTC).isoformat(), "calls": machine.api_calls}
    machine.metadata_ = {**machine.metadata_, "checkpointed": mark}


def due(policy: Making, last: datetime, called: int) -> str | None:
    """Why a working machine is to be checkpointed now, by time or by its model calls since the last one."""
    age = (datetime.now(UTC) - last).total_seconds()
    if age < policy.floor_seconds:
        return None
    if policy.seconds and age >= policy.seconds:
        return f"after {age:.0f} seconds"
    if policy.calls and called >= policy.calls:
        return f"after {called} model calls"
    return None


def may_be_due_by_money(policy: Making, last: datetime, called: int) -> bool:
    """Whether it is to be asked what the machine itself has spent since the last one: `budget_percent`."""
    age = (datetime.now(UTC) - last).total_seconds()
    return bool(policy.budget_percent and called) and age >= policy.floor_seconds


def is_too_soon(session: Session, machine: Machine) -> bool:
    """Whether the machine's last checkpoint was asked for so recently that the policy's own next one is not made."""
    mark = machine.metadata_.get("checkpointed")
    if mark is None:
        return False
    age = (datetime.now(UTC) - datetime.fromisoformat(mark["at"])).total_seconds()
    return age < making(session, machine).floor_seconds
