from __future__ import annotations

import pytest
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.config import (
    Identity,
    Wanted,
    desired,
    differences,
    view,
)
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.devices import merge_net, parse_net

OURS = Identity.of(installation="i", machine="m", operation="o2")
LINE = "autovibe installation=i machine=m operation=o1"


def test_an_identity_survives_its_line():
    assert Identity.parse(OURS.line() + "\nnotes") == OURS


@pytest.mark.parametrize("text", [None, "", "web server", " qmclone temporary file", "notes\n" + LINE])
def test_a_description_without_an_identity_has_none(text):
    assert Identity.parse(text) is None
    assert not OURS.owns(text)


def test_the_operation_need_not_match():
    assert OURS.owns(LINE)


@pytest.mark.parametrize("text", ["autovibe installation=i", "autovibe installation=i machine=x operation=o2"])
def test_another_machine_is_not_ours(text):
    assert not OURS.owns(text)


def test_the_description_keeps_what_is_not_given():
    wanted = Wanted(identity=Identity.of(installation="i", machine="m"))
    assert desired(wanted, {"description": LINE + "\nkept\n"})["description"] == LINE + "\nkept\n"


def test_only_what_differs_is_sent():
    config = {"name": "a", "memory": "512", "cores": 2, "tags": "b;a", "description": LINE + "\n"}
    wanted = Wanted(name="a", memory=512, cores=4, tags=["a", "B"], identity=Identity.parse(LINE))
    assert differences(desired(wanted, config), config) == {"cores": 4}


def test_ssh_keys_are_encoded_once_more():
    assert desired(Wanted(sshkeys="ssh-ed25519 AA+/= x@y\n"), {}) == {"sshkeys": "ssh-ed25519%20AA%2B%2F%3D%20x%40y%0A"}


def test_a_nic_keeps_its_mac_and_what_is_not_managed():
    merged = merge_net("virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1", {"bridge": "vmbr1", "mac": None})
    assert parse_net(merged) == {"model": "virtio", "mac": "BC:24:11:00:00:01", "bridge": "vmbr1", "firewall": "1"}


def test_the_order_of_a_nics_options_is_no_difference():
    config = {"net0": "virtio=BC:24:11:00:00:01,firewall=1,bridge=vmbr0"}
    wanted = Wanted(net={"bridge": "vmbr0", "mac": "bc:24:11:00:00:01", "firewall": True})
    assert differences(desired(wanted, config), config) == {}


def test_a_missing_vm_shows_nothing():
    assert view(None, ["name"]) == {}
