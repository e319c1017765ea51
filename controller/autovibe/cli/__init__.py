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
    "up": ("autovibe.cli.up:up", "Start the hub on this computer: database, API, worker and scheduler."),
    "down": ("autovibe.cli.up:down", "Stop the hub of this computer; nothing of it is left running."),
    "doctor": (
        "autovibe.cli.doctor:doctor",
        "Say what is missing on this computer, what cannot be reached, and what to do.",
    ),
    "project": ("autovibe.cli.project:project", "Projects: what owns machines, budgets and checkpoints."),
    "machine": ("autovibe.cli.machine:machine", "Machines: one VM, one agent, one prompt."),
    "checkpoint": ("autovibe.cli.checkpoint:checkpoint", "Checkpoints: what a machine can start from."),
    "template": ("autovibe.cli.template:template", "Templates: what the first machine is cloned from."),
    "budget": ("autovibe.cli.budget:budget", "Budgets: what a project may use, in a day, a week, a month, or in all."),
    "pool": ("autovibe.cli.pool:pool", "Pools: what all projects share, in a day, a week or a month."),
    "price": ("autovibe.cli.price:price", "Prices of models: which hold, and where they come from."),
    "rate": ("autovibe.cli.price:rate", "Exchange rates: which are known, and one of your own."),
    "usage": ("autovibe.cli.usage:usage", "Show what was used and what it cost, in PROJECT or in all projects."),
    "user": ("autovibe.cli.user:user", "Users: who may do what at this hub."),
    "key": ("autovibe.cli.key:key", "API keys: what programs, and other computers, show to this hub."),
    "audit": ("autovibe.cli.login:audit", "Show every change that somebody asked for, the newest first."),
    "hub": (
        "autovibe.cli.hub:hub",
        "The hub that commands go to: where it is, its CA's fingerprint, what it does now; and its own VM.",
    ),
    "login": (
        "autovibe.cli.login:login",
        "Have the commands of this computer go to the hub at URL, such as https://hub.example:18001.",
    ),
    "logout": (
        "autovibe.cli.login:logout",
        "Have the commands go to this computer's own hub again, and end the key.",
    ),
    "reconcile": ("autovibe.cli.reconcile:reconcile", "Compare the ledger with the provider's own usage report."),
    "db": ("autovibe.cli.db:db", "The database of the hub on this computer: migrate, back up, restore."),
}


#: Who is logged in to a distant hub may take these for its own; the others that stay here are about this computer.
LOCAL = ("db",)


class Commands(click.Group):
    """A group whose subcommands are loaded when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(name for name in _entry_points() if name not in COMMANDS)]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name in LOCAL and "--help" not in rest and "-h" not in rest:
            _refuse_when_logged_in(name)
        return name, command, rest

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


def _refuse_when_logged_in(name: str) -> None:
    from autovibe.cli.common import settings
    from autovibe.errors import AutovibeError

    if (settings().state_dir / "login.json").exists():
        raise AutovibeError(
            f"`autovibe {name}` works on the hub itself only", "Run it there, or `autovibe logout` first."
        )


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
