"""The tree of a project's checkpoints as people look at it: nested, with what each cost, as DOT and as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from html import escape
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from autovibe.amounts import cad
from autovibe.models import Checkpoint, Machine

_GONE = ("pruned", "failed")
# What a checkpoint's machine had spent when the checkpoint was asked for.
_SPENT = sa.text("""
SELECT c.uuid, sum(u.cost_cad) AS cad
FROM checkpoints c JOIN resource_usage u ON u.machine_uuid = c.creating_machine_uuid AND u.recorded_at <= c.created_at
WHERE c.uuid = ANY(:uuids) AND u.cost_cad IS NOT NULL GROUP BY c.uuid
""")


@dataclass
class Node:
    """A checkpoint in its tree.

    own: CAD spent by its machine since that one's checkpoint before it. reach: CAD spent by all that led to it.
    """

    row: Checkpoint
    own: Decimal = Decimal(0)
    reach: Decimal = Decimal(0)
    children: list[Node] = field(default_factory=list)


def forest(session: Session, rows: Sequence[Checkpoint], *, everything: bool = False) -> list[Node]:
    """The roots of the rows' trees, oldest first. Without `everything`, what is gone is left out.

    The children of what is left out become its parent's, as on Proxmox.
    """
    ordered = sorted(rows, key=lambda row: (row.created_at, row.uuid))
    nodes = {row.uuid: Node(row) for row in ordered}
    _add_costs(session, nodes)
    shown = {uuid for uuid, node in nodes.items() if everything or node.row.verification_status not in _GONE}
    roots = []
    for uuid, node in nodes.items():
        if uuid not in shown:
            continue
        parent = node.row.parent_checkpoint_uuid
        while parent in nodes and parent not in shown:
            parent = nodes[parent].row.parent_checkpoint_uuid
        (nodes[parent].children if parent in nodes else roots).append(node)
    return roots


def reach(session: Session, checkpoint: Checkpoint) -> Decimal:
    """CAD spent by all that led to one checkpoint."""
    rows = session.scalars(sa.select(Checkpoint).where(Checkpoint.project_uuid == checkpoint.project_uuid)).all()
    nodes = {row.uuid: Node(row) for row in rows}
    _add_costs(session, nodes)
    return nodes[checkpoint.uuid].reach


def walk(roots: Sequence[Node]) -> Iterator[tuple[Node, Node | None]]:
    """Each node with its parent; parents first, without recursion: a line may be long."""
    stack: list[tuple[Node, Node | None]] = [(root, None) for root in reversed(roots)]
    while stack:
        node, parent = stack.pop()
        yield node, parent
        stack += [(child, node) for child in reversed(node.children)]


def _add_costs(session: Session, nodes: dict[UUID, Node]) -> None:
    """A machine's spending until a checkpoint, and what was spent to reach the one that the machine started from."""
    spent = {row.uuid: row.cad for row in session.execute(_SPENT, {"uuids": list(nodes)})}
    makers = {node.row.creating_machine_uuid for node in nodes.values()}
    starts = sa.select(Machine.uuid, Machine.parent_checkpoint_uuid).where(Machine.uuid.in_(makers))
    began = {row.uuid: row.parent_checkpoint_uuid for row in session.execute(starts)}
    before: dict[UUID | None, Decimal] = {}
    for node in sorted(nodes.values(), key=lambda node: (node.row.created_at, node.row.uuid)):
        row = node.row
        now = spent.get(row.uuid, Decimal(0))
        node.own = now - before.get(row.creating_machine_uuid, Decimal(0))
        before[row.creating_machine_uuid] = now
        # A machine starts from an older checkpoint: that one's sum is there already.
        start = nodes.get(began.get(row.creating_machine_uuid))
        node.reach = now + (start.reach if start else Decimal(0))


