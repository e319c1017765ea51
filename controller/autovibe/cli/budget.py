"""`autovibe budget`: set, show, top-up, remove, history, alerts."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import click

from autovibe.cli.common import json_option, output, settings, table
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
        help="What is limited; only money and api_calls are measured yet.",
    )
    period = click.option(
        "--period", type=click.Choice(PERIODS), default="total", show_default=True, help="For how long."
    )
    return resource(period(command))


@click.group()
def budget() -> None:
    """Budgets: what a project may use, in a day, a week, a month, or in all."""


@budget.command("set")
@click.argument("project")
@click.argument("amount", type=DecimalNumber())
@_which
@click.option("--once", is_flag=True, help="No next period begins by itself.")
@click.option("--soft", type=click.IntRange(1, 100), default=80, show_default=True, help="Warn at this percentage.")
@json_option
def set_(project: str, amount: Decimal, resource: str, period: str, once: bool, soft: int, as_json: bool) -> None:
    """Limit PROJECT to AMOUNT, from the present period on; what was used in it counts."""
    from autovibe import allocations, db, projects

    config = settings()
    with db.session_scope(config) as session:
        owner = projects.get(session, project)
        made = allocations.set_budget(
            session,
            owner.uuid,
            amount,
            resource=resource,
            period=period,
            auto_reset=False if once else None,
            soft_percent=soft,
            week_start=config.week_start,
        )
        view = allocations.view(made)
    output(view, as_json, _said)


@budget.command()
@click.argument("project")
@json_option
def show(project: str, as_json: bool) -> None:
    """Show the budgets of PROJECT that hold now, and when they will be used up at the present pace."""
    from autovibe import allocations, db, projects, reports

    with db.session_scope(settings()) as session:
        owner = projects.get(session, project)
        views = [
            allocations.view(row) | {"runs_out": reports.runs_out(session, row)}
            for row in allocations.present(session, owner.uuid)
        ]
    output(views, as_json, lambda rows: _listed(rows, (*COLUMNS, "runs_out")))


@budget.command("top-up")
@click.argument("project")
@click.argument("amount", type=DecimalNumber())
@_which
@json_option
def top_up(project: str, amount: Decimal, resource: str, period: str, as_json: bool) -> None:
    """Add AMOUNT to the present period's budget of PROJECT."""
    from autovibe import allocations, db, projects

    with db.session_scope(settings()) as session:
        owner = projects.get(session, project)
        view = allocations.view(allocations.top_up(session, owner.uuid, amount, resource=resource, period=period))
    output(view, as_json, _said)


@budget.command()
@click.argument("project")
@_which
@json_option
def remove(project: str, resource: str, period: str, as_json: bool) -> None:
    """End a budget of PROJECT. Without any budget of money nothing can be spent."""
    from autovibe import allocations, db, projects

    with db.session_scope(settings()) as session:
        owner = projects.get(session, project)
        allocations.remove(session, owner.uuid, resource=resource, period=period)
    output({"removed": True}, as_json, lambda _: f"The {period} budget of {resource} is removed.")


@budget.command()
@click.argument("project")
@click.option("--last", type=click.IntRange(min=1), default=50, show_default=True, help="How many periods to show.")
@json_option
def history(project: str, last: int, as_json: bool) -> None:
    """Show the periods of PROJECT's budgets, the newest first."""
    from autovibe import allocations, db, projects

    with db.session_scope(settings()) as session:
        owner = projects.get(session, project)
        views = [allocations.view(row) for row in allocations.history(session, owner.uuid, last)]
    output(views, as_json, lambda rows: _listed(rows, ("resource", "period", "period_start", *COLUMNS[2:])))


@budget.command()
@click.argument("project", required=False)
@json_option
def alerts(project: str | None, as_json: bool) -> None:
    """Show the levels that budgets have reached, of PROJECT or of all, the newest first."""
    from autovibe import alerts as raised
    from autovibe import db, projects

    with db.session_scope(settings()) as session:
        owner = projects.get(session, project) if project else None
        views = raised.views(session, owner.uuid if owner else None)
    columns = ("created_at", "project", "resource", "period", "percent", "used", "allocated", "unit", "delivered_at")
    output(views, as_json, lambda rows: _rows(rows, columns) if rows else "No alerts.")


def _listed(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> Any:
    if not rows:
        return "No budgets. Set one with `autovibe budget set PROJECT AMOUNT`."
    return _rows([{**row, "until": row["period_end"], "state": _state(row)} for row in rows], columns)


def _rows(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> Any:
    return table([name.replace("_", " ") for name in columns], [[row[name] for name in columns] for row in rows])


def _state(row: dict[str, Any]) -> str:
    if row["removed_at"]:
        return "removed"
    if row["frozen_at"]:
        return f"frozen: {row['freeze_reason']}"
    if row["overrun"]:
        return f"overrun by {row['overrun'].normalize():f}"
    return "used up" if row["hard"] and not row["available"] else "ok"


def _said(view: dict[str, Any]) -> str:
    left, allocated = (f"{view[name].normalize():f}" for name in ("available", "allocated"))
    until = f" until {view['period_end']}" if view["period_end"] else ""
    text = (
        f"{view['period'].capitalize()} budget of {view['resource']}: {allocated} {view['unit']}{until}, {left} left."
    )
    if view["allocated"] > view["each_period"] and view["period"] != "total":
        text += f" The next period begins with {view['each_period'].normalize():f}."
    return text
