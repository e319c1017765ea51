"""What the firewall does to packets: the function, the aid that asks it, the gate before a real guest's relay."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
from pathlib import Path

import pytest
from autovibe_lab.firewall import enforce
from autovibe_lab.firewall.files import Firewall
from autovibe_lab.firewall.verdict import Packet, verdict
from autovibe_lab.guest import NullGuest
from autovibe_lab.paths import LabPaths, Network
from autovibe_lab.qemu_command import command
from autovibe_lab.tests.testing import Client, LabInThread

CONFIG = {"net0": "virtio=BC:24:11:00:00:17,bridge=vmbr1,firewall=1", "ipconfig0": "ip=192.168.100.17/24"}
ON = "[OPTIONS]\n\nenable: 1\n\n"
HUB = Packet(dest="192.168.100.2", dport=8000, source="192.168.100.17", mac="bc:24:11:00:00:17")


def decide(rules: str, packet: Packet = HUB, options: str = "policy_out: DROP\n", cluster: str = "") -> str:
    own = Firewall.parse(f"[OPTIONS]\n\nenable: 1\n{options}\n{rules}")
    return verdict(CONFIG, own, Firewall.parse(ON + cluster), packet).action


@pytest.mark.parametrize(
    ("rules", "action"),
    [
        ("", "DROP"),
        ("[RULES]\nOUT ACCEPT -dest 192.168.100.2 -p tcp -dport 8000", "ACCEPT"),
        ("[RULES]\n|OUT ACCEPT -dest 192.168.100.2 -p tcp -dport 8000", "DROP"),
        ("[RULES]\nOUT ACCEPT -dest 192.168.100.2 -p tcp -dport 22,7000:9000", "ACCEPT"),
        ("[RULES]\nOUT ACCEPT -dest 192.168.100.2 -p udp -dport 8000", "DROP"),
        ("[RULES]\nOUT REJECT -p tcp\nOUT ACCEPT", "REJECT"),
        ("[RULES]\nOUT ACCEPT\nOUT REJECT -p tcp", "ACCEPT"),
        ("[RULES]\nIN ACCEPT", "DROP"),
        ("[RULES]\nOUT ACCEPT -i net1", "DROP"),
        ("[RULES]\nOUT ACCEPT -source 192.168.100.10-192.168.100.20", "ACCEPT"),
        ("[ALIASES]\nHub 192.168.100.2\n[RULES]\nOUT ACCEPT -dest hub", "ACCEPT"),
        ("[IPSET to]\n192.168.0.0/16\n!192.168.100.2\n[RULES]\nOUT ACCEPT -dest +to", "DROP"),
        ("[IPSET to]\n192.168.0.0/16\n[RULES]\nOUT ACCEPT -dest +to", "ACCEPT"),
        ("[RULES]\nOUT SSH(ACCEPT)", "DROP"),
        ("[RULES]\nGROUP hub -i net0", "ACCEPT"),
        ("[RULES]\nGROUP hub -i net1", "DROP"),
        ("[RULES]\nGROUP none\nOUT ACCEPT -dest nobody", "DROP"),
    ],
)
def test_rules_are_taken_in_order(rules: str, action: str) -> None:
    assert decide(rules, cluster="[group hub]\nOUT ACCEPT -dest 192.168.100.2 -p tcp -dport 8000\n") == action


def test_what_has_to_be_on_and_what_filters_first() -> None:
    own, on, off = Firewall.parse(f"{ON}policy_out: DROP\n"), Firewall.parse(ON), Firewall()
    assert verdict(CONFIG, own, off, HUB).reason == "the cluster's firewall is off"
    assert verdict({"net0": "virtio=BC:24:11:00:00:17,bridge=vmbr1"}, own, on, HUB).reason == "net0 has no firewall=1"
    assert verdict(CONFIG, off, on, HUB).reason == "the guest's firewall is off"
    assert decide("", Packet("in", dport=22)) == "DROP"
    assert decide("[RULES]\nIN SSH(ACCEPT)", Packet("in", dport=22)) == "ACCEPT"
    dhcp = Packet(proto="udp", sport=68, dport=67)
    assert (decide("", dhcp), decide("", dhcp, "dhcp: 1\npolicy_out: DROP\n")) == ("DROP", "ACCEPT")
    forged = Packet(dest="192.168.100.2", dport=8000, mac="00:00:00:00:00:01")
    assert (decide("", forged, ""), decide("", forged, "macfilter: 0\n")) == ("DROP", "ACCEPT")
    allowed = "[IPSET ipfilter-net0]\n192.168.100.17\n"
    other = Packet(source="192.168.100.18", dest="192.168.100.2", dport=8000)
    assert (decide(allowed, options=""), decide(allowed, other, "")) == ("ACCEPT", "DROP")


def test_tests_can_ask(client: Client, lab: LabInThread) -> None:
    machine = client.create(100, net0="virtio,bridge=vmbr1,firewall=1")
    ask = {"vmid": 100, "packet": {"dest": "192.168.100.2", "dport": 8000}}
    assert lab.aid("POST", "firewall/verdict", ask)["action"] == "ACCEPT"
    lab.node.firewall.write("cluster", ON)
    machine.firewall.options.put(enable=1, policy_out="REJECT")
    assert lab.aid("POST", "firewall/verdict", ask) == {"action": "REJECT", "reason": "policy_out"}


def test_the_gate_keeps_a_relay_from_starting(tmp_path: Path) -> None:
    """The very command that QEMU runs for a guest's connection, without QEMU."""
    lab = LabPaths(tmp_path / "it's a lab")
    lab.make()
    for kind in ("vmlinux", "initrd"):
        (lab.imports / f"autovibe-guest.{kind}").touch()
    with socket.create_server(("127.0.0.1", 0)) as hub:
        argv = command(17, CONFIG, lab, Network(hub.getsockname()[1]), accel="tcg")
        forward = re.search(r"-cmd:(.*)", argv[argv.index("-netdev") + 1])[1].replace(",,", ",")

        def relay() -> tuple[socket.socket, subprocess.Popen]:
            ours, theirs = socket.socketpair()
            with theirs:
                return ours, subprocess.Popen(shlex.split(forward), stdin=theirs, stdout=theirs)

        def connects() -> bool:
            ours, process = relay()
            with ours:
                ours.sendall(b"hello")
                with hub.accept()[0] as peer:
                    heard = peer.recv(5)
                    ours.shutdown(socket.SHUT_WR)
            process.wait(60)
            return heard == b"hello"

        assert connects()
        lab.closed(17, "net0").touch()
        ours, process = relay()
        with ours:
            assert process.wait(60) == 0
            assert ours.recv(1) == b""
        lab.closed(17, "net0").unlink()
        assert connects()


def test_changes_decide_again(client: Client, lab: LabInThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """A running guest that is not a null guest gets its gate from every change of what rules it."""
    machine = client.create(100, net0="virtio=BC:24:11:00:00:17,bridge=vmbr1,firewall=1")
    client.ok(machine.status.start.post())
    assert isinstance(lab.node.machines[100].guest, NullGuest)
    monkeypatch.setattr(type(lab.node.machines[100]), "is_null", False)
    gate = lab.node.paths.closed(100, "net0")
    client.lab.run(_refresh(lab))
    assert not gate.exists()
    lab.node.firewall.write("cluster", ON)
    machine.firewall.options.put(enable=1, policy_out="DROP")
    assert gate.exists()
    machine.firewall.rules.post(type="out", action="ACCEPT", dest="192.168.100.2", proto="tcp", dport="8000", enable=1)
    assert not gate.exists()
    machine.firewall.rules(0).delete()
    assert gate.exists()
    machine.config.put(net0="virtio=BC:24:11:00:00:17,bridge=vmbr1")
    assert not gate.exists()


async def _refresh(lab: LabInThread) -> None:
    enforce.refresh(lab.node)
