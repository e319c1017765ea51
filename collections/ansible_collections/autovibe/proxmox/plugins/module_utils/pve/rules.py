# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An ordered list of firewall rules brought to another one with as few calls as there can be. Pure functions, no calls.

What Proxmox VE offers: a new rule always goes to position 0; a rule can be edited, deleted, or moved before the one at
another position (`moveto`, in the numbering before the move).
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Any

Rule = dict[str, Any]

#: What a rule is made of, by Proxmox VE's names; all else in an answer is derived.
KEYS = (
    "type",
    "action",
    "enable",
    "macro",
    "proto",
    "source",
    "dest",
    "sport",
    "dport",
    "icmp-type",
    "iface",
    "log",
    "comment",
)


@dataclass(frozen=True)
class Edit:
    """One write: kind is add (`rule`), edit (`rule` at `position` becomes this), move (to before `to`) or delete."""

    kind: str
    position: int = 0
    rule: Rule | None = None
    to: int = 0

    def applied(self, rules: list[Rule]) -> list[Rule]:
        """The list after this write, as Proxmox VE makes it."""
        rules = list(rules)
        if self.kind == "add":
            return [self.rule, *rules]
        if self.kind == "edit":
            rules[self.position] = self.rule
            return rules
        taken = rules.pop(self.position)
        if self.kind == "move":
            rules.insert(self.to - (self.to > self.position), taken)
        return rules


def normal(rule: dict[str, Any]) -> Rule:
    """A rule as it is compared: what it is made of, as text; `enable` as a number."""
    found = {key: str(rule[key]).strip() for key in KEYS if rule.get(key) not in (None, "") and key != "enable"}
    return {**found, "enable": int(rule.get("enable") or 0)}


def edits(current: list[Rule], wanted: list[Rule]) -> list[Edit]:
    """The writes that bring `current` to `wanted`, both normal. Deletions come first: nothing is let in meanwhile."""
    made: list[Edit] = []
    while (edit := _next(current, wanted)) is not None:
        made.append(edit)
        current = edit.applied(current)
    return made


def _next(current: list[Rule], wanted: list[Rule]) -> Edit | None:
    targets = _targets(current, wanted)
    for position in reversed(range(len(current))):
        if targets[position] is None:
            return Edit("delete", position)
    for position, target in enumerate(targets):
        if current[position] != wanted[target]:
            return Edit("edit", position, wanted[target])
    staying = _staying(targets, len(wanted))
    for target in reversed(range(len(wanted))):
        if target in staying:
            continue
        if target not in targets:
            return Edit("add", rule=wanted[target])
        after = targets.index(target + 1) if target + 1 < len(wanted) else len(current)
        return Edit("move", targets.index(target), to=after)
    return None


def _targets(current: list[Rule], wanted: list[Rule]) -> list[int | None]:
    """For each rule that is there the place that it is wanted at: as it is, or edited; None when it is too many."""
    targets: list[int | None] = [None] * len(current)
    open_places = list(range(len(wanted)))
    for place in list(open_places):
        equal = [at for at, rule in enumerate(current) if targets[at] is None and rule == wanted[place]]
        if equal:
            targets[equal[0]] = place
            open_places.remove(place)
    # What is left is edited: the last ones into the last places, as a missing rule is cheapest at the front.
    left = [at for at, target in enumerate(targets) if target is None]
    for at, place in zip(reversed(left), reversed(open_places), strict=False):
        targets[at] = place
    return targets


def _staying(targets: list[int], count: int) -> set[int]:
    """The places of the rules that are not moved: in order already, and chosen so that the fewest calls are left.

    A rule that is missing costs one call where no staying rule comes before it, else two (to position 0, then a move).
    """
    missing = sorted(set(range(count)) - set(targets))
    best: list[int] = []
    best_cost = len(targets)
    chains: list[list[int]] = [[] for _target in targets]
    for at in reversed(range(len(targets))):
        longer = [chains[later] for later in range(at + 1, len(targets)) if targets[later] > targets[at]]
        chains[at] = [targets[at], *max(longer, key=len, default=[])]
        cost = len(targets) - len(chains[at]) + len(missing) - bisect.bisect(missing, targets[at])
        if cost < best_cost:
            best, best_cost = chains[at], cost
    return set(best)
