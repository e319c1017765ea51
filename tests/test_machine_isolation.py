"""Role machine_network against guests: what a machine can reach, tried with real packets."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest
from guest_attempts import expected
from guest_world import API
from hosts import Host
from network_hosts import (
    HERE,
    UNLOAD,
    WAIT,
    add_guests,
    attempts,
    check_phases,
    network_host,
    phases,
    play,
    settle,
    wait_for,
    world,
)


@pytest.fixture(scope="module")
def h() -> Iterator[Host]:
    with network_host() as made:
        play(made)
        add_guests(made)
        yield made


def test_a_machine_reaches_its_hub_and_nothing_else(h: Host, capsys: pytest.CaptureFixture[str]) -> None:
    check_phases(list(phases(h, WAIT)), capsys)


def test_netcheck_tells_what_a_machine_reaches(h: Host) -> None:
    with h.popen(
        f"cd {HERE} && python3 -c 'import guest_world as w, socket, sys\nwith w.inside(\"hub\"): "
        's = socket.create_server(("", 8000))\nprint("ready", flush=True); sys.stdin.read()\'',
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as hub:  # fmt: skip
        assert hub.stdout
        assert hub.stdout.readline() == "ready\n"
        # What one leaves that was killed
        h.run("ip netns add autovibe-check0; ip link add tap999999990i0 type veth")
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


def test_nobody_is_cut_off_while_proxmox_restarts_or_migrates(h: Host) -> None:
    bound = h.run("nft list set bridge autovibe port_macs").stdout
    # pmxcfs is gone, and everything that reads /etc/pve does so
    h.run("mv /etc/pve /etc/pve.away; systemctl restart autovibe-network-watch; systemctl reload autovibe-network")
    assert h.run("nft list set bridge autovibe port_macs").stdout == bound
    # but a port that is made meanwhile is nobody's
    world(h, 'unplug("g2")')
    world(h, 'plug("g2")')
    wait_for(h, "ip link show tap111i0 | grep -q vmbr1; ! nft list set bridge autovibe port_macs | grep -q tap111i0")
    # While a guest comes from another node, its configuration is still that node's.
    h.run("mv /etc/pve.away /etc/pve; mkdir -p /etc/pve/nodes/pve2/qemu-server")
    h.run("mv /etc/pve/qemu-server/111.conf /etc/pve/nodes/pve2/qemu-server; ip link set vmbr0 alias event")
    settle(h)
    h.run("mv /etc/pve/nodes/pve2/qemu-server/111.conf /etc/pve/qemu-server")


def test_a_second_run_drops_no_connection(h: Host) -> None:
    busy = connections(h)
    # Once with nothing to do, once with other rules and another interface file, which is applied to the bridge.
    assert play(h).changed == 0
    hubs = [{"address": "192.168.100.2", "port": 8000}, {"address": "192.168.100.3", "port": 8000}]
    changed = play(h, machine_network_hubs=hubs, machine_network_gateway="192.168.100.4")
    assert {"Write the rules", "Load the rules", "Write the bridge's file"} <= {
        name.removeprefix("machine_network : ") for name in changed.changed_tasks
    }
    assert end(busy)["rounds"] > 20


def connections(h: Host, *target: str) -> subprocess.Popen[str]:
    """200 of them, kept busy until the end."""
    script = f"python3 {HERE}/guest_connections.py {' '.join(target)}"
    busy = h.popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert busy.stdout
    assert busy.stdout.readline() == "ready\n"
    return busy


def end(busy: subprocess.Popen[str]) -> dict[str, float]:
    out, _ = busy.communicate("end\n", timeout=120)
    result = json.loads(out)
    print(result)
    assert result["good"] == 200
    return result


@pytest.mark.parametrize("profile", ["api_direct", pytest.param("open", marks=pytest.mark.soak)])
def test_a_profile_opens_what_it_says(h: Host, profile: str) -> None:
    h.run("echo 160.79.104.10 api.anthropic.com >>/etc/hosts")
    play(h, machine_network_profile=profile)
    settle(h)
    if profile == "api_direct":
        assert h.run("systemctl is-active autovibe-network-api.timer").stdout == "active\n"
        busy = connections(h, "world", API, "443")
        check_names(h)
        end(busy)
    assert attempts(h, WAIT, profile) == expected(profile)


def check_names(h: Host) -> None:
    """The set has a name's public addresses, keeps them while a name server is away and over a reload."""
    refresh = "systemctl start autovibe-network-api.service && nft list set inet autovibe api"
    assert "160.79.104.10 . 443" in h.run(refresh).stdout
    h.run("sed -i /anthropic/d /etc/hosts")
    assert "160.79.104.10 . 443" in h.run(refresh).stdout
    h.run("echo 10.9.0.254 api.anthropic.com >>/etc/hosts")
    assert "10.9.0.254" not in h.run(refresh).stdout, "a name is no way into the site"
    h.run("systemctl reload autovibe-network")
    assert "160.79.104.10 . 443" in h.run("nft list set inet autovibe api").stdout
