"""Role machine_network by its defaults, on a host with Debian's own kernel: rules that know the bridge by its name."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest
from guest_world import GATEWAY_MAC
from hosts import Host
from kernel_hosts import NETWORK, kernel_host
from network_hosts import INTERFACES, PACKAGES, add_guests, attempts, check_phases, phases, play, settle, world

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3000)]
#: Without KVM all takes longer.
WAIT = 0.5


@pytest.fixture(scope="module")
def h() -> Iterator[Host]:
    with kernel_host(PACKAGES) as made:
        made.write("/etc/network/interfaces", INTERFACES + NETWORK)
        # As pve-firewall has it
        made.write("/etc/modules-load.d/br_netfilter.conf", "br_netfilter\n")
        made.run("modprobe br_netfilter; ifup vmbr0")
        yield made


def test_a_machine_reaches_its_hub_and_nothing_else(h: Host, capsys: pytest.CaptureFixture[str]) -> None:
    play(h, timeout=1800)
    assert h.read("/sys/class/net/vmbr1/address").strip() == GATEWAY_MAC
    assert 'meta ibrname "vmbr1"' in h.run("nft list chain bridge autovibe prerouting").stdout
    add_guests(h)
    # What comes after a reload, a restart and a reboot does not depend on the kernel: see test_machine_isolation.
    check_phases(list(islice(phases(h, WAIT), 2)), capsys)


def test_a_tap_made_anew_is_held_before_anybody_has_seen_it(h: Host) -> None:
    h.run("systemctl stop autovibe-network-watch")
    world(h, 'unplug("g1")')
    world(h, 'plug("g1")')
    others = ("the hub:", "the world:", "a guest that", "another guest:")
    arrived = {
        name for name, arrives in attempts(h, WAIT, "hub_only").items() if arrives and not name.startswith(others)
    }
    assert arrived == {"TCP to the hub's port 8000"}
    h.run("systemctl start autovibe-network-watch")
    settle(h)
