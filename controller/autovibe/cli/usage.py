"""`autovibe usage`: the ledger."""

from __future__ import annotations

import csv
import sys
from datetime import datetime
from decimal import Decimal
from typing import Any

import click

from autovibe.cli.common import cell_text, console, json_option, output, settings, table

# Those of `autovibe.reports`, which is slow to load for --help.
GROUPS = ("project", "machine", "model", "day", "type")


@click.command()
@click.argument("project", required=False)
@click.option("--by", type=click.Choice(GROUPS), help="Sums instead of lines.")
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="From this day on; with --by only.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of text; with --by only.")
@click.option("--last", type=click.IntRange(min=1), default=50, show_default=True, help="How many lines to show.")
@json_option
def usage(project: str | None, by: str | None, since: datetime | None, as_csv: bool, last: int, as_json: bool) -> None:
    """Show what was used and what it cost, in PROJECT or in all projects."""
    if by is not None:
        _sums(project, by, since, as_csv, as_json)
        return
    if since is not None or as_csv:
        raise click.UsageError("--since and --csv need --by.")
    from autovibe import db, ledger, projects

    with db.session_scope(settings()) as session:
        chosen = [projects.get(session, project)] if project else projects.all_of(session)
        data = {
            "projects": [projects.view(session, one) for one in chosen],
            "models": ledger.by_model(session, chosen[0].uuid if project else None),
            "lines": ledger.views(session, chosen[0].uuid if project else None, last),
        }
    output(data, as_json, _show)


def _sums(project: str | None, by: str, since: datetime | None, as_csv: bool, as_json: bool) -> None:
    from autovibe import db, projects, reports

    with db.session_scope(settings()) as session:
        owner = projects.get(session, project) if project else None
        rows = reports.sums(session, by, owner.uuid if owner else None, since.date() if since else None)
    if as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow((by, "lines", "calls", "cad"))
        writer.writerows([[cell_text(value) for value in row.values()] for row in rows])
        return
    output(rows, as_json, lambda found: _chart(by, found) if found else "Nothing was used yet.")


def _chart(by: str, rows: list[dict[str, Any]]) -> Any:
    """The sums, each with a bar as long as its part of the dearest."""
    dearest = max((abs(row["cad"]) for row in rows), default=Decimal(0)) or Decimal(1)
    bars = ["█" * int(abs(row["cad"]) / dearest * 30 + Decimal("0.5")) for row in rows]
    shown = [[*row.values(), bar] for row, bar in zip(rows, bars, strict=True)]
    return table((by, "lines", "calls", "cad", ""), shown)


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
