# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM's configuration as data: who it belongs to, and what differs from what is wanted. Pure functions, no calls."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

from .devices import (
    DRIVE,
    SMBIOS_LENGTH,
    disk_size,
    is_new_disk,
    merge_ipconfig,
    merge_net,
    merge_smbios,
    parse_net,
    parse_smbios,
    same_net,
    size_in_bytes,
    size_text,
    wrong_address,
    wrong_gateway,
    wrong_mac,
)
from .errors import NotPossible

SNAPSHOT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{1,39}")
DNS_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
TAG = re.compile(r"[a-z0-9_][a-z0-9_+.-]*")
#: What Proxmox VE takes for granted when a key is not in the configuration.
DEFAULTS: dict[str, Any] = {"cores": 1, "sockets": 1, "memory": 512, "protection": 0, "onboot": 0}
#: What cloud-init reads when the guest boots: on a running VM it takes effect after a restart.
CLOUD_INIT = ("ciuser", "cipassword", "sshkeys", "nameserver", "searchdomain", "ipconfig0")
PASSWORD = "cipassword"
#: How a password stands in a diff; it cannot be read back, so nobody can say whether it is another one.
PASSWORD_KEPT, PASSWORD_SET = "(set)", "(set anew)"


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

    def tag(self) -> str | None:
        """The tag by which a machine is found."""
        machine = self.get("machine")
        return f"id-{machine.replace('-', '')}" if machine else None

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
    """What a VM is to be. None leaves a thing as it is."""

    name: str | None = None
    identity: Identity | None = None
    #: The SMBIOS uuid that proves which VM it is: one that has it and no identity yet is taken over.
    expected_uuid: str | None = None
    notes: str | None = None
    tags: list[str] | None = None
    cores: int | None = None
    memory: int | None = None
    net: dict[str, Any] | None = None
    ip: str | None = None
    gateway: str | None = None
    ciuser: str | None = None
    cipassword: str | None = None
    sshkeys: str | None = None
    nameservers: list[str] | None = None
    searchdomain: str | None = None
    smbios: dict[str, Any] | None = None
    protection: bool | None = None
    onboot: bool | None = None
    options: dict[str, Any] = field(default_factory=dict)
    #: Not of the configuration: calls of their own set them.
    disk_size: str | None = None
    pool: str | None = None
    #: Set the password again, though it cannot be seen whether it is another one.
    new_password: bool = False

    def description(self, current: str | None = None) -> str | None:
        """Identity and notes; what is not given of either stays as it is in the current description."""
        first, _newline, rest = (current or "").partition("\n")
        if self.identity is None:
            if self.notes is None or Identity.parse(current) is None:
                return self.notes
            return "\n".join(filter(None, [first, self.notes]))
        known = Identity.parse(current)
        if known is None:
            known, rest = Identity(()), current or ""  # all of it is what a person wrote
        line = Identity.of(**{**dict(known.fields), **dict(self.identity.fields)}).line()
        return "\n".join(filter(None, [line, rest if self.notes is None else self.notes]))

    def _refused(self) -> Iterator[tuple[str, str | None]]:
        """Each option with what is wrong with it. A new VM would be there, and not configured, when it is refused."""
        net = self.net or {}
        yield "cores", "at least 1" if self.cores is not None and self.cores < 1 else None
        yield "memory", "at least 16 (MiB)" if self.memory is not None and self.memory < 16 else None
        yield "ip", wrong_address(self.ip)
        yield "gateway", wrong_gateway(self.gateway)
        yield "net.mac", wrong_mac(net.get("mac"))
        yield "net.tag", "0 to 4094" if not 0 <= (net.get("tag") or 0) <= 4094 else None
        yield "net.rate", "at least 0" if (net.get("rate") or 0) < 0 else None

    def validate(self) -> None:
        """Refuses what Proxmox VE would refuse late, or with a message that helps nobody."""
        if self.name is not None and not all(DNS_LABEL.fullmatch(label) for label in self.name.split(".")):
            raise NotPossible(
                f"'{self.name}' is not a DNS name: letters, digits and '-' only, at most 63, no '-' at the ends."
            )
        for tag in self.tags or []:
            if not TAG.fullmatch(tag.lower()):
                raise NotPossible(f"'{tag}' is not a tag: letters, digits, '_', '-', '+' and '.' only.")
        if self.smbios and len(merge_smbios(None, self.smbios)) > SMBIOS_LENGTH:
            raise NotPossible(f"smbios is longer than the {SMBIOS_LENGTH} characters that Proxmox VE has for it.")
        for option, refused in self._refused():
            if refused:
                raise NotPossible(f"{option}: {refused}.")
        for key, value in self.options.items():
            if isinstance(value, (list, dict)):
                raise NotPossible(f"options: {key} is no text; write it as Proxmox VE does, such as order=scsi0;net0.")
            if DRIVE.fullmatch(key) and is_new_disk(str(value)):
                raise NotPossible(
                    f"options: {key} would be another new disk at each run, in the place of the one before; make the "
                    f"disk by source.image or disk_size, or in a template."
                )
        if self.disk_size is not None:
            try:
                size_in_bytes(self.disk_size)
            except ValueError as error:
                raise NotPossible(f"disk_size: {error}.") from error


