"""`autovibe checkpoint`: list, tree, show."""

from __future__ import annotations

from typing import Any

import click

from autovibe.cli.common import cell_text, json_option, output, settings, table


@click.group()
def checkpoint() -> None:
    """Checkpoints: what a machine can start from."""


def _load(project: str | None) -> tuple[list[dict[str, Any]], list[Any]]:
    from autovibe import checkpoints, db, lookup, views
    from autovibe.models import Project

    with db.session_scope(settings()) as session:
        owner = lookup.find(session, Project, project, "project") if project else None
        rows = checkpoints.listed(session, project=owner)
        return [views.checkpoint(session, row) for row in rows], checkpoints.tree(rows)


@checkpoint.command("list")
@click.argument("project", required=False)
@json_option
def list_(project: str | None, as_json: bool) -> None:
    """List the checkpoints, of PROJECT or of all, oldest first."""
    columns = ("uuid", "type", "status", "project", "machine", "carrier", "vm_id", "files", "created_at")
    output(_load(project)[0], as_json, lambda data: _listed(data, columns))


def _listed(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> Any:
    if not rows:
        return "No checkpoints."
    shown = [[str(row[name])[:8] if name == "uuid" else row[name] for name in columns] for row in rows]
    return table([name.replace("_", " ") for name in columns], shown)


@checkpoint.command()
@click.argument("project", required=False)
@json_option
def tree(project: str | None, as_json: bool) -> None:
    """Show how the checkpoints, of PROJECT or of all, descend from each other."""
    rows, nested = _load(project)
    by_uuid = {row["uuid"]: row for row in rows}
    output(_nested(nested, by_uuid), as_json, _tree)


def _nested(nodes: list[Any], by_uuid: dict[Any, dict[str, Any]]) -> list[dict[str, Any]]:
    return [by_uuid[row.uuid] | {"children": _nested(children, by_uuid)} for row, children in nodes]


def _tree(roots: list[dict[str, Any]]) -> Any:
    from rich.text import Text
    from rich.tree import Tree

    if not roots:
        return "No checkpoints."
    top = Tree("", hide_root=True)

    def add(parent: Tree, node: dict[str, Any]) -> None:
        said = node["description"] or ""
        label = Text.assemble(
            (str(node["uuid"])[:8], "bold"),
            f" {node['type']}",
            f" of {node['machine']}" if node["machine"] else "",
            "" if node["status"] == "verified" else f" ({node['status']})",
            (f"  {node['files']} files" if node["files"] else "", "dim"),
            (f"  {said}" if said else "", "dim"),
        )
        branch = parent.add(label)
        for child in node["children"]:
            add(branch, child)

    for root in roots:
        add(top, root)
    return top


@checkpoint.command()
@click.argument("checkpoint_")
@json_option
def show(checkpoint_: str, as_json: bool) -> None:
    """Show CHECKPOINT and the files of its workspace."""
    from autovibe import checkpoints, db, reports, views

    with db.session_scope(settings()) as session:
        row = checkpoints.find(session, checkpoint_)
        full = views.checkpoint(session, row) | {
            "cad_to_reach": reports.checkpoint_cost(session, row.uuid),
            "context": row.creation_context,
            "manifest": row.file_manifest or {"files": [], "truncated": False},
        }
    output(full, as_json, _shown)


def _shown(data: dict[str, Any]) -> str:
    lines = [
        f"{key.replace('_', ' ')}: {cell_text(value)}" for key, value in data.items() if key != "manifest" and value
    ]
    lines += [f"  {file['size']:>10}  {file['path']}" for file in data["manifest"].get("files", [])]
    if data["manifest"].get("truncated"):
        lines.append("  … and more")
    return "\n".join(lines)
