"""Role machine_network on a live host: what it changes, what it says it would, and what a broken run leaves."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hosts import Host
from network_hosts import kill_at, network_host, play, wait_for

FILE = "/etc/network/interfaces.d/autovibe-vmbr1"
OTHERS = "table inet others { chain input { type filter hook input priority 0; ip saddr 198.51.100.7 drop; }; }"


@pytest.fixture(scope="module")
def h() -> Iterator[Host]:
    """A host whose life the first tests tell, in their order: each goes on where the one before has ended."""
    with network_host() as made:
        made.write("/etc/others.nft", OTHERS)
        made.run("nft -f /etc/others.nft")
        yield made


@pytest.fixture(scope="module")
def plain() -> Iterator[Host]:
    with network_host() as made:
        yield made


def outside(h: Host) -> str:
    """What is not the role's, and where it would leave something."""
    return h.run(
        "nft list ruleset; cat /etc/network/interfaces; ip -brief -4 address show vmbr0;"
        " ls /etc/systemd/system /etc/systemd/system/*.wants /usr/local/sbin /etc/network/interfaces.d"
    ).stdout


@pytest.fixture(scope="module")
def before(h: Host) -> str:
    return outside(h)


def test_a_new_host_gets_what_check_mode_said_and_nothing_twice(h: Host, before: str) -> None:
    predicted = play(h, "--check", "--diff")
    assert "+iface vmbr1 inet static" in predicted.output
    assert '+\t\tcounter drop comment "guest to guest"' in predicted.output
    assert outside(h) == before, "check mode changes nothing"
    assert play(h).changed_tasks == predicted.changed_tasks != []
    assert play(h).changed == 0
    assert play(h, "--check").changed == 0


def test_a_change_that_was_killed_half_way_is_finished_by_the_next_run(h: Host) -> None:
    predicted = play(h, "--check", "--diff", machine_network_profile="open")
    assert len(re.findall(r"^[+-]\t", predicted.output, re.MULTILINE)) < 60, "the diff is what changes"
    kill_at(h, "Write what fills the rules' sets", machine_network_profile="open")
    finished = play(h, machine_network_profile="open")
    assert {"Load the rules"} <= {name.split(" : ")[-1] for name in finished.changed_tasks}
    assert set(finished.changed_tasks) < set(predicted.changed_tasks)
    assert "masquerade" in h.run("nft list table inet autovibe").stdout
    assert h.run("ls /run/autovibe/network/loaded.*").stdout.count("\n") == 1


def test_an_unconfirmed_change_is_rolled_back_by_the_timer_and_by_a_boot(h: Host) -> None:
    good = h.read(FILE)
    for number, seconds in ((7, 4), (8, 600)):
        gateway = f"192.168.100.{number}"
        confirm = "Reach the host anew"
        kill_at(h, confirm, machine_network_gateway=gateway, machine_network_confirm_seconds=seconds)
        if seconds == 600:
            assert f"{gateway}/24" in h.run("ip -br address show vmbr1").stdout
            h.reboot()
            h.run("nft -f /etc/others.nft")
        wait_for(h, "! test -e /var/lib/autovibe/network/pending")
        assert h.read(FILE) == good
        wait_for(h, "ip -br address show vmbr1 | grep -q 192.168.100.1/24")
    assert h.run("nft list table bridge autovibe | grep -c counter").stdout != "0\n"
    assert h.run("systemctl list-timers --all --no-legend 'autovibe-network-rollback*'").stdout == ""


def test_a_removal_spares_running_guests_and_leaves_nothing(h: Host, before: str) -> None:
    h.run("ip link add tap110i0 type veth peer name g1; ip link set tap110i0 master vmbr1 up")
    refused = play(h, check=False, machine_network_state="absent")
    assert refused.returncode != 0
    assert "stop these guests" in refused.output
    h.run("ip link delete tap110i0")

    predicted = play(h, "--check", machine_network_state="absent")
    assert play(h, machine_network_state="absent").changed_tasks == predicted.changed_tasks != []
    assert play(h, machine_network_state="absent").changed == 0
    assert outside(h) == before
    assert h.run("ip link show vmbr1", check=False).returncode != 0


def test_rules_that_cannot_be_loaded_leave_the_bridge_closed(plain: Host) -> None:
    play(plain)
    plain.run("echo nonsense >>/etc/autovibe/network.nft")
    plain.reboot()
    assert "failed" in plain.run("systemctl is-active autovibe-network.service", check=False).stdout
    plain.run("ip link add tap110i0 type veth peer name g1; ip link set tap110i0 master vmbr1 up")
    wait_for(plain, "bridge -details link show dev tap110i0 | grep -q 'isolated on'")
    plain.run("ip link delete tap110i0")
    chains = plain.run("nft list table inet autovibe").stdout
    assert 'iifname "vmbr1" counter' in chains
    assert "drop" in chains
    # The next play, and the watch that has never given up, set it right.
    play(plain)
    wait_for(plain, "systemctl is-active autovibe-network-watch && nft list set bridge autovibe ports")
    play(plain, machine_network_state="absent")


