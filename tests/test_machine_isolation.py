"""Role machine_network against guests: what a machine can reach, tried with real packets."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator

import pytest
from guest_attempts import ATTEMPTS, expected
from hosts import Host
from network_hosts import HERE, add_guests, attempts, network_host, play, world

#: What passes does so at once; what has not passed by then was dropped.
WAIT = 0.1
UNLOAD = """
    systemctl stop autovibe-network-watch; autovibe-netrules unload
    sysctl -qw net.ipv6.conf.vmbr1.disable_ipv6=0 net.ipv4.conf.vmbr1.forwarding=1 net.ipv4.conf.vmbr0.forwarding=1
"""


@pytest.fixture(scope="module")
def h() -> Iterator[Host]:
    with network_host() as made:
        play(made)
        add_guests(made)
        yield made


def settle(h: Host) -> None:
    """Wait until the ports are known: the hub's and the guests' whose VMs Proxmox VE knows."""
    end = time.monotonic() + 20
    while True:
        bound = h.run("nft list set bridge autovibe port_macs", check=False).stdout.count("02:af:")
        isolated = h.run("bridge -details link | grep -c 'isolated on'", check=False).stdout.strip()
        if (bound, isolated) == (3, "3"):
            return
        assert time.monotonic() < end, f"{bound} ports bound, {isolated} isolated: {h.run('bridge -d link').stdout}"
        time.sleep(0.05)


def phases(h: Host) -> Iterator[tuple[str, str, dict[str, bool]]]:
    """(what was done, profile in force, what arrives)"""
    h.run(UNLOAD)
    yield "without rules", "none", attempts(h, 3)
    h.run("systemctl start autovibe-network-watch")
    settle(h)
    yield "hub_only", "hub_only", attempts(h, WAIT)
    h.run("systemctl reload autovibe-network; sysctl -qw net.bridge.bridge-nf-call-iptables=0")
    yield "rules reloaded, br_netfilter off", "hub_only", attempts(h, WAIT)
    # As a restart of nftables.service does, which is not ours
    h.run("sysctl -qw net.bridge.bridge-nf-call-iptables=1; nft flush ruleset")
    world(h, 'unplug("g1")')
    world(h, 'plug("g1")')
    settle(h)
    yield "ruleset flushed by others, tap made anew", "hub_only", attempts(h, WAIT)
    h.run("ifdown vmbr1; ifup vmbr1")
    world(h, "replug()")
    settle(h)
    yield "bridge restarted", "hub_only", attempts(h, WAIT)
    h.reboot()
    world(h, "set_up()")
    settle(h)
    yield "host rebooted", "hub_only", attempts(h, WAIT)


def test_a_machine_reaches_its_hub_and_nothing_else(h: Host, capsys: pytest.CaptureFixture[str]) -> None:
    columns = list(phases(h))
    with capsys.disabled():
        print_table(columns)
    for done, profile, seen in columns:
        wrong = {name: arrives for name, arrives in seen.items() if arrives != expected(profile)[name]}
        assert not wrong, done
    assert len(ATTEMPTS) >= 25


def print_table(columns: list[tuple[str, str, dict[str, bool]]]) -> None:
    width = max(len(name) for name, _, _ in ATTEMPTS)
    print("\n\nWhat a guest tries, and whether it arrives")
    for number, (done, _, _) in enumerate(columns):
        print(f"  ({number}) {done}")
    print(f"{'':{width}}  expected  {'  '.join(f'({number})   ' for number in range(len(columns)))}")
    for name, _, _ in ATTEMPTS:
        wanted = "open" if expected("hub_only")[name] else "closed"
        seen = "  ".join(f"{'open' if column[name] else 'closed':6}" for _, _, column in columns)
        print(f"{name:{width}}  {wanted:8}  {seen}")


def test_netcheck_tells_what_a_machine_reaches(h: Host) -> None:
    with h.popen(
        f"cd {HERE} && python3 -c 'import guest_world as w, socket, sys\nwith w.inside(\"hub\"): "
        's = socket.create_server(("", 8000))\nprint("ready", flush=True); sys.stdin.read()\'',
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as hub:  # fmt: skip
        assert hub.stdout
        assert hub.stdout.readline() == "ready\n"
        good = h.run("autovibe-netcheck", check=False)
        assert good.returncode == 0, good.stdout + good.stderr
        h.run(UNLOAD)
        bad = h.run("autovibe-netcheck --json", check=False)
        h.run("systemctl start autovibe-network-watch")
    assert bad.returncode == 1, bad.stdout + bad.stderr
    rows = {row["what"]: row for row in json.loads(bad.stdout)}
    for what in ("another guest, bare frame", "this host 10.9.0.1, TCP 22", "hub 192.168.100.2, ping"):
        assert (rows[what]["expected"], rows[what]["seen"]) == ("closed", "open")
    settle(h)
    left = h.run("ip netns; ip -br link").stdout
    assert "autovibe-check" not in left
    assert "tap99999999" not in left


def test_a_second_run_drops_no_connection(h: Host) -> None:
    busy = h.popen(f"python3 {HERE}/guest_connections.py", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert busy.stdin
    assert busy.stdout
    assert busy.stdout.readline() == "ready\n"
    # Once with nothing to do, once with other rules and another interface file, which is applied to the bridge.
    assert play(h).changed == 0
    hubs = [{"address": "192.168.100.2", "port": 8000}, {"address": "192.168.100.3", "port": 8000}]
    changed = play(h, machine_network_hubs=hubs, machine_network_gateway="192.168.100.4")
    assert {"Write the rules", "Load the rules", "Write the bridge's file"} <= {
        name.removeprefix("machine_network : ") for name in changed.changed_tasks
    }
    out, _ = busy.communicate("end\n", timeout=30)
    result = json.loads(out)
    print(result)
    assert result["good"] == 200
    assert result["rounds"] > 20


@pytest.mark.parametrize("profile", ["api_direct", pytest.param("open", marks=pytest.mark.soak)])
def test_a_profile_opens_what_it_says(h: Host, profile: str) -> None:
    h.run("echo 160.79.104.10 api.anthropic.com >>/etc/hosts")
    play(h, machine_network_profile=profile)
    settle(h)
    if profile == "api_direct":
        assert h.run("systemctl is-active autovibe-network-api.timer").stdout == "active\n"
        check_names(h)
    assert attempts(h, WAIT) == expected(profile)


def check_names(h: Host) -> None:
    """The set has a name's public addresses, keeps them while a name server is away, and after a reload."""
    refresh = "systemctl start autovibe-network-api.service && nft list set inet autovibe api"
    assert "160.79.104.10 . 443" in h.run(refresh).stdout
    h.run("sed -i /anthropic/d /etc/hosts")
    assert "160.79.104.10 . 443" in h.run(refresh).stdout
    h.run("echo 10.9.0.254 api.anthropic.com >>/etc/hosts")
    assert "10.9.0.254" not in h.run(refresh).stdout, "a name is no way into the site"
    h.run("systemctl reload autovibe-network")
    assert "160.79.104.10 . 443" in h.run("nft list set inet autovibe api").stdout
