"""The firewall's objects: stored in Proxmox's own form, refused in its words."""

from __future__ import annotations

import pytest
from autovibe_lab.firewall.files import Firewall
from autovibe_lab.tests.testing import Client

TEXT = """\
[OPTIONS]

enable: 1
policy_in: DROP

[ALIASES]

Hub 192.168.100.2 # the hub

[IPSET allow] # some

10.1.0.0/16 # net
!10.1.2.3

[RULES]

|GROUP web -i net0
IN SSH(ACCEPT)
OUT ACCEPT -dest Hub -p tcp -dport 8000 -log info # to the hub

[group web] # a group

IN ACCEPT -source 10.0.0.0/24 -p tcp -dport 443

"""


def test_a_file_is_written_as_it_was_read() -> None:
    firewall = Firewall.parse(TEXT)
    assert Firewall.parse(firewall.text()) == firewall
    assert firewall.options == {"enable": 1, "policy_in": "DROP"}
    assert firewall.aliases["hub"] == {"name": "Hub", "cidr": "192.168.100.2", "ipversion": 4, "comment": "the hub"}
    assert firewall.ipsets["allow"] == [{"cidr": "10.1.0.0/16", "comment": "net"}, {"cidr": "10.1.2.3", "nomatch": 1}]
    assert [rule["type"] for rule in firewall.rules] == ["group", "in", "out"]
    assert firewall.groups["web"][0]["ipversion"] == 4


@pytest.fixture
def firewall(client: Client) -> object:
    return client.create(100).firewall


def test_an_empty_firewall_has_the_digest_of_nothing(firewall: object) -> None:
    assert firewall.options.get() == {"digest": "da39a3ee5e6b4b0d3255bfef95601890afd80709"}
    options = {"enable": 1, "policy_in": "DROP", "policy_out": "ACCEPT", "dhcp": 1, "macfilter": 1, "ipfilter": 0}
    firewall.options.put(**options, log_level_in="info")
    # The digest that Proxmox gives for these options.
    assert firewall.options.get()["digest"] == "7c9708cfaad825a3976d08b8fbeca1f9432960c0"


def test_a_new_rule_goes_first_and_can_be_moved(client: Client, firewall: object) -> None:
    for comment in ("c", "b", "a"):
        firewall.rules.post(type="out", action="DROP", comment=comment, enable=1, pos=7)

    def order() -> list[str]:
        return [rule["comment"] for rule in firewall.rules.get()]

    assert order() == ["a", "b", "c"]
    firewall.rules(0).put(moveto=2)
    assert order() == ["b", "a", "c"]
    firewall.rules(2).put(moveto=0)
    assert order() == ["c", "b", "a"]
    firewall.rules(0).put(moveto=9)
    assert order() == ["b", "a", "c"]
    seen = firewall.rules.get()[0]["digest"]
    firewall.rules(1).delete(digest=seen)
    assert order() == ["b", "c"]
    assert "file changed by other user" in str(client.refused(firewall.rules(0).put, enable=0, digest=seen))


@pytest.mark.parametrize(
    ("rule", "name", "message"),
    [
        ({"dport": "80"}, "proto", "missing property - 'dport' requires this property"),
        ({"proto": "tcp", "dport": "99999"}, "dport", "invalid format - invalid port '99999'\n"),
        ({"proto": "gre", "dport": "1"}, "dport", "protocol 'gre' does not support ports"),
        ({"source": "nobody"}, "source", "no such alias 'nobody'"),
        ({"source": "+none"}, "source", "no such ipset 'none'"),
        ({"source": "10.0.0.1", "dest": "fd00::1"}, "dest", "detected mixed ipv4/ipv6 addresses in rule"),
        ({"iface": "eth0"}, "iface", "value does not match the regex pattern 'net\\d+'"),
        ({"macro": "Nothing"}, "macro", "unknown macro 'Nothing'"),
        ({"action": "MAYBE"}, "action", "unknown action 'MAYBE'"),
    ],
)
def test_a_rule_that_does_not_fit_is_refused(
    client: Client, firewall: object, rule: dict, name: str, message: str
) -> None:
    error = client.refused(firewall.rules.post, **({"type": "in", "action": "ACCEPT"} | rule))
    assert (error.status_code, error.errors) == (400, {name: message})


def test_sets_aliases_and_groups(client: Client, firewall: object) -> None:
    cluster = client.api.cluster.firewall
    firewall.ipset.post(name="allow", comment="ok")
    firewall.ipset("allow").post(cidr="10.1.2.3", nomatch=1)
    firewall.ipset("allow").post(cidr="10.1.0.0/16")
    assert [entry["cidr"] for entry in firewall.ipset("allow").get()] == ["10.1.0.0/16", "10.1.2.3"]
    assert "is not empty" in str(client.refused(firewall.ipset("allow").delete))
    firewall.ipset("allow")("10.1.0.0/16").delete()
    firewall.aliases.post(name="Hub", cidr="192.168.100.2")
    firewall.aliases("hub").put(cidr="192.168.100.3", rename="hub2")
    assert firewall.aliases("HUB2").get() == {"name": "hub2", "cidr": "192.168.100.3", "ipversion": 4}
    cluster.groups.post(group="web")
    cluster.groups("web").post(type="in", action="ACCEPT", macro="https")
    assert cluster.groups("web").get()[0]["macro"] == "HTTPS"
    assert "is not empty" in str(client.refused(cluster.groups("web").delete))
    assert {entry["ref"] for entry in firewall.refs.get()} == {"+allow", "hub2"}


def test_a_clone_inherits_the_firewall_and_a_deleted_guest_leaves_none(client: Client) -> None:
    machine = client.create(100)
    machine.firewall.rules.post(type="out", action="DROP", enable=1)
    clone = client.clone(100, 101)
    assert clone.firewall.rules.get() == machine.firewall.rules.get()
    client.ok(clone.delete())
    assert client.node.qemu(101).firewall.rules.get() == []
    assert not (client.lab.state / "firewall" / "101.fw").exists()