@pytest.mark.soak
def test_a_bad_option_of_the_management_bridge_is_taken_back(plain: Host) -> None:
    play(plain, machine_network_management_options={"bridge-ageing": "200"})
    good = plain.read("/etc/network/interfaces")
    assert "bridge-ageing 200" in good
    options = {"bridge-ageing": "300", "address": "10.9.0.400/24"}
    refused = play(plain, check=False, machine_network_management_options=options)
    assert refused.returncode != 0
    assert "The old ones are back" in refused.output
    assert plain.read("/etc/network/interfaces") == good
    assert "10.9.0.1/24" in plain.run("ip -br address show vmbr0").stdout


@pytest.mark.soak
def test_a_bridge_of_the_site_is_not_taken_over(plain: Host) -> None:
    play(plain, machine_network_state="absent")
    site = "auto vmbr1\\niface vmbr1 inet manual\\n    bridge-ports none\\n"
    plain.run(f"printf '{site}' >>/etc/network/interfaces; ifup vmbr1")
    refused = play(plain, check=False)
    assert refused.returncode != 0
    assert "machine_network_manage_bridge" in refused.output
    play(plain, machine_network_manage_bridge=False)
    assert not plain.run(f"ls {FILE}", check=False).stdout
    play(plain, machine_network_manage_bridge=False, machine_network_state="absent")
    assert plain.run("ip link show vmbr1").stdout


STRANGERS = """
    ip link add vmbr1 type bridge; ip link set vmbr1 up
    ip link add tap500i0 type veth; ip link set tap500i0 master vmbr1
    ip link add eno2 type veth; ip link set eno2 master vmbr1
"""


@pytest.mark.parametrize(
    ("there", "variables", "says"),
    [
        (STRANGERS, {}, "cut them off: eno2 (not in machine_network_bridge_ports), "
                        "guest 501's net1 (bc:24:11:00:00:02), tap500i0 (bc:24:11:00:00:01). Move"),
        ("ip addr add 192.168.100.7/26 dev vmbr0", {}, "This host reaches 192.168.100.0/26 by vmbr0"),
        ("ip addr add 192.168.7.7/16 dev vmbr0", {}, "This host reaches 192.168.0.0/16 by vmbr0"),
        ("ip route add 192.168.100.64/26 via 10.9.0.2", {}, "This host reaches 192.168.100.64/26 by vmbr0"),
        ("echo 'iface vmbr1 inet manual' >/etc/network/interfaces.d/own", {}, "vmbr1 is defined in /etc/network/inter"),
        ("", {"machine_network_gateway": "10.0.0.1"}, "(10.0.0.1) is no host's address in machine_network_network"),
        ("", {"machine_network_hubs": [{"address": "192.168.100.30"}]}, "would be a machine's, too"),
        ("", {"machine_network_gateway": "192.168.100.2"}, "must all differ"),
    ],
)  # fmt: skip
def test_nothing_is_cut_off_that_is_not_ours(plain: Host, there: str, variables: dict[str, object], says: str) -> None:
    plain.write("/etc/pve/qemu-server/500.conf", "net0: virtio=BC:24:11:00:00:01,bridge=vmbr1\n")
    plain.write("/etc/pve/qemu-server/501.conf", "net1: virtio=BC:24:11:00:00:02,bridge=vmbr1\n")
    plain.write("/etc/pve/qemu-server/502.conf", "template: 1\nnet0: virtio=BC:24:11:00:00:03,bridge=vmbr1\n")
    plain.run(there)
    if not there:
        plain.run("rm -r /etc/pve")
    before = outside(plain)
    refused = play(plain, check=False, **variables)
    told = play(plain, "--check", check=False, **variables) if there == STRANGERS else refused
    after = outside(plain)
    plain.run("""
        for link in tap500i0 eno2 vmbr1; do ip link delete $link; done 2>/dev/null
        rm -rf /etc/pve /etc/network/interfaces.d/own; ip route del 192.168.100.64/26 2>/dev/null
        ip addr del 192.168.100.7/26 dev vmbr0 2>/dev/null; ip addr del 192.168.7.7/16 dev vmbr0 2>/dev/null; true
    """)
    for run in (told, refused):
        assert run.returncode != 0
        assert says in " ".join(run.output.split())
    assert after == before


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"machine_network_network": "192.168.0.0/16"}, "must be an IPv4 network of /20 to /30"),
        ({"machine_network_profile": "everything"}, "value of machine_network_profile must be one of"),
        ({"machine_network_match": "bridge"}, "set machine_network_match to ports"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(plain: Host, variables: dict[str, str], says: str) -> None:
    refused = play(plain, check=False, **variables)
    assert refused.returncode != 0
    assert says in " ".join(refused.output.split())
