from __future__ import annotations

import pytest
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.backups import is_same, parse_config

KEPT = """\
#autovibe installation=i machine=m
#lines & s%C3%B6me
meta: creation-qemu=7.2.0,ctime=1795356608
name: web
smbios1: serial=7,uuid=231066dc-c080-42ca-8617-5a09c6e15448

#qmdump#map:scsi0:drive-scsi0:dir2:qcow2

[earlier]
name: other
"""


def test_the_configuration_in_a_backup_is_that_of_its_present_state():
    config = parse_config(KEPT)
    assert config["name"] == "web"
    assert config["description"] == "autovibe installation=i machine=m\nlines & söme"
    assert sorted(config) == ["description", "meta", "name", "smbios1"]


@pytest.mark.parametrize(
    ("now", "same"),
    [
        ({}, True),
        ({"smbios1": "uuid=231066DC-C080-42CA-8617-5A09C6E15448"}, True),
        ({"smbios1": "uuid=00000000-c080-42ca-8617-5a09c6e15448"}, False),
        ({"description": "autovibe installation=i machine=m operation=o"}, True),
        ({"description": "autovibe installation=i machine=other"}, False),
        ({"description": "by hand"}, True),
    ],
)
def test_a_vm_is_told_by_its_uuid_and_its_identity(now, same):
    assert is_same(now, parse_config(KEPT)) is same
