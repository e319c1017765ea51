# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM's configuration as data: who it belongs to, and what differs from what is wanted. Pure functions, no calls."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

SNAPSHOT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{1,39}")
DNS_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
TAG = re.compile(r"[a-z0-9_][a-z0-9_+.-]*")
NET_MODELS = ("virtio", "e1000", "e1000e", "rtl8139", "vmxnet3")


@dataclass(frozen=True)
class Identity:
    """Whose VM this is: the first line of its description, `autovibe installation=… machine=… operation=…`."""

    fields: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, **fields: str | None) -> Identity:
        return cls(tuple((name, value) for name, value in fields.items() if value))

    @classmethod
    def parse(cls, description: str | None) -> Identity | None:
        """The identity in a description, or None when it has none."""
        words = (description or "").partition("\n")[0].split()
        if not words or words[0] != "autovibe":
            return None
        return cls.of(**dict(word.split("=", 1) for word in words[1:] if "=" in word))

    def get(self, name: str) -> str | None:
        return dict(self.fields).get(name)

    def line(self) -> str:
        return " ".join(["autovibe", *(f"{name}={value}" for name, value in self.fields)])

    def owns(self, description: str | None) -> bool:
        """Whether a VM with this description is this one: all but the operation must be the same."""
        other = Identity.parse(description)
        return other is not None and all(
            other.get(name) == value for name, value in self.fields if name in ("installation", "machine", "template")
        )


@dataclass(frozen=True)
class Wanted:
    """What a VM's configuration is to be. None leaves a thing as it is."""

    name: str | None = None
    identity: Identity | None = None
    notes: str | None = None
    tags: list[str] | None = None
    cores: int | None = None
    memory: int | None = None
    net: dict[str, Any] | None = None
    ip: str | None = None
    gateway: str | None = None
    ciuser: str | None = None
    sshkeys: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def description(self, current: str | None = None) -> str | None:
        """Identity and notes; what is not given of either stays as it is in the current description."""
        _first, _newline, rest = (current or "").partition("\n")
        if self.identity is None:
            return self.notes
        known = Identity.parse(current) or Identity(())
        line = Identity.of(**{**dict(known.fields), **dict(self.identity.fields)}).line()
        return "\n".join(filter(None, [line, rest if self.notes is None else self.notes]))


def desired(wanted: Wanted, current: dict[str, Any]) -> dict[str, Any]:
    """The configuration values that `wanted` asks for, in Proxmox VE's own form, given the current ones."""
    values: dict[str, Any] = {
        "name": wanted.name,
        "description": wanted.description(current.get("description")),
        "tags": None if wanted.tags is None else join_tags(wanted.tags),
        "cores": wanted.cores,
        "memory": wanted.memory,
        "net0": None if wanted.net is None else merge_net(current.get("net0"), wanted.net),
        "ipconfig0": ipconfig(wanted.ip, wanted.gateway),
        "ciuser": wanted.ciuser,
        # Encoded once more inside the value: Proxmox VE decodes what it has stored.
        "sshkeys": None if wanted.sshkeys is None else quote(wanted.sshkeys, safe=""),
        **wanted.options,
    }
    return {key: value for key, value in values.items() if value is not None}


def differences(values: dict[str, Any], current: dict[str, Any]) -> dict[str, Any]:
    """Of `values`, those that the current configuration does not have."""
    return {key: value for key, value in values.items() if not same(key, value, current.get(key))}


def same(key: str, wanted: Any, current: Any) -> bool:
    if current is None:
        return wanted == ""
    if key == "tags":
        return split_tags(wanted) == split_tags(current)
    if key == "net0":
        return parse_net(wanted) == parse_net(current)
    if key == "description":
        return str(wanted).rstrip() == str(current).rstrip()
    if isinstance(wanted, bool):
        wanted = int(wanted)
    return str(wanted) == str(current)


def split_tags(text: str | None) -> list[str]:
    return sorted({tag.lower() for tag in re.split(r"[;, ]+", text or "") if tag})


def join_tags(tags: list[str]) -> str:
    return ";".join(sorted({tag.lower() for tag in tags}))


def ipconfig(ip: str | None, gateway: str | None) -> str | None:
    if ip is None:
        return None
    return f"ip={ip}" + (f",gw={gateway}" if gateway else "")


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
    """The current NIC with what is wanted laid over it; its MAC stays unless another one is asked for."""
    net = {"model": "virtio", **parse_net(current)}
    for key, value in wanted.items():
        if value is not None:
            net[key] = str(int(value)) if isinstance(value, bool) else str(value)
    mac = net.pop("mac", None)
    model = net.pop("model")
    head = f"{model}={mac.upper()}" if mac else model
    return ",".join([head, *(f"{key}={value}" for key, value in sorted(net.items()))])


def view(config: dict[str, Any] | None, keys: list[str], status: str | None = None) -> dict[str, Any]:
    """What before and after show: the keys that are managed, and the power state; nothing of a VM that is not there."""
    if config is None:
        return {}
    shown = {key: split_tags(config[key]) if key == "tags" else config[key] for key in keys if key in config}
    for key in ("cores", "memory"):
        if key in shown:
            shown[key] = int(shown[key])
    if "description" in shown:
        shown["description"] = str(shown["description"]).rstrip()
    if "net0" in shown:
        shown["net0"] = parse_net(shown["net0"])
    if status is not None:
        shown["status"] = status
    return dict(sorted(shown.items()))
