"""A test host with guests for role machine_network."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from hosts import Host, host

PLAYBOOK = "playbooks/network.yml"
PACKAGES = ("ifupdown2", "iputils-ping", "nftables")
HERE = "/opt/autovibe-tests"
INTERFACES = """\
auto lo
iface lo inet loopback

auto vmbr0
iface vmbr0 inet static
    address 10.9.0.1/24
    bridge-ports none
    bridge-stp off
    bridge-fd 0
    bridge-ports-condone-regex ^tap

source /etc/network/interfaces.d/*
"""


@contextmanager
def network_host(**variables: Any) -> Iterator[Host]:
    """A host with vmbr0, as Proxmox VE's installer leaves it. Rules go by port names: see the role's README."""
    with host(PACKAGES, machine_network_match="ports", **variables) as h:
        h.write("/etc/network/interfaces", INTERFACES)
        h.run("ifup vmbr0")
        yield h


def add_guests(h: Host) -> None:
    for name in ("guest_world", "guest_attempts", "guest_connections"):
        h.write(f"{HERE}/{name}.py", (Path(__file__).parent / f"{name}.py").read_text())
    world(h, "set_up()")


def world(h: Host, call: str) -> None:
    """Call a function of guest_world in the host."""
    h.run(f"cd {HERE} && python3 -c 'import guest_world; guest_world.{call}'")


def attempts(h: Host, wait: float) -> dict[str, bool]:
    """Which attempts of a guest arrive."""
    return json.loads(h.run(f"python3 {HERE}/guest_attempts.py {wait}").stdout)["seen"]


def play(h: Host, *arguments: str, **extra: Any) -> Any:
    return h.playbook(PLAYBOOK, *arguments, **extra)


def kill_at(h: Host, task: str, **extra: Any) -> None:
    """Start the play, and SIGKILL it with all its workers when that task begins."""
    process = subprocess.Popen(
        h.playbook_command(PLAYBOOK, **extra),
        cwd=Path(__file__).parents[1], env=h.environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout
    said = []
    for line in process.stdout:
        said.append(line)
        if f"TASK [machine_network : {task}]" in line:
            break
    else:
        raise AssertionError(f"no task {task!r}:\n{''.join(said)[-3000:]}")
    for victim in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        victim.kill()
    process.wait()
    process.stdout.close()
