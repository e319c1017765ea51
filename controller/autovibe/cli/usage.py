"""`autovibe usage`: the ledger."""

from __future__ import annotations

from typing import Any

import click

from autovibe.cli.common import console, json_option, output, settings, table


@click.command()
@click.argument("project", required=False)
@click.option("--last", type=click.IntRange(min=1), default=50, show_default=True, help="How many lines to show.")
@json_option
def usage(project: str | None, last: int, as_json: bool) -> None:
    """Show what was used and what it cost, in PROJECT or in all projects."""
    from autovibe import db, ledger, projects

    with db.session_scope(settings()) as session:
        chosen = [projects.get(session, project)] if project else projects.all_of(session)
        data = {
            "projects": [projects.view(session, one) for one in chosen],
            "models": ledger.by_model(session, chosen[0].uuid if project else None),
            "lines": ledger.views(session, chosen[0].uuid if project else None, last),
        }
    output(data, as_json, _show)


def _show(data: dict[str, Any]) -> None:
    out = console()
    if not data["lines"]:
        out.print("Nothing was used yet.")
    else:
        columns = ("recorded_at", "project", "machine", "type", "subtype", "model", "amount", "unit", "cost_cad")
        out.print(_table(columns, data["lines"]))
    if data["models"]:
        out.print()
        out.print(
            _table(("model", "calls", "input", "cache_read", "cache_write", "output", "usd", "cad"), data["models"])
        )
    with_budget = [{"budget (CAD)": view["name"], **view["budget"]} for view in data["projects"] if view["budget"]]
    if with_budget:
        out.print()
        out.print(_table(("budget (CAD)", "allocated", "used", "reserved", "available", "overrun"), with_budget))


def _table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> Any:
    return table([name.replace("_", " ") for name in columns], [[row[name] for name in columns] for row in rows])
