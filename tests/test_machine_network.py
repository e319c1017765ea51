"""Role machine_network on a live host: what it changes, what it says it would, and what a broken run leaves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from hosts import REPOSITORY, Host
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
    wanted = {"machine_network_profile": "open", "machine_network_closed": []}
    predicted = play(h, "--check", "--diff", **wanted)
    assert len(re.findall(r"^[+-]\t", predicted.output, re.MULTILINE)) < 60, "the diff is what changes"
    kill_at(h, "Write what fills the rules' sets", **wanted)
    finished = play(h, **wanted)
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
    # The rules are of one bridge: the guests here would be left without.
    for state in ("present", "absent"):
        renamed = play(h, check=False, machine_network_bridge="vmbr2", machine_network_state=state)
        assert "bridge of" in renamed.output
        assert "is vmbr1" in renamed.output
    assert h.run("nft list table bridge autovibe").stdout
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


BONDS = """
auto bond0
iface bond0 inet manual
    bond-slaves eno1 eno2
    bond-miimon 100
    bond-mode 802.3ad

auto vmbr0.20
iface vmbr0.20 inet static
    address 10.9.20.1
    netmask 255.255.255.0
    vlan-raw-device vmbr0
    dns-nameservers 10.9.20.53

allow-ovs vmbr7
iface vmbr7 inet manual
    ovs_type OVSBridge
"""


def test_the_rest_of_the_hosts_own_file_is_not_judged(plain: Host) -> None:
    """Bonds, VLANs, Open vSwitch: what is there works. What is new in the management bridge's lines is checked."""
    before = plain.read("/etc/network/interfaces")
    plain.write("/etc/network/interfaces", before + BONDS)
    # As YAML reads `off`
    play(plain, machine_network_management_options={"bridge-ageing": 200, "bridge-stp": False})
    good = plain.read("/etc/network/interfaces")
    assert "bridge-ageing 200" in good
    assert "bridge-stp no" in good
    assert play(plain, machine_network_management_options={"bridge-ageing": 200, "bridge-stp": False}).changed == 0
    for wrong in ({"bridge-agein": 300}, {"bridge-stp": "maybe"}):
        refused = play(plain, check=False, machine_network_management_options=wrong)
        assert next(iter(wrong)) in refused.output
        assert "The old ones are back" in refused.output
        assert plain.read("/etc/network/interfaces") == good
    plain.write("/etc/network/interfaces", before)
    play(plain, machine_network_state="absent")


def test_a_rollback_puts_network_cards_back(plain: Host) -> None:
    """One that the management bridge had, and one that was free, in a bridge that was new."""
    plain.run("for card in eno3 eno4; do ip link add $card type veth peer name $card-peer; ip link set $card up; done")
    kill_at(plain, "Reach the host anew", machine_network_bridge_ports=["eno4"], machine_network_confirm_seconds=600)
    plain.run("autovibe-netapply rollback")
    assert plain.run("ip -brief link show vmbr1", check=False).returncode != 0
    assert "master" not in plain.run("ip link show eno4").stdout
    play(plain, machine_network_bridge_ports=["eno4"])
    plain.run("ip link set eno3 master vmbr0; autovibe-netapply begin 600")
    plain.run("ip link set eno3 master vmbr1; ip link set eno4 nomaster; autovibe-netapply rollback")
    assert "master vmbr0" in plain.run("ip link show eno3").stdout
    assert "master vmbr1" in plain.run("ip link show eno4").stdout
    plain.run("ip link delete eno3; ip link delete eno4")
    play(plain, machine_network_state="absent")


def test_who_runs_it_on_the_host_itself_cannot_change_the_management_bridge(plain: Host) -> None:
    """Nothing would show that the host can still be reached."""
    inside = {"ansible_connection": "community.docker.nsenter", "ansible_nsenter_pid": plain.pid}
    options = {"machine_network_management_options": {"bridge-ageing": 300}}
    refused = play(plain, "--check", check=False, **inside, **options)
    assert "run this from another computer" in " ".join(refused.output.split())


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
    # The bridge would stay, and its guests without rules.
    plain.run("ip link add tap110i0 type veth; ip link set tap110i0 master vmbr1")
    gone = {"machine_network_manage_bridge": False, "machine_network_state": "absent"}
    assert "stop these guests" in play(plain, check=False, **gone).output
    assert plain.run("nft list table bridge autovibe").stdout
    plain.run("ip link delete tap110i0")
    # By its tag alone, too
    assert play(plain, "--tags", "machine_network_run", **gone).changed > 0
    assert play(plain, **gone).changed == 0
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
        ("ip link add vmbr1 type bridge; ip addr add 10.3.0.1/24 dev vmbr1", {"machine_network_manage_bridge": False},
         "This host has the address 10.3.0.1 on vmbr1, and the rules would let nobody reach it there"),
        ("ip link add eno3 type veth; ip link set eno3 master vmbr0", {"machine_network_bridge_ports": ["eno3"]},
         "eno3 of machine_network_bridge_ports is in use: it is in vmbr0"),
        ("ip link add eno3 type veth; ip addr add 10.4.0.1/24 dev eno3", {"machine_network_bridge_ports": ["eno3"]},
         "is in use: it has 10.4.0.1"),
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
        for link in tap500i0 eno2 eno3 vmbr1; do ip link delete $link; done 2>/dev/null
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


def test_netcheck_takes_no_address_that_a_guest_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netcheck = ModuleType("netcheck")
    exec((REPOSITORY / "roles/machine_network/files/autovibe-netcheck").read_text(), netcheck.__dict__)  # noqa: S102
    monkeypatch.setattr(netcheck, "PVE", tmp_path)
    settings = {"network": "192.168.100.0/28", "first_slot": 10, "mac_prefix": "02:af"}
    assert netcheck.free_addresses(settings, 2) == [IPv4Address("192.168.100.14"), IPv4Address("192.168.100.13")]
    for folder, mac in (("qemu-server", "02:AF:C0:A8:64:0E"), ("nodes/pve2/qemu-server", "02:AF:C0:A8:64:0C")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "100.conf").write_text(f"net0: virtio={mac},bridge=vmbr1\n")
    (tmp_path / "qemu-server/104.conf").symlink_to("is-gone.conf")
    assert netcheck.free_addresses(settings, 2) == [IPv4Address("192.168.100.13"), IPv4Address("192.168.100.11")]
    with pytest.raises(netcheck.Problem, match="that no guest has"):
        netcheck.free_addresses(settings, 4)


@pytest.mark.parametrize("playbook", ["host", "network"])
def test_a_cluster_does_not_lose_all_its_nodes_at_once(playbook: str) -> None:
    first = yaml.safe_load((REPOSITORY / f"playbooks/{playbook}.yml").read_text())[0]
    assert first["serial"] == 1
