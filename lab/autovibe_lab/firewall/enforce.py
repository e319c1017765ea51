"""What the firewall decides, done to real guests."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autovibe_lab.node import Node


def refresh(node: Node) -> None:
    """Decide again what each running guest may reach."""
