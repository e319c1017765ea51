"""A test host with guests for role machine_network."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from guest_attempts import ATTEMPTS, expected
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

#: What was done, the profile in force, what arrives
Phase = tuple[str, str, dict[str, bool]]
#: What passes does so at once; what has not passed by then was dropped.
WAIT = 0.1
UNLOAD = """
    systemctl stop autovibe-network-watch; autovibe-netrules unload
    sysctl -qw net.ipv6.conf.vmbr1.disable_ipv6=0 net.ipv4.conf.vmbr1.forwarding=1 net.ipv4.conf.vmbr0.forwarding=1
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


def attempts(h: Host, wait: float, profile: str) -> dict[str, bool]:
    """Which attempts of a guest arrive, while this profile is to be in force."""
    return json.loads(h.run(f"python3 {HERE}/guest_attempts.py {wait} {profile}", timeout=900).stdout)["seen"]


def settle(h: Host) -> None:
    """Wait until the ports are known: the hub's and the guests' whose VMs Proxmox VE knows."""
    end = time.monotonic() + 60
    while True:
        bound = h.run("nft list set bridge autovibe port_macs", check=False).stdout.count("02:af:")
        isolated = h.run("bridge -details link | grep -c 'isolated on'", check=False).stdout.strip()
        if (bound, isolated) == (3, "3"):
            return
        assert time.monotonic() < end, f"{bound} ports bound, {isolated} isolated: {h.run('bridge -d link').stdout}"
        time.sleep(0.05)


def phases(h: Host, wait: float) -> Iterator[Phase]:
    """`wait` is how long a packet has on its way."""
    h.run(UNLOAD)
    yield "without rules", "none", attempts(h, max(3, wait), "none")
    h.run("systemctl start autovibe-network-watch")
    settle(h)
    yield "hub_only", "hub_only", attempts(h, wait, "hub_only")
    h.run("systemctl reload autovibe-network; sysctl -qw net.bridge.bridge-nf-call-iptables=0")
    yield "rules reloaded, br_netfilter off", "hub_only", attempts(h, wait, "hub_only")
    # As a restart of nftables.service does, which is not ours
    h.run("sysctl -qw net.bridge.bridge-nf-call-iptables=1; nft flush ruleset")
    world(h, 'unplug("g1")')
    world(h, 'plug("g1")')
    settle(h)
    yield "ruleset flushed by others, tap made anew", "hub_only", attempts(h, wait, "hub_only")
    h.run("ifdown vmbr1; ifup vmbr1")
    world(h, "replug()")
    settle(h)
    yield "bridge restarted", "hub_only", attempts(h, wait, "hub_only")
    h.reboot()
    world(h, "set_up()")
    settle(h)
    yield "host rebooted", "hub_only", attempts(h, wait, "hub_only")


def check_phases(columns: list[Phase], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print_table(columns)
    for done, profile, seen in columns:
        wrong = {name: arrives for name, arrives in seen.items() if arrives != expected(profile)[name]}
        assert not wrong, done
    assert len(ATTEMPTS) >= 25


def print_table(columns: list[Phase]) -> None:
    width = max(len(name) for name, _, _ in ATTEMPTS)
    print("\n\nWhat a guest tries, and whether it arrives")
    for number, (done, _, _) in enumerate(columns):
        print(f"  ({number}) {done}")
    print(f"{'':{width}}  expected  {'  '.join(f'({number})   ' for number in range(len(columns)))}")
    for name, _, _ in ATTEMPTS:
        wanted = "open" if expected("hub_only")[name] else "closed"
        seen = "  ".join(f"{'open' if column[name] else 'closed':6}" for _, _, column in columns)
        print(f"{name:{width}}  {wanted:8}  {seen}")


def wait_for(h: Host, condition: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while h.run(condition, check=False).returncode != 0:
        assert time.monotonic() < end, f"{condition}: {h.run('journalctl -n 30 --no-pager').stdout}"
        time.sleep(0.1)


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
        with suppress(psutil.NoSuchProcess):  # Ansible's workers come and go
            victim.kill()
    process.wait()
    process.stdout.close()
