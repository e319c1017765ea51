"""`autovibe budget`: set, show, top-up, remove, history, alerts."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import click

from autovibe.cli.common import hub, json_option, named, output, table
from autovibe.cli.project import DecimalNumber

# Those of `autovibe.periods`, which is slow to load for --help.
RESOURCES = ("money", "time", "api_calls", "cpu", "memory", "storage", "network")
PERIODS = ("daily", "weekly", "monthly", "total")
COLUMNS = ("resource", "period", "allocated", "used", "reserved", "available", "unit", "until", "state")


def _which(command: Any) -> Any:
    resource = click.option(
        "--resource",
        type=click.Choice(RESOURCES),
        default="money",
        show_default=True,
        help="What is limited; money and api_calls are never overspent, the others are counted.",
    )
    period = click.option(
        "--period", type=click.Choice(PERIODS), default="total", show_default=True, help="For how long."
    )
    return resource(period(command))


def _path(here: Any, project: str, resource: str, period: str) -> str:
    return f"/projects/{named(project)}/budgets/{resource}/{period}"


@click.group()
def budget() -> None:
    """Budgets: what a project may use, in a day, a week, a month, or in all."""


@budget.command("set")
@click.argument("project")
@click.argument("amount", type=DecimalNumber(positive=True))
@_which
@click.option("--once", is_flag=True, help="No next period begins by itself.")
@click.option("--soft", type=click.IntRange(1, 100), default=80, show_default=True, help="Warn at this percentage.")
@json_option
def set_(project: str, amount: Decimal, resource: str, period: str, once: bool, soft: int, as_json: bool) -> None:
    """Limit PROJECT to AMOUNT, from the present period on; what was used in it counts."""
    from autovibe.api.v1 import schemas

    body = {"amount": amount, "auto_reset": False if once else None, "soft_percent": soft}
    with hub() as here:
        view = here.ask("PUT", _path(here, project, resource, period), schemas.Budget, body=body)
    output(view, as_json, _said)


@budget.command()
@click.argument("project")
@json_option
def show(project: str, as_json: bool) -> None:
    """Show the budgets of PROJECT that hold now, and when they will be used up at the present pace."""
    from autovibe.api.v1 import schemas

    with hub() as here:
        views = here.pages(f"/projects/{named(project)}/budgets", schemas.BudgetInFull)
    output(views, as_json, lambda rows: _listed(rows, (*COLUMNS, "runs_out")))


@budget.command("top-up")
@click.argument("project")
@click.argument("amount", type=DecimalNumber(positive=True))
@_which
@json_option
def top_up(project: str, amount: Decimal, resource: str, period: str, as_json: bool) -> None:
    """Add AMOUNT to the present period's budget of PROJECT. Its machines that were paused for want of it go on."""
    from autovibe.api.v1 import schemas

    with hub() as here:
        path = f"{_path(here, project, resource, period)}/top-up"
        view = here.post(path, schemas.BudgetToppedUp, {"amount": amount})
    output(view, as_json, _said)


@budget.command()
@click.argument("project")
@_which
@json_option
def remove(project: str, resource: str, period: str, as_json: bool) -> None:
    """End a budget of PROJECT. Without any budget of money nothing can be spent."""
    with hub() as here:
        here.ask("DELETE", _path(here, project, resource, period))
    output({"removed": True}, as_json, lambda _: f"The {period} budget of {resource} is removed.")


@budget.command()
@click.argument("project")
@click.option("--last", type=click.IntRange(min=1), default=50, show_default=True, help="How many periods to show.")
@json_option
def history(project: str, last: int, as_json: bool) -> None:
    """Show the periods of PROJECT's budgets, the newest first."""
    from autovibe.api.v1 import schemas

    with hub() as here:
        views = here.pages(f"/projects/{named(project)}/budgets/history", schemas.Budget, most=last)
    output(views, as_json, lambda rows: _listed(rows, ("resource", "period", "period_start", *COLUMNS[2:])))


@budget.command()
@click.argument("project", required=False)
@json_option
def alerts(project: str | None, as_json: bool) -> None:
    """Show which budgets have reached a level, are used up, or froze, of PROJECT or of all, the newest first."""
    from autovibe.api.v1 import schemas

    with hub() as here:
        views = here.pages("/alerts", schemas.Alert, most=100, project=project)
    columns = ("created_at", "project", "resource", "period", "level", "used", "allocated", "unit", "delivered_at")
    shown = [
        row | {"level": f"{row['kind']}: {row['reason']}" if row["reason"] else f"{row['percent']} %"} for row in views
    ]
    output(views, as_json, lambda _: _rows(shown, columns) if shown else "No alerts.")


def _listed(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> Any:
    if not rows:
        return "No budgets. Set one with `autovibe budget set PROJECT AMOUNT`."
    shown = [{**row, "until": row["period_end"], "state": _state(row)} for row in rows]
    for row in shown:
        row["period"] += " pool" if row["pooled"] else ""
    return _rows(shown, columns)


def _rows(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> Any:
    return table([name.replace("_", " ") for name in columns], [[row[name] for name in columns] for row in rows])


def _state(row: dict[str, Any]) -> str:
    if row["removed_at"]:
        return "removed"
    if row["frozen_at"]:
        return f"frozen: {row['freeze_reason']}"
    if row["overrun"]:
        return f"overrun by {row['overrun'].normalize():f}"
    if not row["hard"] or row["available"]:
        return "ok"
    return "takes more of the pool when asked" if row["pooled"] else "used up"


def _said(view: dict[str, Any]) -> str:
    left, allocated = (f"{view[name].normalize():f}" for name in ("available", "allocated"))
    until = f" until {view['period_end']}" if view["period_end"] else ""
    text = (
        f"{view['period'].capitalize()} budget of {view['resource']}: {allocated} {view['unit']}{until}, {left} left."
    )
    each = f"{view['each_period'].normalize():f}"
    if view["allocated"] > view["each_period"] and view["period"] != "total":
        text += f" The next period begins with {each}."
    elif view["allocated"] > view["each_period"] and not view["available"]:
        text += f" That is used or held already, beyond {each}."
    if count := len(view.get("resumed", ())):
        text += f" {count} paused machine{'s go' if count > 1 else ' goes'} on."
    return text
