# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM's snapshots as the tree that they are. Pure functions, no calls."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .config import Identity


@dataclass(frozen=True)
class Snapshot:
    """One snapshot. `taken` is in seconds since 1970; one that is not `whole` was broken off, or is being made."""

    name: str
    parent: str | None
    taken: int
    description: str
    ram: bool
    whole: bool

    @property
    def created_at(self) -> str | None:
        return datetime.fromtimestamp(self.taken, UTC).isoformat() if self.taken else None


class Tree:
    """All snapshots of one VM, the one that its present state goes on from (`at`), and whether it is `running`."""

    def __init__(self, snapshots: list[Snapshot], at: str | None = None, running: bool = False):
        self.by_name = {snapshot.name: snapshot for snapshot in snapshots}
        self.running = running
        self.at = at if at in self.by_name else None

    @classmethod
    def parse(cls, listed: list[dict[str, Any]]) -> Tree:
        """From what GET /nodes/N/qemu/ID/snapshot returns; its entry `current` is the VM's present state."""
        now = next((entry for entry in listed if entry["name"] == "current"), {})
        snapshots = [
            Snapshot(
                name=entry["name"],
                parent=entry.get("parent"),
                taken=int(entry.get("snaptime") or 0),
                description=str(entry.get("description") or "").rstrip(),
                ram=bool(entry.get("vmstate")),
                whole="snapstate" not in entry,
            )
            for entry in listed
            if entry["name"] != "current"
        ]
        return cls(snapshots, now.get("parent"), bool(now.get("running")))

    def __contains__(self, name: str) -> bool:
        return name in self.by_name

    def __getitem__(self, name: str) -> Snapshot:
        return self.by_name[name]

    def __len__(self) -> int:
        return len(self.by_name)

    def oldest_first(self) -> list[Snapshot]:
        """A child comes after its parent, also when both are of the same second."""
        return sorted(self.by_name.values(), key=lambda one: (one.taken, self.depth(one.name), one.name))

    def children(self, name: str | None) -> list[str]:
        return [one.name for one in self.oldest_first() if self._parent(one) == name]

    def depth(self, name: str) -> int:
        """How many snapshots stand above this one."""
        above, parent = 0, self._parent(self.by_name[name])
        while parent is not None and above < len(self.by_name):
            above, parent = above + 1, self._parent(self.by_name[parent])
        return above

    def newer(self, name: str) -> list[str]:
        ordered = [one.name for one in self.oldest_first()]
        return ordered[ordered.index(name) + 1 :]

    def is_fork(self, name: str) -> bool:
        """Whether more than one line goes on from here; the VM's present state counts as one."""
        return len(self.children(name)) + (self.at == name) > 1

    def _parent(self, snapshot: Snapshot) -> str | None:
        return snapshot.parent if snapshot.parent in self.by_name else None


def template_name(name: str) -> str:
    """The name of the template that a snapshot becomes: a DNS name."""
    return name.replace("_", "-").rstrip("-")


def is_promotion(text: str, vmid: int, name: str, identity: Identity | None) -> bool:
    """Whether a description is that of a template made of this VM's snapshot."""
    words = text.split()
    of = next((word for word in words if word.startswith("of=")), None)
    if f"checkpoint={name}" not in words or of not in (None, f"of={vmid}"):
        return False
    # A template that does not say of which VM it is: its identity tells, where there is one.
    return identity is None or identity.owns(text)
