from __future__ import annotations

import pytest
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.devices import (
    boot_disk,
    disk_size,
    merge_ipconfig,
    merge_net,
    merge_smbios,
    parse_net,
    parse_smbios,
    same_net,
    size_in_bytes,
    size_text,
)

MAC = "BC:24:11:00:00:01"


@pytest.mark.parametrize(
    ("current", "wanted", "merged"),
    [
        (None, {"bridge": "vmbr1"}, "virtio,bridge=vmbr1"),
        (f"virtio={MAC},bridge=vmbr0,tag=20", {"tag": 0}, f"virtio={MAC},bridge=vmbr0"),
        (f"virtio={MAC},bridge=vmbr0,tag=20", {"tag": 30}, f"virtio={MAC},bridge=vmbr0,tag=30"),
        (f"virtio={MAC},bridge=vmbr0,rate=5", {"rate": 0.0}, f"virtio={MAC},bridge=vmbr0"),
        (f"virtio={MAC},bridge=vmbr0", {"rate": 12.5}, f"virtio={MAC},bridge=vmbr0,rate=12.5"),
        (f"virtio={MAC},bridge=vmbr0", {"firewall": True}, f"virtio={MAC},bridge=vmbr0,firewall=1"),
        (f"virtio={MAC},bridge=vmbr0", {"mac": "bc:24:11:00:00:02"}, "virtio=BC:24:11:00:00:02,bridge=vmbr0"),
        (f"virtio={MAC},bridge=vmbr0,queues=4", {"model": "e1000"}, f"e1000={MAC},bridge=vmbr0,queues=4"),
    ],
)
def test_a_nic_is_merged(current, wanted, merged):
    assert merge_net(current, wanted) == merged


def test_an_off_that_is_not_written_is_no_difference():
    assert same_net(f"virtio={MAC},bridge=vmbr0,firewall=0", f"virtio={MAC},bridge=vmbr0")
    assert not same_net(f"virtio={MAC},bridge=vmbr0,firewall=1", f"virtio={MAC},bridge=vmbr0")


def test_a_mac_may_stand_in_its_own_option():
    assert parse_net(f"model=virtio,macaddr={MAC.lower()}") == {"model": "virtio", "mac": MAC}


def test_smbios_keeps_its_uuid_and_encodes_the_rest():
    merged = merge_smbios("uuid=u-1,serial=plain", {"family": "ä, b=c"})
    assert merged == "uuid=u-1,base64=1,family=w6QsIGI9Yw==,serial=cGxhaW4="
    assert parse_smbios(merged) == {"uuid": "u-1", "serial": "plain", "family": "ä, b=c"}
    assert merge_smbios("uuid=u-1", {"uuid": None, "serial": None}) == "uuid=u-1"


@pytest.mark.parametrize(
    ("current", "ip", "gateway", "merged"),
    [
        (None, None, None, None),
        (None, "192.0.2.4/24", None, "ip=192.0.2.4/24"),
        ("ip=192.0.2.4/24,gw=192.0.2.1", "192.0.2.5/24", None, "ip=192.0.2.5/24,gw=192.0.2.1"),
        ("ip=192.0.2.4/24,gw=192.0.2.1", "dhcp", None, "ip=dhcp"),
        ("ip=192.0.2.4/24,ip6=auto", None, "192.0.2.1", "ip=192.0.2.4/24,gw=192.0.2.1,ip6=auto"),
        ("ip=192.0.2.4/24,gw=192.0.2.1", None, "", "ip=192.0.2.4/24"),
    ],
)
def test_an_address_is_merged(current, ip, gateway, merged):
    assert merge_ipconfig(current, ip, gateway) == merged


@pytest.mark.parametrize(
    ("text", "size", "shown"),
    [("20G", 20 << 30, "20G"), ("20", 20 << 30, "20G"), ("512M", 512 << 20, "512M"), ("1.5 GiB", 1536 << 20, "1536M")],
)
def test_sizes(text, size, shown):
    assert size_in_bytes(text) == size
    assert size_text(size) == shown


@pytest.mark.parametrize("text", ["", "big", "-1G", "1P"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="is no size"):
        size_in_bytes(text)


CLOUD_INIT = {"ide2": "local:100/vm-100-cloudinit.qcow2,media=cdrom,size=4M"}


@pytest.mark.parametrize(
    ("config", "disk"),
    [
        ({"boot": "order=virtio0;net0", "scsi0": "a:1,size=1G", "virtio0": "a:2,size=2G"}, "virtio0"),
        ({"boot": "order=ide2;scsi1", **CLOUD_INIT, "scsi1": "a:1,size=2G"}, "scsi1"),
        ({"bootdisk": "sata0", "scsi0": "a:1,size=1G", "sata0": "a:2,size=2G"}, "sata0"),
        ({"ide0": "a:1,size=1G", "scsi0": "a:2,size=2G"}, "scsi0"),
        ({"scsi10": "a:1,size=1G", "scsi2": "a:2,size=2G"}, "scsi2"),
        (CLOUD_INIT, None),
    ],
)
def test_the_disk_that_a_vm_boots_from(config, disk):
    assert boot_disk(config) == disk
    assert disk_size(config) == (2 << 30 if disk else None)
