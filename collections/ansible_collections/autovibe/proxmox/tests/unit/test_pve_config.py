from __future__ import annotations

import pytest
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.config import (
    Identity,
    Wanted,
    as_call,
    desired,
    differences,
    inherited,
    same,
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


def test_all_notes_are_kept_of_a_vm_that_gets_its_first_identity():
    wanted = Wanted(identity=Identity.of(installation="i", machine="m"))
    given = desired(wanted, {"description": "Ann's\nserver"})["description"]
    assert given == "autovibe installation=i machine=m\nAnn's\nserver"


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


@pytest.mark.parametrize(
    ("key", "wanted", "current"),
    [
        ("cores", 1, None),
        ("onboot", 0, None),
        ("protection", 1, "1"),
        ("cpulimit", 2, "2.0"),
        ("memory", 512, "512"),
        ("description", "", None),
        ("tags", "", None),
        ("nameserver", "192.0.2.1 192.0.2.2", "192.0.2.1,192.0.2.2"),
        ("sshkeys", "ssh-ed25519%20A%0A", "ssh-ed25519%20A"),
        ("smbios1", "uuid=u,base64=1,serial=YQ==", "base64=1,serial=YQ==,uuid=u"),
        ("agent", "enabled=1,type=virtio", "type=virtio,enabled=1"),
    ],
)
def test_what_is_the_same_in_another_form_is_no_difference(key, wanted, current):
    assert same(key, wanted, current)


@pytest.mark.parametrize(
    ("key", "wanted", "current"),
    [("cores", 2, None), ("boot", "order=scsi0;net0", "order=net0;scsi0"), ("tags", "a", None), ("name", "1", "1.0")],
)
def test_what_differs_is_a_difference(key, wanted, current):
    assert not same(key, wanted, current)


def test_what_is_to_be_empty_is_deleted_in_the_same_call():
    changes = {"cores": 2, "description": "", "tags": ""}
    assert as_call(changes) == {"cores": 2, "delete": "description,tags"}


PASSWORD = Wanted(cipassword="secret")


@pytest.mark.parametrize(
    ("wanted", "current", "created", "set_again"),
    [
        (PASSWORD, {}, False, True),
        (PASSWORD, {"cipassword": "**********"}, False, False),
        (PASSWORD, {"cipassword": "**********"}, True, True),
        (Wanted(cipassword="secret", new_password=True), {"cipassword": "**********"}, False, True),
    ],
)
def test_a_password_that_cannot_be_compared(wanted, current, created, set_again):
    assert ("cipassword" in differences(desired(wanted, current, created), current)) is set_again


def test_a_password_is_never_shown():
    assert view({"cipassword": "secret"}, ["cipassword"]) == {"cipassword": "(set anew)"}
    assert view({"cipassword": "**********"}, ["cipassword"]) == {"cipassword": "(set)"}


def test_a_clone_inherits_all_but_what_makes_its_source():
    source = {
        "name": "base",
        "template": 1,
        "cores": 4,
        "net0": "virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1",
        "smbios1": "uuid=u-1,base64=1,serial=YQ==",
        "description": LINE,
    }
    assert inherited(source) == {
        "cores": 4,
        "net0": "virtio,bridge=vmbr0,firewall=1",
        "smbios1": "base64=1,serial=YQ==",
    }
