"""`autovibe lab`: the embedded Proxmox node."""

from __future__ import annotations

import json
from pathlib import Path

import click

from autovibe_lab import control
from autovibe_lab.latency import PROFILES
from autovibe_lab.paths import LabPaths
from autovibe_lab.site import SITES


class Failed(click.ClickException):
    """One line on stderr."""

    def __init__(self, error: control.LabError) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code


class LabGroup(click.Group):
    """Turns the lab's errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except control.LabError as error:
            raise Failed(error) from None


state_option = click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The lab's state folder. Default: lab/ in the project's state folder.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _say(text: str) -> None:
    click.echo(text, err=True)


@click.group(cls=LabGroup)
def lab() -> None:
    """The embedded Proxmox node, on this computer: real QEMU guests, no Proxmox, no root."""


@lab.command()
@state_option
@click.option("--port", type=click.IntRange(0, 65535), help="Port of the API on loopback; 0: any. Default: 18006.")
@click.option("--hub-port", type=click.IntRange(1, 65535), help="Port on loopback that guests reach. Default: 18000.")
@click.option("--kvm", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True, help="Use KVM.")
@click.option("--no-image", is_flag=True, help="Null guests only: build no guest image.")
@click.option(
    "--latency",
    type=click.Choice(list(PROFILES)),
    default="off",
    show_default=True,
    help="Let null guests take the time of a real server.",
)
@click.option("--time-scale", type=click.FloatRange(0), default=1, show_default=True, help="Multiply all delays.")
@click.option(
    "--nodes", type=click.IntRange(1, 16), default=1, show_default=True, help="Play a cluster of so many nodes."
)
@click.option(
    "--site",
    type=click.Choice(SITES),
    default="least",
    show_default=True,
    help="What the lab's own token may do: what the collection needs, everything, or there is none.",
)
@click.option(
    "--pve-version", type=click.Choice(["8", "9"]), default="8", show_default=True, help="Whose privileges there are."
)
@json_option
def up(state: Path | None, no_image: bool, as_json: bool, **settings: object) -> None:
    """Start the lab and return as soon as it answers."""
    endpoint = control.up(state, image=not no_image, progress=_say, **settings)
    if as_json:
        click.echo(json.dumps(endpoint))
    else:
        click.echo(f"the lab answers at https://{endpoint['host']}:{endpoint['port']}, node {endpoint['node']}")


@lab.command()
@state_option
@click.option("--keep", is_flag=True, help="Keep disks and configurations for the next `up`.")
@json_option
def down(state: Path | None, keep: bool, as_json: bool) -> None:
    """Stop the lab and its guests and remove all of it, also after a crash."""
    was_up = control.down(state, keep=keep)
    if as_json:
        click.echo(json.dumps({"was_up": was_up}))
    else:
        click.echo("the lab is down" if was_up else "there is no lab")


@lab.command()
@state_option
@json_option
def status(state: Path | None, as_json: bool) -> None:
    """Show whether the lab runs, where, and its guests. Exit code 1 when it does not run."""
    found = control.status(state)
    if as_json:
        click.echo(json.dumps(found))
    elif found["running"]:
        click.echo(
            f"the lab runs at {found['url']} ({found['accel']}): {found['guests_running']} of {found['guests']} guests "
            f"run, {found['templates']} templates; state in {found['state']}"
        )
    else:
        click.echo(f"no lab runs at {found['state']}")
    if not found["running"]:
        raise click.exceptions.Exit(1)


@lab.command()
@click.option(
    "--flavour",
    type=click.Choice(["default", "agents"]),
    default="default",
    show_default=True,
    help="default: with Claude Code; agents: with qwen-code and aider too.",
)
@click.option("--install", is_flag=True, help="Also put it into the lab, as local:import/autovibe-agents.qcow2.")
@state_option
@json_option
def image(flavour: str, install: bool, state: Path | None, as_json: bool) -> None:
    """Build the guest image, unless it is cached, and print the path of its disk."""
    from autovibe_lab import image as guest_image

    try:
        built = guest_image.build(_say, flavour=flavour)
        if install:
            name = "autovibe-guest" if flavour == "default" else f"autovibe-{flavour}"
            guest_image.install(built, LabPaths((state or control.default_state()).absolute()), name)
        disk = str(built / "disk.qcow2")
        click.echo(json.dumps({"disk": disk}) if as_json else disk)
    except guest_image.ImageError as error:
        raise control.LabError(str(error)) from None
