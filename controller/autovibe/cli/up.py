"""`autovibe up` and `autovibe down`."""

from __future__ import annotations

from typing import Any

import click

from autovibe.cli.common import json_option, output, settings


@click.command()
@click.option(
    "--foreground/--detach", "-f/-d", "foreground", default=True, help="Stay (default), or go to the background."
)
@click.option("--hub-port", type=click.IntRange(1, 65535), help="The hub's port; default: the settings' one.")
@json_option
def up(foreground: bool, hub_port: int | None, as_json: bool) -> None:
    """Start the hub on this computer: database, API, worker and scheduler.

    Ctrl-C, SIGTERM or `autovibe down` stops all of it.
    """
    from autovibe import supervise
    from autovibe.settings import load_settings

    config = load_settings(hub_port=hub_port) if hub_port else settings()

    def ready(state: dict[str, Any]) -> None:
        output(
            state, as_json, lambda data: f"The hub is up: https://{data['bind']}:{data['port']} (pid {data['pid']})."
        )

    if not foreground:
        ready(supervise.up_detached(config))
        return
    supervise.log_to_stderr()
    supervise.up(config, ready)


@click.command()
@json_option
def down(as_json: bool) -> None:
    """Stop the hub of this computer; nothing of it is left running."""
    from autovibe import supervise

    stopped = supervise.down(settings())
    output({"stopped": stopped}, as_json, lambda data: "The hub is down." if data["stopped"] else "The hub was not up.")