def desired(wanted: Wanted, current: dict[str, Any], created: bool = False) -> dict[str, Any]:
    """The configuration values that `wanted` asks for, in Proxmox VE's own form, given the current ones.

    A VM that was just `created` may have inherited another's password: there it is always set.
    """
    given = wanted.cipassword if wanted.cipassword is not None else wanted.options.get(PASSWORD)
    password = given if created or wanted.new_password or not current.get(PASSWORD) else None
    if given == "":  # in the options: none
        password = "" if current.get(PASSWORD) else None
    values: dict[str, Any] = {
        "name": wanted.name,
        "description": wanted.description(current.get("description")),
        "tags": None if wanted.tags is None else join_tags(wanted.tags),
        "cores": wanted.cores,
        "memory": wanted.memory,
        "net0": None if wanted.net is None else merge_net(current.get("net0"), wanted.net),
        "ipconfig0": merge_ipconfig(current.get("ipconfig0"), wanted.ip, wanted.gateway),
        "ciuser": wanted.ciuser,
        PASSWORD: password,
        # Encoded once more inside the value: Proxmox VE decodes what it has stored.
        "sshkeys": None if wanted.sshkeys is None else quote(wanted.sshkeys, safe=""),
        "nameserver": None if wanted.nameservers is None else " ".join(wanted.nameservers),
        "searchdomain": wanted.searchdomain,
        "smbios1": None if wanted.smbios is None else merge_smbios(current.get("smbios1"), wanted.smbios),
        "protection": None if wanted.protection is None else int(wanted.protection),
        "onboot": None if wanted.onboot is None else int(wanted.onboot),
        **{
            key: int(value) if isinstance(value, bool) else value
            for key, value in wanted.options.items()
            if key != PASSWORD
        },
    }
    return {key: value for key, value in values.items() if value is not None}


def differences(values: dict[str, Any], current: dict[str, Any]) -> dict[str, Any]:
    """Of `values`, those that the current configuration does not have."""
    return {key: value for key, value in values.items() if not same(key, value, current.get(key))}


def as_call(changes: dict[str, Any]) -> dict[str, Any]:
    """The parameters of one config PUT: what is to be empty is deleted."""
    gone = sorted(key for key, value in changes.items() if value == "")
    kept = {key: value for key, value in changes.items() if value != ""}
    return {**kept, "delete": ",".join(gone)} if gone else kept


def same(key: str, wanted: Any, current: Any) -> bool:
    if key == PASSWORD:
        return False  # asked for: it cannot be compared
    if key.startswith("net"):
        return same_net(wanted, current)
    if current is None:
        current = DEFAULTS.get(key, "")
    return bool(_plain(key, wanted) == _plain(key, current))


def _plain(key: str, value: Any) -> Any:
    """A value in a form in which equal ones are equal."""
    if key == "tags":
        return split_tags(value)
    if key == "smbios1":
        return parse_smbios(value)
    if key == "sshkeys":
        return unquote(str(value)).strip()
    if key == "description":
        return str(value).rstrip()
    if key in ("nameserver", "searchdomain"):
        return re.split(r"[;, ]+", str(value))
    if key in ("boot", "name", "ciuser"):
        return str(value)
    number = _number(value)
    return sorted(str(value).split(",")) if number is None else number


def _number(value: Any) -> int | float | None:
    """2, "2", True and "2.0" are the same number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else number


def split_tags(text: str | None) -> list[str]:
    return sorted({tag.lower() for tag in re.split(r"[;, ]+", text or "") if tag})


def join_tags(tags: list[str]) -> str:
    return ";".join(sorted({tag.lower() for tag in tags}))


def view(config: dict[str, Any] | None, keys: list[str], status: str | None = None) -> dict[str, Any]:
    """What before and after show: the keys that are managed, and the power state; nothing of a VM that is not there.

    `disk_size` and `pool` stand among the keys of the configuration.
    """
    if config is None:
        return {}
    shown = {key: _shown(key, config) for key in keys}
    if status is not None:
        shown["status"] = status
    return {key: value for key, value in sorted(shown.items()) if value not in (None, "", [], {})}


def _shown(key: str, config: dict[str, Any]) -> Any:
    value = config.get(key, DEFAULTS.get(key))
    if key == "disk_size":
        size = disk_size(config)
        return size_text(size) if size else None
    if value is None:
        return None
    if key == PASSWORD:
        return PASSWORD_KEPT if set(str(value)) == {"*"} else PASSWORD_SET
    if key in ("protection", "onboot"):
        return bool(int(value))
    if key == "net0":
        return parse_net(value)
    plain = _plain(key, value)
    readable = key in ("tags", "smbios1", "sshkeys", "description") or isinstance(plain, (int, float))
    return plain if readable else str(value)


def inherited(source: dict[str, Any]) -> dict[str, Any]:
    """What a clone of a VM with this configuration begins with: all but what makes the VM itself."""
    base = {key: value for key, value in source.items() if key not in ("lock", "template", "parent", "digest", "name")}
    if "net0" in base:
        base["net0"] = merge_net(None, {key: value for key, value in parse_net(base["net0"]).items() if key != "mac"})
    if "smbios1" in base:
        fields = parse_smbios(base["smbios1"])
        base["smbios1"] = merge_smbios(None, {**fields, "uuid": None})
    if Identity.parse(base.get("description")):
        del base["description"]
    return base
