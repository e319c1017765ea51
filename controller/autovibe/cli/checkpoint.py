"""`autovibe checkpoint`: list, tree, show, diff; what keeps and removes them is in `checkpoint_keep`."""

from __future__ import annotations

import sys
from typing import Any

import click

from autovibe.cli.common import cell_text, hub, json_option, named, output, plain, table


@click.group()
def checkpoint() -> None:
    """Checkpoints: what a machine can start from."""


@checkpoint.command("list")
@click.argument("project", required=False)
@json_option
def list_(project: str | None, as_json: bool) -> None:
    """List the checkpoints, of PROJECT or of all, oldest first."""
    from autovibe.api.v1 import schemas

    with hub() as here:
        rows = here.pages("/checkpoints", schemas.Checkpoint, project=project)[::-1]
    columns = ("uuid", "type", "status", "project", "machine", "carrier", "vm_id", "files", "created_at")
    output(rows, as_json, lambda data: _listed(data, columns))


def _listed(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> Any:
    if not rows:
        return "No checkpoints."
    shown = [[str(row[name])[:8] if name == "uuid" else row[name] for name in columns] for row in rows]
    return table([name.replace("_", " ") for name in columns], shown)


@checkpoint.command()
@click.argument("project", required=False)
@click.option("--all", "everything", is_flag=True, help="Also those that were pruned or have failed.")
@click.option("--dot", "form", flag_value="dot", help="Print it for Graphviz.")
@click.option("--svg", "form", flag_value="svg", help="Print it as a drawing.")
@json_option
def tree(project: str | None, everything: bool, form: str | None, as_json: bool) -> None:
    """Show how the checkpoints, of PROJECT or of all, descend from each other, and what each cost in CAD."""
    from autovibe.api.v1 import schemas

    asked = {"project": project, "everything": everything or None}
    with hub() as here:
        if form is not None:
            click.echo(plain(here.text("/tree/drawing", form=form, **asked)))
            return
        nodes = here.pages("/tree", schemas.TreeNode, **asked)
    # A line may be longer than Python nests by default.
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 1000 + 20 * len(nodes)))
    output(_nested(nodes), as_json, _tree)


def _nested(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The roots, each node with its `children`; parents come first."""
    roots: list[dict[str, Any]] = []
    by_uuid: dict[Any, dict[str, Any]] = {}
    for node in nodes:
        parent = by_uuid.get(node.pop("tree_parent"))
        by_uuid[node["uuid"]] = node | {"children": []}
        (roots if parent is None else parent["children"]).append(by_uuid[node["uuid"]])
    return roots


def _tree(roots: list[dict[str, Any]]) -> Any:
    from rich.tree import Tree

    if not roots:
        return "No checkpoints."
    top = Tree("", hide_root=True)
    stack = [(top, root) for root in reversed(roots)]
    while stack:
        parent, node = stack.pop()
        branch = parent.add(_label(node))
        # A line goes straight down; only what is a branch is indented.
        children = node["children"]
        stack += [(parent if len(children) == 1 else branch, child) for child in reversed(children)]
    return top


def _label(node: dict[str, Any]) -> Any:
    from rich.text import Text

    from autovibe.amounts import cad

    said = plain(node["description"] or "")
    return Text.assemble(
        (str(node["uuid"])[:8], "bold"),
        f" {node['type']}",
        (" ★" if node["milestone"] else "", "yellow"),
        f" of {node['machine']}" if node["machine"] else "",
        "" if node["status"] == "verified" else f" ({node['status']})",
        (f"  CAD {cad(node['own_cad'])}, {cad(node['cad_to_reach'])} to reach", "cyan"),
        (f"  {node['files']} files" if node["files"] else "", "dim"),
        (f"  #{' #'.join(node['tags'])}" if node["tags"] else "", "green"),
        (f"  {said}" if said else "", "dim"),
    )


@checkpoint.command()
@click.argument("checkpoint_")
@json_option
def show(checkpoint_: str, as_json: bool) -> None:
    """Show CHECKPOINT and the files of its workspace."""
    from autovibe.api.v1 import schemas

    with hub() as here:
        full = here.get(f"/checkpoints/{named(checkpoint_)}", schemas.CheckpointInFull)
    output(full, as_json, _shown)


def _shown(data: dict[str, Any]) -> str:
    lines = [
        f"{key.replace('_', ' ')}: {cell_text(value)}" for key, value in data.items() if key != "manifest" and value
    ]
    lines += [f"  {file['size']:>10}  {file['path']}" for file in data["manifest"].get("files", [])]
    if data["manifest"].get("truncated"):
        lines.append("  … and more")
    return "\n".join(lines)


@checkpoint.command()
@click.argument("before")
@click.argument("after")
@click.option("--stat", "form", flag_value="stat", help="Only how many files.")
@click.option("--content", "form", flag_value="content", help="Also the changed lines of text files, where known.")
@json_option
def diff(before: str, after: str, form: str | None, as_json: bool) -> None:
    """Show which files are different from checkpoint BEFORE to checkpoint AFTER."""
    from autovibe.api.v1 import schemas

    with hub() as here:
        path = f"/checkpoints/{named(before)}/diff"
        found = here.get(path, schemas.Diff, to=after, form=form or "files")
    known = {name: value for name, value in found.items() if value is not None}
    shown = {"stat": found["stat"]} if form == "stat" else known
    output(shown, as_json, lambda _: _diff(found))


def _diff(found: dict[str, Any]) -> str:
    lines, counts = [], found["stat"]
    if found["added"] is not None:
        lines += [f"A {file['size']:>+10} {file['path']}" for file in found["added"]]
        lines += [f"D {-file['size']:>+10} {file['path']}" for file in found["removed"]]
        lines += [f"M {new['size'] - old['size']:>+10} {new['path']}" for old, new in found["changed"]]
        lines += [f"m {old['mode']}→{new['mode']:<5} {new['path']}" for old, new in found["mode"]]
        lines += [f"? {'':>10} {path}" for path in found["unread"]]
        lines.sort(key=lambda line: line[13:])
    said = [f"{counts[name]} {name}" for name in ("added", "removed", "changed") if counts[name]]
    said += [f"{counts['mode']} with another mode"] if counts["mode"] else []
    said += [f"{counts['unread']} too large to be compared"] if counts["unread"] else []
    lines.append(f"{', '.join(said)}; {counts['bytes']:+} bytes" if said else "No difference.")
    if not found["whole"]:
        lines.append("At least one of the manifests does not list all files.")
    if found["content"]:
        lines += ["", found["content"]]
    return "\n".join(lines)


from autovibe.cli import checkpoint_keep  # noqa: E402, F401  adds its commands
