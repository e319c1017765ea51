"""`autovibe doctor`."""

from __future__ import annotations

import sys

import click

from autovibe.cli.common import EXIT_FAILED, console, json_option, output, settings

_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "missing": ("✗", "red")}


@click.command()
@click.option("--site", is_flag=True, help="Look at the Proxmox site instead: API, token, storage, bridge, templates.")
@json_option
def doctor(site: bool, as_json: bool) -> None:
    """Say what is missing on this computer, what cannot be reached, and what to do.

    Fails when something needed is missing.
    """
    from rich.text import Text

    from autovibe.doctor import examine, examine_site

    findings, out = [], console()
    for finding in examine_site(settings()) if site else examine(settings()):
        findings.append(finding)
        if not as_json:
            mark, colour = _MARKS[finding.state]
            line = Text.assemble((mark, colour), f" {finding.name:<13} {finding.message}")
            if finding.hint:
                line.append(f"  → {finding.hint}", style="bold")
            out.print(line)
    if as_json:
        output([finding.as_dict() for finding in findings], True)
    if any(finding.state == "missing" for finding in findings):
        sys.exit(EXIT_FAILED)
