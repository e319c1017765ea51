"""`autovibe reconcile`: the ledger beside the provider's own usage report."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from autovibe.cli.common import hub, json_option, output, table

DAY = click.DateTime(["%Y-%m-%d"])


@click.command()
@click.option("--from", "first", type=DAY, required=True, help="First day, in UTC.")
@click.option("--to", "last", type=DAY, required=True, help="Last day, in UTC; it is included.")
@click.option("--yes", is_flag=True, help="Book the corrections without asking.")
@click.option("--charge-to", metavar="PROJECT", help="Who pays for what no line of the ledger explains.")
@json_option
def reconcile(first: datetime, last: datetime, yes: bool, charge_to: str | None, as_json: bool) -> None:
    """Compare the ledger with the provider's own usage report.

    After a yes the differences are booked as corrections.
    Calls whose usage never arrived were booked at the most that they could cost; this puts them right.
    """
    from autovibe.api.v1 import schemas

    asked = {"first": first.date(), "last": last.date(), "charge_to": charge_to}
    with hub() as here:
        data = here.get("/reconciliation", schemas.Reconciliation, **asked)
        if not as_json:
            output(data, False, _shown)
        if data["corrections"] and (yes or (not as_json and click.confirm("Book these corrections?"))):
            # Only what was shown is booked.
            body = {**asked, "fingerprint": data["fingerprint"]}
            data = here.post("/reconciliation", schemas.Reconciliation, body)
            if not as_json:
                click.echo(f"Booked {data['corrections']} corrections.")
    if as_json:
        output(data, True)


def _shown(data: dict[str, Any]) -> Any:
    from rich.console import Group

    names = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")
    days = [
        [row["model"], row["day"], *(f"{row['reported'][name]} / {row['in_ledger'][name]}" for name in names)]
        for row in data["days"]
    ]
    models = [
        [
            row["model"],
            ", ".join(f"{count} {name}" for name, count in row["missing"].items()) or "nothing",
            row["booked_without_usage_cad"],
            row["remainder_cad"],
        ]
        for row in data["models"]
    ]
    said = f"Corrections: {data['corrections']}, {format(data['corrections_cad'], 'f')} CAD."
    if data["unexplained_cad"]:
        said += f" Unexplained: {format(data['unexplained_cad'], 'f')} CAD; with --charge-to a project pays them."
    return Group(
        table(("model", "day", *(f"{name.replace('_', ' ')}, reported / exact" for name in names)), days),
        "",
        table(("model", "not in exact lines", "booked without usage (CAD)", "what that costs (CAD)"), models),
        "",
        said,
    )
