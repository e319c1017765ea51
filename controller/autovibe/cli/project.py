"""`autovibe project`: create, set, list, show, efficiency, reset."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import click

from autovibe.cli.common import hub, json_option, named, output, table

_TOO_LARGE = Decimal("1e15")
# Those of `autovibe.projects`, which is slow to load for --help.
STATUSES = ("active", "paused", "completed", "archived")


class DecimalNumber(click.ParamType):
    """A decimal number, exact: money never passes through a float. `positive`: above 0."""

    name = "number"

    def __init__(self, *, positive: bool = False) -> None:
        self.positive = positive

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        try:
            number = Decimal(value)
        except InvalidOperation:
            number = Decimal("NaN")
        if not number.is_finite():
            self.fail(f"{value!r} is not a number", param, ctx)
        if number >= _TOO_LARGE:
            self.fail(f"{value} is too large", param, ctx)
        if self.positive and number <= 0:
            self.fail(f"{value} is not above 0", param, ctx)
        return number


@click.group()
def project() -> None:
    """Projects: what owns machines, budgets and checkpoints."""


@project.command()
@click.argument("name")
@click.option("--budget", type=DecimalNumber(), required=True, help="All that the project may ever spend, in CAD.")
@click.option("--greediness", type=DecimalNumber(), default="0.5", show_default=True, help="Its share, from 0 to 1.")
@click.option("--description", help="What it is for.")
@click.option("--time-zone", default="UTC", show_default=True, help="Where its days begin, such as America/Toronto.")
@click.option(
    "--when-exhausted",
    type=click.Choice(("pause", "end")),
    default="pause",
    show_default=True,
    help="What becomes of its machines when a budget is used up: pause, until there is money again; or end.",
)
@click.option("--model", "models", multiple=True, help="A model that it may use (repeatable; * stands for anything).")
@json_option
def create(name: str, budget: Decimal, as_json: bool, **given: Any) -> None:
    """Make a project named NAME with a hard budget."""
    from autovibe.api.v1 import schemas

    asked = {"budget": budget, **{key: value for key, value in given.items() if value is not None}}
    asked["models"] = list(asked["models"])
    with hub() as here:
        view = here.post("/projects", schemas.Project, {"name": name, **asked})
    output(view, as_json, lambda data: f"Project {data['name']} ({data['uuid']}), budget CAD {_money(data['budget'])}.")


@project.command("set")
@click.argument("name")
@click.option("--model", "models", multiple=True, help="A model that it may use (repeatable; * stands for anything).")
@click.option("--any-model", is_flag=True, help="It may use every model that has a price.")
@click.option("--greediness", type=DecimalNumber(), help="Its share, from 0 to 1.")
@click.option("--description", help="What it is for.")
@click.option("--status", type=click.Choice(STATUSES), help="Only an active one gets new machines.")
@json_option
def set_(name: str, models: tuple[str, ...], any_model: bool, as_json: bool, **given: Any) -> None:
    """Change what is given of the project NAME. Models hold from its machines' next call on."""
    from autovibe.api.v1 import schemas

    if models and any_model:
        raise click.UsageError("Give either --model (once for each) or --any-model.")
    body = {key: value for key, value in given.items() if value is not None}
    if models or any_model:
        body["models"] = list(models)
    if not body:
        raise click.UsageError("Say what is to be changed.")
    with hub() as here:
        view = here.ask("PATCH", f"/projects/{named(name)}", schemas.Project, body=body)
    output(view, as_json, _changed)


def _changed(view: dict[str, Any]) -> str:
    allowed = ", ".join(view["models"] or ["any model"])
    return f"Project {view['name']} is {view['status']}, with greediness {view['greediness']}; it may use {allowed}."


@project.command()
@click.argument("name", required=False)
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="From this day on; default: the last 30 days.")
@json_option
def efficiency(name: str | None, since: datetime | None, as_json: bool) -> None:
    """Show what became of the machines that have ended, of the project NAME or of all, and what that cost."""
    from autovibe.api.v1 import schemas

    asked = {"project": name, "since": since.date() if since else None}
    with hub() as here:
        rows = here.pages("/analytics/efficiency", schemas.Efficiency, **asked)
    output(rows, as_json, _efficiency)


def _efficiency(rows: list[dict[str, Any]]) -> Any:
    if not rows:
        return "No machine has ended."
    return table([name.replace("_", " ") for name in rows[0]], [list(row.values()) for row in rows])


@project.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the projects."""
    from autovibe.api.v1 import schemas

    with hub() as here:
        views = here.pages("/projects", schemas.Project)
    output(sorted(views, key=lambda view: view["name"]), as_json, _listed)


@project.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show the project NAME (its name or its uuid)."""
    from autovibe.api.v1 import schemas

    with hub() as here:
        view = here.get(f"/projects/{named(name)}", schemas.Project)
    output(view, as_json, _shown)


@project.command()
@click.argument("name")
@json_option
def reset(name: str, as_json: bool) -> None:
    """Let the project NAME have machines again, after so many had failed that it got no new ones."""
    from autovibe.api.v1 import schemas

    with hub() as here:
        view = here.post(f"/projects/{named(name)}/reset", schemas.Project)
    output(view, as_json, lambda data: f"Project {data['name']} may have machines again.")


def _listed(views: list[dict[str, Any]]) -> Any:
    if not views:
        return "No projects. Make one with `autovibe project create NAME --budget 5`."
    columns = ("name", "status", "greediness", "machines", "allocated", "used", "reserved", "available")
    rows = [{**view, **(view["budget"] or {})} for view in views]
    return table(columns, [[row.get(column) for column in columns] for row in rows])


def _shown(view: dict[str, Any]) -> Any:
    flat = {name: value for name, value in view.items() if name not in ("budget", "budgets")}
    flat["models"] = ", ".join(view["models"] or []) or None
    flat |= {f"{name} (CAD)": value for name, value in (view["budget"] or {}).items() if isinstance(value, Decimal)}
    if view["budget"] and view["budget"]["frozen_at"]:
        flat["frozen"] = view["budget"]["freeze_reason"]
    return table(("", ""), [(name.replace("_", " "), value) for name, value in flat.items() if value is not None])


def _money(budget: dict[str, Any]) -> str:
    return f"{budget['allocated'].normalize():f}"
