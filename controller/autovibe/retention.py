"""Which checkpoints are worth keeping. No database here: nodes in, reasons out.

A machine's checkpoints are a line. In each line all of the last days are kept, then the newest of each day, then the
newest of each week. What is branched from, in use, or a milestone is kept whatever its age. A checkpoint's next one in
its own line does not stand on it: Proxmox makes it its parent's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from autovibe.policies import Keeping


@dataclass(frozen=True)
class Node:
    """A checkpoint that is there. `line` is its machine (None for what no machine has made).

    pinned: why it is kept whatever the policy says (milestone, in use, …), or None. branches: how many machines that
    still exist, or have left a checkpoint that does, started from it.
    """

    uuid: UUID
    parent: UUID | None
    line: UUID | None
    at: datetime
    pinned: str | None = None
    branches: int = 0


def sorted_out(nodes: Iterable[Node], policy: Keeping, now: datetime) -> dict[UUID, str | None]:
    """Each checkpoint's reason to be kept, None where there is none; newest first."""
    newest_first = sorted(nodes, key=lambda node: (node.at, node.uuid), reverse=True)
    children = _children(newest_first)
    reasons = {node.uuid: _always(node, children.get(node.uuid, []), policy) for node in newest_first}
    lines: dict[UUID | None, list[Node]] = {}
    for node in newest_first:
        lines.setdefault(node.line, []).append(node)
    for line in lines.values():
        _by_age(line, reasons, policy, now)
    return reasons


def _children(nodes: list[Node]) -> dict[UUID, list[Node]]:
    found: dict[UUID, list[Node]] = {}
    for node in nodes:
        if node.parent is not None:
            found.setdefault(node.parent, []).append(node)
    return found


def _always(node: Node, children: list[Node], policy: Keeping) -> str | None:
    if node.pinned:
        return node.pinned
    if node.line is None:
        return "template"
    if node.branches or any(child.line != node.line for child in children):
        return "branched from"
    if len(children) > 1:
        return "fork"
    return "parent" if policy.parents and children else None


def _by_age(newest_first: list[Node], reasons: dict[UUID, str | None], policy: Keeping, now: datetime) -> None:
    """One line's rules, each going through what is left; a period of which one is kept already needs no other."""
    for node in newest_first:
        if reasons[node.uuid] is None and now - node.at < timedelta(days=policy.days):
            reasons[node.uuid] = "recent"
    _newest_of_each("daily", _day, timedelta(days=policy.daily), newest_first, reasons, now)
    _newest_of_each("weekly", _week, timedelta(weeks=policy.weekly), newest_first, reasons, now)


def _newest_of_each(
    rule: str,
    period: Callable[[datetime], str],
    reach: timedelta,
    newest_first: list[Node],
    reasons: dict[UUID, str | None],
    now: datetime,
) -> None:
    had = {period(node.at) for node in newest_first if reasons[node.uuid] is not None}
    for node in newest_first:
        if reasons[node.uuid] is None and now - node.at < reach and period(node.at) not in had:
            had.add(period(node.at))
            reasons[node.uuid] = rule


def _day(at: datetime) -> str:
    return at.strftime("%Y-%m-%d")


def _week(at: datetime) -> str:
    return at.strftime("%G-W%V")
