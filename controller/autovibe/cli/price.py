"""`autovibe price` and `autovibe rate`: what models cost, and what a dollar costs."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

import click

from autovibe.cli.common import hub, json_option, named, output, table
from autovibe.cli.project import DecimalNumber


@click.group()
def price() -> None:
    """Prices of models: which hold, and where they come from."""


@price.command("list")
@click.argument("model", required=False)
@click.option("--on", type=click.DateTime(["%Y-%m-%d"]), help="On this day instead of today.")
@json_option
def list_(model: str | None, on: datetime | None, as_json: bool) -> None:
    """Show the prices that hold, of the models whose names have MODEL in them, or of all.

    USD per million tokens; web searches per thousand.
    """
    from autovibe.api.v1 import schemas

    with hub() as here:
        rows = here.pages("/prices", schemas.Price, model=model, on=on.date() if on else None)
    output(rows, as_json, lambda found: _rows(found, tuple(found[0])) if found else "No prices.")


@click.group()
def rate() -> None:
    """Exchange rates: which are known, and one of your own."""


@rate.command("set")
@click.argument("amount", metavar="RATE", type=DecimalNumber(positive=True))
@click.option("--from", "base", default="USD", show_default=True, help="One unit of this currency costs RATE…")
@click.option("--to", "quote", default="CAD", show_default=True, help="… of this one.")
@click.option("--on", type=click.DateTime(["%Y-%m-%d"]), help="From this day on instead of today.")
@json_option
def set_(amount: Decimal, base: str, quote: str, on: datetime | None, as_json: bool) -> None:
    """Use RATE until a newer one is known."""
    from autovibe.api.v1 import schemas

    with hub() as here:
        body = {"rate": amount, "on": on.date() if on else None}
        now = here.ask("PUT", f"/rates/{named(base)}/{named(quote)}", schemas.Rate, body=body)
    data = {name: now[name] for name in ("base", "quote", "rate", "day", "source")}
    output(
        data, as_json, lambda row: f"1 {row['base']} is {row['rate'].normalize():f} {row['quote']} ({row['source']})."
    )


@rate.command()
@click.option("--last", type=click.IntRange(min=1), default=20, show_default=True, help="How many rates to show.")
@json_option
def show(last: int, as_json: bool) -> None:
    """Show the rates that are known, the newest first."""
    from autovibe.api.v1 import schemas

    with hub() as here:
        rows = here.pages("/rates", schemas.Rate, most=last)
    output(rows, as_json, lambda found: _rows(found, tuple(found[0])) if found else "No exchange rates.")


def _rows(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> Any:
    return table([name.replace("_", " ") for name in columns], [[row[name] for name in columns] for row in rows])