def label(node: Node, names: dict[UUID, str]) -> list[str]:
    """Its lines in a drawing."""
    row = node.row
    first = f"{str(row.uuid)[:8]} {row.checkpoint_type}" + (" ★" if row.milestone else "")
    name = names.get(row.creating_machine_uuid)
    lines = [first if row.verification_status == "verified" else f"{first} ({row.verification_status})"]
    lines += [name] if name else []
    lines += ["#" + " #".join(row.tags)] if row.tags else []
    return [*lines, f"CAD {cad(node.own)}, {cad(node.reach)} to reach"]


def names(session: Session, roots: Sequence[Node]) -> dict[UUID, str]:
    """The machines' names by uuid."""
    uuids = {node.row.creating_machine_uuid for node, _ in walk(roots)}
    rows = session.execute(sa.select(Machine.uuid, Machine.name).where(Machine.uuid.in_(uuids)))
    return {row.uuid: row.name for row in rows}


def dot(session: Session, roots: Sequence[Node]) -> str:
    """For Graphviz."""
    known = names(session, roots)
    lines = [
        "digraph checkpoints {",
        '  rankdir=LR; node [shape=box, style=rounded, fontname="sans-serif", fontsize=10];',
    ]
    for node, parent in walk(roots):
        text = "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in label(node, known))
        dashed = "" if node.row.verification_status == "verified" else ', style="rounded,dashed"'
        lines.append(f'  "{node.row.uuid}" [label="{text}"{dashed}];')
        if parent is not None:
            lines.append(f'  "{parent.row.uuid}" -> "{node.row.uuid}";')
    return "\n".join([*lines, "}"])


_WIDTH, _HEIGHT, _GAP, _LINE = 210, 74, 34, 15


def svg(session: Session, roots: Sequence[Node]) -> str:
    """A drawing: a column for each generation, a row for each leaf, a parent beside its first child."""
    known = names(session, roots)
    places = _places(roots)
    width = (max((x for x, _ in places.values()), default=0) + 1) * (_WIDTH + _GAP) + _GAP
    height = (max((y for _, y in places.values()), default=0) + 1) * (_HEIGHT + _GAP) + _GAP
    font = 'font-family="sans-serif" font-size="11"'
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" {font}>']
    for node, parent in walk(roots):
        x, y = _corner(places[node.row.uuid])
        if parent is not None:
            px, py = _corner(places[parent.row.uuid])
            points = f"M{px + _WIDTH},{py + _HEIGHT // 2} C{px + _WIDTH + _GAP},{py + _HEIGHT // 2}"
            points += f" {x - _GAP},{y + _HEIGHT // 2} {x},{y + _HEIGHT // 2}"
            lines.append(f'<path d="{points}" fill="none" stroke="#888"/>')
        lines += _box(node, known, x, y)
    return "\n".join([*lines, "</svg>"])


def _places(roots: Sequence[Node]) -> dict[UUID, tuple[int, int]]:
    """(column, row) of each."""
    found: dict[UUID, tuple[int, int]] = {}
    taken = -1
    for node, parent in walk(roots):
        column, row = found[parent.row.uuid] if parent else (-1, 0)
        is_first = parent is not None and parent.children[0] is node
        if not is_first:
            taken += 1
            row = taken
        found[node.row.uuid] = (column + 1, row)
    return found


def _corner(place: tuple[int, int]) -> tuple[int, int]:
    return _GAP + place[0] * (_WIDTH + _GAP), _GAP + place[1] * (_HEIGHT + _GAP)


def _box(node: Node, known: dict[UUID, str], x: int, y: int) -> list[str]:
    dashed = "" if node.row.verification_status == "verified" else ' stroke-dasharray="4 3"'
    fill = "#fff3c4" if node.row.milestone else "#f4f6f8"
    said = escape(node.row.description or "")
    found = [f"<g><title>{escape(str(node.row.uuid))} {said}</title>"]
    found.append(
        f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="{fill}" stroke="#556"{dashed}/>'
    )
    for number, text in enumerate(label(node, known)):
        found.append(f'<text x="{x + 8}" y="{y + 16 + number * _LINE}">{escape(text[:36])}</text>')
    return [*found, "</g>"]
