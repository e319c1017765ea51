"""`autovibe pool`: set, limit, show, remove."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import click

from autovibe.cli.common import hub, json_option, named, output, table
from autovibe.cli.project import DecimalNumber

# Those of `autovibe.pools`, which is slow to load for --help.
PERIODS = ("daily", "weekly", "monthly")
COLUMNS = ("project", "greediness", "share", "used", "reserved", "floor", "cap", "until")


def _which(command: Any) -> Any:
    resource = click.option(
        "--resource",
        type=click.Choice(["money", "api_calls"]),
        default="money",
        show_default=True,
        help="What is shared.",
    )
    period = click.option("--period", type=click.Choice(PERIODS), required=True, help="Which pool.")
    return resource(period(command))


@click.group()
def pool() -> None:
    """Pools: what all projects share, in a day, a week or a month.

    They share in proportion to their greediness.
    A project's own budgets hold beside its share. Who is idle lends its share to the others, but for its floor.
    """


@pool.command("set")
@click.argument("amount", type=DecimalNumber(positive=True))
@_which
@json_option
def set_(amount: Decimal, period: str, resource: str, as_json: bool) -> None:
    """Share AMOUNT of each period among the projects, from the present one on."""
    from autovibe.api.v1 import schemas

    with hub() as here:
        view = here.ask("PUT", f"/pools/{resource}/{period}", schemas.Pool, body={"amount": amount})
    output(view, as_json, _said)


@pool.command()
@click.argument("project")
@_which
@click.option("--floor", type=DecimalNumber(), default="0", show_default=True, help="What is never lent to others.")
@click.option("--cap", type=DecimalNumber(), help="What the share is at most.")
@json_option
def limit(project: str, period: str, resource: str, floor: Decimal, cap: Decimal | None, as_json: bool) -> None:
    """Set what PROJECT's share of a pool is at least and at most."""
    from autovibe.api.v1 import schemas

    with hub() as here:
        path = f"/pools/{resource}/{period}/limits/{named(project)}"
        view = here.ask("PUT", path, schemas.Pool, body={"floor": floor, "cap": cap})
    output(view, as_json, _said)


@pool.command()
@json_option
def show(as_json: bool) -> None:
    """Show the pools, and each project's share of the present period."""
    from autovibe.api.v1 import schemas

    with hub() as here:
        views = here.pages("/pools", schemas.Pool)
    output(views, as_json, lambda found: _all(found) if found else "No pools. Make one with `autovibe pool set`.")


@pool.command()
@_which
@json_option
def remove(period: str, resource: str, as_json: bool) -> None:
    """End a pool; the projects' own budgets stay."""
    with hub() as here:
        here.ask("DELETE", f"/pools/{resource}/{period}")
    output({"removed": True}, as_json, lambda _: f"The {period} pool of {resource} is removed.")


def _all(views: list[dict[str, Any]]) -> Any:
    from rich.console import Group

    return Group(*(_said(view) for view in views))


def _said(view: dict[str, Any]) -> Any:
    from rich.console import Group

    head = f"{view['period'].capitalize()} pool of {view['resource']}: {view['amount'].normalize():f} {view['unit']}."
    return Group(head, table(COLUMNS, [[row[name] for name in COLUMNS] for row in view["shares"]]))
