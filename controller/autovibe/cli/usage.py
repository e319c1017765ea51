"""`autovibe usage`: the ledger."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any

import click

from autovibe.cli.common import cell_text, console, hub, json_option, named, output, table

# Those of `autovibe.reports`, which is slow to load for --help.
GROUPS = ("project", "machine", "model", "day", "type", "checkpoint")

#: Lines that are shown, unless it is said how many.
LAST = 50


@click.command()
@click.argument("project", required=False)
@click.option("--by", type=click.Choice(GROUPS), help="Sums instead of lines.")
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="From this day on; with --by only.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of text: the sums, or the lines.")
@click.option("--last", type=click.IntRange(min=1), show_default="50; with --csv all", help="How many lines to show.")
@json_option
def usage(
    project: str | None, by: str | None, since: datetime | None, as_csv: bool, last: int | None, as_json: bool
) -> None:
    """Show what was used and what it cost, in PROJECT or in all projects."""
    if by is not None:
        _sums(project, by, since, as_csv, as_json)
        return
    if since is not None:
        raise click.UsageError("--since needs --by.")
    from autovibe.api.v1 import schemas

    if as_csv:
        _export(project, last)
        return
    with hub() as here:
        if project is None:
            chosen = sorted(here.pages("/projects", schemas.Project), key=lambda view: view["name"])
        else:
            chosen = [here.get(f"/projects/{named(project)}", schemas.Project)]
        data = {
            "projects": chosen,
            "models": here.pages("/usage/models", schemas.ModelSum, project=project),
            "lines": here.pages("/usage", schemas.UsageLine, project=project, most=last or LAST)[::-1],
        }
    output(data, as_json, _show)


def _export(project: str | None, last: int | None) -> None:
    """The lines as CSV, the oldest first: all of them, as they come in, or the `last` ones."""
    from autovibe.api.v1 import schemas

    with hub() as here:
        if last is None:
            lines = here.items("/usage", schemas.UsageLine, project=project, oldest_first=True)
        else:
            lines = reversed(here.pages("/usage", schemas.UsageLine, project=project, most=last))
        _write_csv(lines, tuple(schemas.UsageLine.model_fields))


def _sums(project: str | None, by: str, since: datetime | None, as_csv: bool, as_json: bool) -> None:
    from autovibe.api.v1 import schemas

    asked = {"project": project, "since": since.date() if since else None}
    with hub() as here:
        if by == "checkpoint":
            rows = here.pages("/usage/checkpoints", schemas.CheckpointSum, **asked)
        else:
            sums = here.pages("/usage/sums", schemas.UsageSum, by=by, **asked)
            rows = [{by: row[by]} | row for row in sums]
    if as_csv:
        _write_csv(rows, (by, "lines", "calls", "cad"))
        return
    output(rows, as_json, lambda found: _chart(by, found) if found else "Nothing was used yet.")


def _write_csv(rows: Iterable[dict[str, Any]], header: tuple[str, ...]) -> None:
    """The rows, under their names; `header` when there are none."""
    writer, named_yet = csv.writer(sys.stdout, lineterminator="\n"), False
    for row in rows:
        if not named_yet:
            writer.writerow(row)
        named_yet = True
        writer.writerow([_csv_cell(value) for value in row.values()])
    if not named_yet:
        writer.writerow(header)


def _csv_cell(value: Any) -> str:
    """A value as a program reads it: times with their zone, objects as JSON."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return json.dumps(value)
    text = cell_text(value)
    # A model's name is what a machine says it is: a spreadsheet is not to run it as a formula.
    return f"'{text}" if isinstance(value, str) and text.startswith(("=", "+", "-", "@")) else text


def _chart(by: str, rows: list[dict[str, Any]]) -> Any:
    """The sums, each with a bar as long as its part of the dearest."""
    dearest = max((abs(row["cad"]) for row in rows), default=Decimal(0)) or Decimal(1)
    bars = ["█" * int(abs(row["cad"]) / dearest * 30 + Decimal("0.5")) for row in rows]
    shown = [[*row.values(), bar] for row, bar in zip(rows, bars, strict=True)]
    return table((*(name.replace("_", " ") for name in rows[0]), ""), shown)


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
