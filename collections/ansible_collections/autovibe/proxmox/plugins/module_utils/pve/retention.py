# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which snapshots are kept. The rules are those of Proxmox VE's own backups (`prune-backups`). No calls.

Each rule goes through what is left, newest first, and keeps the newest one of each of its periods (in UTC) until it has
kept as many as it may. A period in which an earlier rule has kept one is not counted again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from .errors import NotPossible
from .snapshots import Snapshot, Tree

#: Rule → the period that a snapshot falls into; in this order.
PERIODS: dict[str, Callable[[datetime, Snapshot], str]] = {
    "last": lambda _at, snapshot: snapshot.name,
    "hourly": lambda at, _snapshot: at.strftime("%Y-%m-%d %H"),
    "daily": lambda at, _snapshot: at.strftime("%Y-%m-%d"),
    "weekly": lambda at, _snapshot: at.strftime("%G-W%V"),
    "monthly": lambda at, _snapshot: at.strftime("%Y-%m"),
    "yearly": lambda at, _snapshot: at.strftime("%Y"),
}


@dataclass(frozen=True)
class Keep:
    """How many of each period. `milestones` and `among` are shell patterns.

    A milestone (its name, or a word of its description, matches) is kept and not counted; only snapshots whose names
    match one of `among` are looked at at all.
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    milestones: tuple[str, ...] = ()
    among: tuple[str, ...] = ("*",)
    parents: bool = False

    def validate(self) -> None:
        counts = [getattr(self, rule) for rule in PERIODS]
        if min(counts) < 0:
            raise NotPossible("How many snapshots to keep cannot be negative.")
        if not any(counts):
            raise NotPossible(f"Say how many snapshots to keep: one of {', '.join(PERIODS)} must be more than 0.")


def sorted_out(tree: Tree, keep: Keep) -> dict[str, str | None]:
    """Each snapshot's reason to be kept, None where there is none; oldest first.

    Kept whatever the rules say: what the VM's present state goes on from, what more than one line goes on from (with
    `parents` also what one goes on from), and what is not whole.
    """
    keep.validate()
    ordered = tree.oldest_first()
    reasons: dict[str, str | None] = {one.name: _always(tree, one, keep) for one in ordered}
    free = [one for one in reversed(ordered) if reasons[one.name] is None]
    for rule in PERIODS:
        _apply(rule, getattr(keep, rule), free, reasons)
    for one in ordered:
        if reasons[one.name] is None:
            reasons[one.name] = _descendants(tree, one, keep)
    return reasons


def _always(tree: Tree, one: Snapshot, keep: Keep) -> str | None:
    if not one.whole:
        return "not whole"
    if not _matches(keep.among, [one.name]):
        return "not among these"
    if _matches(keep.milestones, [one.name, *one.description.split()]):
        return "milestone"
    return None


def _descendants(tree: Tree, one: Snapshot, keep: Keep) -> str | None:
    if tree.at == one.name:
        return "current"
    if tree.is_fork(one.name):
        return "fork"
    return "parent" if keep.parents and tree.children(one.name) else None


def _apply(rule: str, count: int, newest_first: list[Snapshot], reasons: dict[str, str | None]) -> None:
    def period(one: Snapshot) -> str:
        return PERIODS[rule](datetime.fromtimestamp(one.taken, UTC), one)

    had = {period(one) for one in newest_first if reasons[one.name] is not None}
    new: set[str] = set()
    for one in newest_first:
        if reasons[one.name] is not None or period(one) in had | new:
            continue
        if len(new) >= count:
            return
        new.add(period(one))
        reasons[one.name] = rule


def _matches(patterns: tuple[str, ...], words: list[str]) -> bool:
    return any(fnmatchcase(word, pattern) for word in words for pattern in patterns)


def removed(reasons: Mapping[str, str | None]) -> list[str]:
    return [name for name, reason in reasons.items() if reason is None]
