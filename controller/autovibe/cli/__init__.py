"""The command `autovibe`.

A subcommand's module is imported only when it is called: `autovibe --help` needs none of them.
Other distributions add groups of their own by the entry point group `autovibe.commands`.
"""

import importlib
import sys

import click

from autovibe.cli.common import run

# name -> (module:attribute, the line that --help shows)
COMMANDS = {
    "vibe": ("autovibe.cli.vibe:vibe", "Show a whole machine's life, from nothing, on this computer."),
    "up": ("autovibe.cli.up:up", "Start the hub: database, API, worker and scheduler."),
    "down": ("autovibe.cli.up:down", "Stop the hub and its embedded database; nothing of it is left running."),
    "doctor": (
        "autovibe.cli.doctor:doctor",
        "Say what is missing, what cannot be reached, and what to do; fails when something needed is missing.",
    ),
    "project": ("autovibe.cli.project:project", "Projects: what owns machines, budgets and checkpoints."),
    "machine": ("autovibe.cli.machine:machine", "Machines: one VM, one agent, one prompt."),
    "checkpoint": ("autovibe.cli.checkpoint:checkpoint", "Checkpoints: what a machine can start from."),
    "template": ("autovibe.cli.template:template", "Templates: what the first machine is cloned from."),
    "budget": ("autovibe.cli.budget:budget", "Budgets: what a project may use, in a day, a week, a month, or in all."),
    "usage": ("autovibe.cli.usage:usage", "Show what was used and what it cost, in PROJECT or in all projects."),
    "db": ("autovibe.cli.db:db", "The database: migrate, back up, restore."),
}


class Commands(click.Group):
    """A group whose subcommands are loaded when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(name for name in _entry_points() if name not in COMMANDS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            module, attribute = COMMANDS[cmd_name][0].split(":")
            return getattr(importlib.import_module(module), attribute)
        entry_point = _entry_points().get(cmd_name)
        return entry_point.load() if entry_point else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, text) for name, (_, text) in COMMANDS.items()]
        for name, entry_point in sorted(_entry_points().items()):
            rows.append((name, _short_help(entry_point)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _entry_points() -> dict:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group="autovibe.commands")}


def _short_help(entry_point) -> str:
    try:
        return entry_point.load().get_short_help_str(limit=90)
    except ImportError as error:
        # An extra that is not installed must not take `--help` down with it.
        return f"Not available: {error}."


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="autovibe", message="autovibe %(version)s")
def cli() -> None:
    """Run AI coding agents unattended, each in a virtual machine of its own on your Proxmox server."""


def main(args: list[str] | None = None) -> None:
    """Entry point of the command `autovibe`."""
    sys.exit(run(cli, args))
