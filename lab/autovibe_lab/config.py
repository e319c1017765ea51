"""A guest's configuration in Proxmox's own form, read and written.

::

    #description, one line a comment
    agent: 1
    scsi0: local:100/vm-100-disk-0.qcow2,size=2G

    [PENDING]
    cores: 2

    [av-0123]
    #the snapshot's description
    parent: av-0122
    snaptime: 1795356683
    scsi0: …
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

Section = dict[str, str]

#: Kept out of snapshots and not brought back by a rollback.
NOT_IN_SNAPSHOTS = ("lock", "description", "snaptime", "snapstate", "vmstate", "digest")

DRIVES = re.compile(r"(scsi|virtio|sata|ide)\d+|efidisk0|tpmstate0")
NETS = re.compile(r"net\d+")

#: Characters that a comment line of the file holds as they are (all but the colon).
SAFE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in ":%")


@dataclass
class Config:
    """One configuration file: the current section, what is pending, and the snapshots by name."""

    current: Section = field(default_factory=dict)
    pending: Section = field(default_factory=dict)
    snapshots: dict[str, Section] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Config:
        config = cls()
        section, described = config.current, []
        for line in [*text.splitlines(), "[]"]:
            if line.startswith("["):
                if described:
                    section["description"] = "\n".join(described)
                described = []
                name = line.strip().strip("[]")
                section = config.pending if name == "PENDING" else config.snapshots.setdefault(name, {})
            elif line.startswith("#"):
                described.append(unquote(line[1:]))
            elif line.strip():
                key, _, value = line.partition(":")
                section[key] = value.strip()
        config.snapshots.pop("", None)
        return config

    def text(self) -> str:
        parts = [_section_text(self.current)]
        if self.pending:
            parts.append("[PENDING]\n" + _section_text(self.pending))
        parts += [f"[{name}]\n{_section_text(self.snapshots[name])}" for name in sorted(self.snapshots)]
        return "\n".join(parts)

    def digest(self) -> str:
        """What a caller gives back to be sure that nobody changed the file meanwhile."""
        return hashlib.sha1(self.text().encode(), usedforsecurity=False).hexdigest()

    def write(self, path: Path) -> None:
        part = path.with_name(f".{path.name}.new")
        part.write_text(self.text())
        os.replace(part, path)

    def sections(self) -> Iterator[Section]:
        yield self.current
        yield self.pending
        yield from self.snapshots.values()


def _section_text(section: Section) -> str:
    lines = []
    if section.get("description"):
        lines += ["#" + quote(line, safe=SAFE) for line in section["description"].rstrip("\n").split("\n")]
    lines += [f"{key}: {section[key]}" for key in sorted(section) if key != "description"]
    return "".join(f"{line}\n" for line in lines)


def snapshot_of(current: Section) -> Section:
    """What a snapshot keeps of the current section."""
    return {
        key: value
        for key, value in current.items()
        if key not in NOT_IN_SNAPSHOTS and not re.fullmatch(r"unused\d+", key)
    }


# Property strings -------------------------------------------------------------------------------------------------


def split_properties(value: str, default_key: str) -> dict[str, str]:
    """`local:1,size=2G` → {default_key: "local:1", "size": "2G"}."""
    properties: dict[str, str] = {}
    for part in value.split(","):
        key, equals, text = part.partition("=")
        if equals:
            properties[key] = text
        elif part:
            properties[default_key] = part
    return properties


def join_properties(properties: dict[str, str], default_key: str) -> str:
    first = [properties[default_key]] if default_key in properties else []
    return ",".join([*first, *(f"{key}={value}" for key, value in properties.items() if key != default_key)])


@dataclass
class Drive:
    """One drive of a configuration: `scsi0: <volume>,size=…`."""

    key: str
    properties: dict[str, str]

    @classmethod
    def parse(cls, key: str, value: str) -> Drive:
        return cls(key, split_properties(value, "file"))

    @property
    def volid(self) -> str:
        return self.properties.get("file", "")

    @property
    def size(self) -> int:
        return parse_size(self.properties.get("size", "0"))

    @property
    def is_cdrom(self) -> bool:
        return self.properties.get("media") == "cdrom"

    @property
    def is_cloudinit(self) -> bool:
        return self.is_cdrom and ("-cloudinit" in self.volid or self.volid.endswith(":cloudinit"))

    @property
    def has_volume(self) -> bool:
        """It names a volume, not `none` or a drive that is yet to be made (`local:cloudinit`)."""
        return ":" in self.volid and not self.volid.endswith(":cloudinit")

    @property
    def is_disk(self) -> bool:
        """A hard disk with a volume of its own."""
        return not self.is_cdrom and ":" in self.volid

    def text(self) -> str:
        # Proxmox writes the file first, the rest sorted.
        rest = {key: self.properties[key] for key in sorted(self.properties)}
        return join_properties(rest, "file")


def drives(section: Section) -> list[Drive]:
    """All drives of a section, in Proxmox's order: by name."""
    return [Drive.parse(key, section[key]) for key in sorted(section) if DRIVES.fullmatch(key)]


def owned_volumes(section: Section) -> list[str]:
    """The volumes that belong to the guest: its disks, its cloud-init drive and what it does not use now."""
    own = [drive.volid for drive in drives(section) if drive.is_disk or (drive.is_cloudinit and drive.has_volume)]
    return own + [value for key, value in section.items() if re.fullmatch(r"unused\d+", key)]


def boot_disk(section: Section) -> Drive | None:
    """The disk that the guest boots from: by its boot order, else scsi0, virtio0, or the first there is."""
    disks = {drive.key: drive for drive in drives(section) if drive.is_disk}
    order = split_properties(section.get("boot", ""), "legacy").get("order", "")
    for key in [*order.split(";"), "scsi0", "virtio0", *disks]:
        if key in disks:
            return disks[key]
    return None


UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes of `2G`, `512M` …"""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text)
    if not match:
        raise ValueError(f"'{text}' is not a size")
    return int(float(match[1]) * UNITS[match[2]])


def format_size(size: int) -> str:
    """The shortest exact form: `1G`, `1280M`."""
    for unit in ("T", "G", "M", "K"):
        if size and size % UNITS[unit] == 0:
            return f"{size // UNITS[unit]}{unit}"
    return str(size)
