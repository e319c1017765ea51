"""The cloud-init drive of a guest: a NoCloud ISO image, generated from its configuration as Proxmox does."""

from __future__ import annotations

import hashlib
import io
import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pycdlib

from autovibe_lab import disks

#: One value of cloud-init per interface, `ipconfig0` for `net0`.
INTERFACES = range(32)


async def write_drive(config: dict[str, str], vmid: int, target: Path) -> None:
    """Write the drive of a guest with this configuration; an older one is replaced. A `.qcow2` is written in that
    format, any other raw."""
    image = iso(files(config, vmid))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.iso")
    part.write_bytes(image)
    try:
        if target.suffix == ".qcow2":
            target.unlink(missing_ok=True)
            await disks.full_copy(part, target)
        else:
            part.rename(target)
    finally:
        part.unlink(missing_ok=True)


def files(config: dict[str, str], vmid: int) -> dict[str, str]:
    """The drive's files by name."""
    user_data, network = _user_data(config, vmid), _network_config(config)
    # A changed drive is a new instance to cloud-init.
    instance = hashlib.sha1((user_data + network).encode(), usedforsecurity=False).hexdigest()
    return {"meta-data": f"instance-id: {instance}\n", "user-data": user_data, "network-config": network}


def iso(content: dict[str, str]) -> bytes:
    """An ISO 9660 image labelled `cidata` with Rock Ridge and Joliet names."""
    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, vol_ident="cidata", joliet=3, rock_ridge="1.09")
    for number, (name, text) in enumerate(content.items()):
        data = text.encode()
        image.add_fp(io.BytesIO(data), len(data), f"/F{number}.;1", rr_name=name, joliet_path=f"/{name}")
    out = io.BytesIO()
    image.write_fp(out)
    image.close()
    return out.getvalue()


def _user_data(config: dict[str, str], vmid: int) -> str:
    name = config.get("name", f"VM{vmid}")
    lines = ["#cloud-config", f"hostname: {name}", "manage_etc_hosts: true"]
    domain = config.get("searchdomain", "").split(" ")[0]
    lines += [f"fqdn: {name}.{domain}" if domain else f"fqdn: {name}"]
    if user := config.get("ciuser"):
        lines += [f"user: {user}"]
        if user == "root":
            lines += ["disable_root: False"]
    if password := config.get("cipassword"):
        lines += [f"password: {password}"]
    keys = [key for key in unquote(config.get("sshkeys", "")).splitlines() if key.strip()]
    if keys:
        lines += ["ssh_authorized_keys:", *(f"  - {key}" for key in keys)]
    lines += ["chpasswd:", "  expire: False", "users:", "  - default"]
    lines += [f"package_upgrade: {'false' if config.get('ciupgrade') == '0' else 'true'}"]
    return "\n".join(lines) + "\n"


def _network_config(config: dict[str, str]) -> str:
    """Version 1 of cloud-init's network configuration, the one that Proxmox gives to NoCloud."""
    lines = ["version: 1", "config:"]
    for number in INTERFACES:
        if f"net{number}" not in config:
            continue
        mac = re.search(r"=((?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2})", config[f"net{number}"])
        lines += ["    - type: physical", f"      name: eth{number}"]
        if mac:
            lines += [f"      mac_address: '{mac[1].lower()}'"]
        lines += ["      subnets:", *_subnets(config.get(f"ipconfig{number}", ""))]
    # A node that has neither takes its own: an empty list, which netplan refuses, is never there.
    dns = {"address": config.get("nameserver", "").split(), "search": config.get("searchdomain", "").split()}
    if any(dns.values()):
        lines += ["    - type: nameserver"]
    for key, values in dns.items():
        lines += [f"      {key}:", *(f"      - '{value}'" for value in values)] if values else []
    return "\n".join(lines) + "\n"


def _subnets(ipconfig: str) -> Iterator[str]:
    values = dict(part.partition("=")[::2] for part in ipconfig.split(",") if part)
    if address := values.get("ip"):
        if address == "dhcp":
            yield "      - type: dhcp4"
        else:
            interface = ipaddress.IPv4Interface(address)
            yield "      - type: static"
            yield f"        address: '{interface.ip}'"
            yield f"        netmask: '{interface.netmask}'"
            if gateway := values.get("gw"):
                yield f"        gateway: '{gateway}'"
    if address := values.get("ip6"):
        if address in ("dhcp", "auto"):
            yield f"      - type: {'dhcp6' if address == 'dhcp' else 'ipv6_slaac'}"
        else:
            yield "      - type: static6"
            yield f"        address: '{address}'"
            if gateway := values.get("gw6"):
                yield f"        gateway: '{gateway}'"
