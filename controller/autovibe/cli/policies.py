"""Options that say when a machine is checkpointed, and how long that is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

# When a machine is checkpointed: what each says, and at most (`autovibe.policies` is slow to load for --help).
MAKING = {
    "seconds": ("Checkpoint a working machine every so many seconds; 0 is never.", 30 * 86_400),
    "calls": ("… after so many model calls; 0 is never.", 1_000_000),
    "budget_percent": ("… when it has spent so much of the project's money; 0 is never.", 100),
    "floor_seconds": ("The least time between two that nobody asked for.", 86_400),
    "hold_seconds": ("How long a model call and a checkpoint wait for each other at most.", 300),
    "risky_seconds": ("How long a risky command waits for its checkpoint at most; 0 is no checkpoint.", 600),
}
KEEPING = {
    "days": ("Keep all checkpoints for so many days.", 36_500),
    "daily": ("Keep the newest of each day for so many days.", 36_500),
    "weekly": ("Keep the newest of each week for so many weeks.", 5_200),
}


def policy_options(prefix: str, words: dict[str, tuple[str, int]]) -> Callable[[Any], Any]:
    """An option for each of these words of a policy."""

    def decorate(command: Any) -> Any:
        for name, (said, most) in reversed(words.items()):
            option = f"{prefix}{name.replace('_', '-')}"
            command = click.option(option, type=click.IntRange(0, most), metavar="N", help=said)(command)
        return command

    return decorate


def making_options(prefix: str) -> Callable[[Any], Any]:
    """All that says when a machine is checkpointed."""
    risky = click.option(
        f"{prefix}risky",
        multiple=True,
        metavar="PATTERN",
        help="… before a shell command that this regular expression is found in; `default` is the built-in list.",
    )
    turns = click.option(
        f"{prefix}turns/--no-{prefix.removeprefix('--')}turns",
        default=None,
        help="… at the end of a turn of an agent that has several.",
    )
    return lambda command: policy_options(prefix, MAKING)(risky(turns(command)))


def making_of(given: dict[str, Any], prefix: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What these options say of when a machine is checkpointed, and the other options."""
    names = {f"{prefix}{name}": name for name in (*MAKING, "risky", "turns")}
    made = {name: given[option] for option, name in names.items() if given[option] not in (None, ())}
    return made, {option: value for option, value in given.items() if option not in names}
