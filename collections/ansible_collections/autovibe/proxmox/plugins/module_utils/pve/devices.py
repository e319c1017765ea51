# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The values of single options in Proxmox VE's own form, and as a person reads them: NICs, SMBIOS, addresses, disks."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from typing import Any

NET_MODELS = ("virtio", "e1000", "e1000e", "rtl8139", "vmxnet3")
SMBIOS_FIELDS = ("manufacturer", "product", "version", "serial", "sku", "family")
#: Proxmox VE's own limit for all of smbios1.
SMBIOS_LENGTH = 512
MAC = re.compile(r"[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}")
DISK = re.compile(r"(scsi|virtio|sata|ide)\d+")
#: Whatever has a volume
DRIVE = re.compile(r"(scsi|virtio|sata|ide|unused)\d+|efidisk0|tpmstate0")
NEW_DISK = re.compile(r"[^:,]+:\d+(\.\d+)?")
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def properties(text: str | None, default: str = "") -> dict[str, str]:
    """`local:1/x.qcow2,size=4G` → {default: "local:1/x.qcow2", "size": "4G"}."""
    found = {}
    for part in filter(None, (text or "").split(",")):
        key, equals, value = part.partition("=")
        found[key if equals else default] = value if equals else key
    return found


def parse_net(text: str | None) -> dict[str, str]:
    """`virtio=BC:24:11:…,bridge=vmbr0` → {"model": "virtio", "mac": "BC:24:11:…", "bridge": "vmbr0"}."""
    net: dict[str, str] = {}
    for part in filter(None, (text or "").split(",")):
        key, _equals, value = part.partition("=")
        if key in NET_MODELS:
            net["model"] = key
            if value:
                net["mac"] = value.upper()
        elif key == "macaddr":
            net["mac"] = value.upper()
        else:
            net[key] = value
    return net


def merge_net(current: str | None, wanted: dict[str, Any]) -> str:
    """The current NIC with what is wanted laid over it; its MAC stays unless another one is asked for.

    A VLAN tag or a rate of 0 takes it away.
    """
    net = {"model": "virtio", **parse_net(current)}
    for key, value in wanted.items():
        if value is None:
            continue
        if key in ("tag", "rate") and not value:
            net.pop(key, None)
        else:
            net[key] = f"{value:g}" if isinstance(value, float) else str(int(value) if value is True else value or 0)
    mac = net.pop("mac", None)
    model = net.pop("model")
    head = f"{model}={mac.upper()}" if mac else model
    return ",".join([head, *(f"{key}={value}" for key, value in sorted(net.items()))])


def same_net(one: str | None, other: str | None) -> bool:
    """Whether two NICs are the same: the order of options, and an off that is not written, are no difference."""
    return _net_without_defaults(one) == _net_without_defaults(other)


def _net_without_defaults(text: str | None) -> dict[str, str]:
    net = parse_net(text)
    return {key: value for key, value in net.items() if not (key in ("firewall", "link_down") and value == "0")}


def parse_smbios(text: str | None) -> dict[str, str]:
    """`uuid=…,base64=1,serial=YWJj` → {"uuid": "…", "serial": "abc"}."""
    found = properties(text, "uuid")
    encoded = found.pop("base64", "0") == "1"
    return {key: _decoded(value) if encoded and key != "uuid" else value for key, value in found.items()}


def merge_smbios(current: str | None, wanted: dict[str, Any]) -> str:
    """The current SMBIOS with what is wanted laid over it. The uuid stays: Proxmox VE replaces all that is there."""
    given = {key: str(value) for key, value in wanted.items() if value is not None}
    merged = {key: value for key, value in {**parse_smbios(current), **given}.items() if value}
    uuid = [f"uuid={merged.pop('uuid')}"] if "uuid" in merged else []
    encoded = [f"{key}={base64.b64encode(value.encode()).decode()}" for key, value in sorted(merged.items())]
    return ",".join([*uuid, *(["base64=1", *encoded] if encoded else [])])


def _decoded(value: str) -> str:
    try:
        return base64.b64decode(value).decode()
    except (binascii.Error, UnicodeDecodeError):
        return value


def merge_ipconfig(current: str | None, ip: str | None, gateway: str | None) -> str | None:
    """`ip=192.0.2.4/24,gw=192.0.2.1`; what is not given stays, and DHCP has no gateway."""
    if ip is None and gateway is None:
        return None
    found = properties(current)
    found.update({key: value for key, value in (("ip", ip), ("gw", gateway)) if value is not None})
    if found.get("ip") in ("dhcp", "", None):
        found.pop("gw", None)
    return ",".join(f"{key}={found[key]}" for key in ("ip", "gw", "ip6", "gw6") if found.get(key))


def wrong_address(text: str | None) -> str | None:
    """What is wrong with an address for cloud-init; None when nothing is."""
    if text in (None, "", "dhcp"):
        return None
    try:
        ipaddress.IPv4Interface(text)
    except ValueError:
        return f"'{text}' is no IPv4 address with its prefix, such as 192.168.100.11/24, nor dhcp"
    return None if "/" in text else f"'{text}' lacks the prefix, such as {text}/24"


def wrong_gateway(text: str | None) -> str | None:
    try:
        ipaddress.IPv4Address(text or "0.0.0.0")
    except ValueError:
        return f"'{text}' is no IPv4 address"
    return None


def wrong_mac(text: str | None) -> str | None:
    return None if not text or MAC.fullmatch(text) else f"'{text}' is no MAC address of a single NIC"


def size_in_bytes(text: str) -> int:
    """`20G` → bytes; a number alone counts GiB."""
    match = SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"'{text}' is no size; write it as 20G or 512M")
    return int(float(match[1]) * UNITS[match[2].upper() or "G"])


def size_text(size: int) -> str:
    """Bytes as Proxmox VE writes them: the largest unit that needs no fraction."""
    for unit, factor in sorted(UNITS.items(), key=lambda item: -item[1]):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def disks(config: dict[str, Any]) -> dict[str, str]:
    """The volumes of a VM's disks by their keys, without CD-ROMs and the cloud-init drive."""
    found = {}
    for key, value in config.items():
        if DISK.fullmatch(key) and "media=cdrom" not in str(value):
            found[key] = properties(str(value), "file").get("file", "")
    return found


def is_new_disk(text: str) -> bool:
    """Whether this value of a drive makes a volume: of a size (`local:8`), or of an image."""
    found = properties(text, "file")
    return "import-from" in found or NEW_DISK.fullmatch(found.get("file", "")) is not None


def boot_disk(config: dict[str, Any]) -> str | None:
    """The key of the disk that the VM boots from."""
    known = disks(config)
    order = properties(str(config.get("boot", ""))).get("order", "").split(";")
    listed = [key for key in [*order, str(config.get("bootdisk", ""))] if key in known]
    return (listed or sorted(known, key=_bus_first) or [None])[0]


def _bus_first(key: str) -> tuple[int, int]:
    bus = key.rstrip("0123456789")
    return ("scsi", "virtio", "sata", "ide").index(bus), int(key[len(bus) :])


def disk_size(config: dict[str, Any]) -> int | None:
    """The size of the boot disk in bytes."""
    key = boot_disk(config)
    text = properties(str(config[key]), "file").get("size") if key else None
    return size_in_bytes(text) if text else None
