"""`autovibe project`: create, list, show."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

import click

from autovibe.cli.common import json_option, output, settings, table


class DecimalNumber(click.ParamType):
    """A decimal number, exact: money never passes through a float."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        try:
            return Decimal(value)
        except InvalidOperation:
            self.fail(f"{value!r} is not a number", param, ctx)


@click.group()
def project() -> None:
    """Projects: what owns machines, budgets and checkpoints."""


@project.command()
@click.argument("name")
@click.option("--budget", type=DecimalNumber(), required=True, help="All that the project may ever spend, in CAD.")
@click.option("--greediness", type=DecimalNumber(), default="0.5", show_default=True, help="Its share, from 0 to 1.")
@click.option("--description", help="What it is for.")
@click.option("--time-zone", default="UTC", show_default=True, help="Where its days begin, such as America/Toronto.")
@json_option
def create(
    name: str, budget: Decimal, greediness: Decimal, description: str | None, time_zone: str, as_json: bool
) -> None:
    """Make a project named NAME with a hard budget."""
    from autovibe import db, projects

    with db.session_scope(settings()) as session:
        made = projects.create(
            session, name, budget_cad=budget, greediness=greediness, description=description, time_zone=time_zone
        )
        view = projects.view(session, made)
    output(view, as_json, lambda data: f"Project {data['name']} ({data['uuid']}), budget CAD {_money(data['budget'])}.")


@project.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the projects."""
    from autovibe import db, projects

    with db.session_scope(settings()) as session:
        views = [projects.view(session, one) for one in projects.all_of(session)]
    output(views, as_json, _listed)


@project.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show the project NAME (its name or its uuid)."""
    from autovibe import db, projects

    with db.session_scope(settings()) as session:
        view = projects.view(session, projects.get(session, name))
    output(view, as_json, _shown)


def _listed(views: list[dict[str, Any]]) -> Any:
    if not views:
        return "No projects. Make one with `autovibe project create NAME --budget 5`."
    columns = ("name", "status", "greediness", "machines", "allocated", "used", "reserved", "available")
    rows = [{**view, **(view["budget"] or {})} for view in views]
    return table(columns, [[row.get(column) for column in columns] for row in rows])


def _shown(view: dict[str, Any]) -> Any:
    flat = {name: value for name, value in view.items() if name not in ("budget", "budgets")}
    flat |= {f"{name} (CAD)": value for name, value in (view["budget"] or {}).items() if isinstance(value, Decimal)}
    if view["budget"] and view["budget"]["frozen_at"]:
        flat["frozen"] = view["budget"]["freeze_reason"]
    return table(("", ""), [(name.replace("_", " "), value) for name, value in flat.items() if value is not None])


def _money(budget: dict[str, Any]) -> str:
    return f"{budget['allocated'].normalize():f}"
