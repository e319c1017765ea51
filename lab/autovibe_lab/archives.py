"""Backups of guests: what is in an archive, and how it is made and read.

An archive is a tar file, whatever its name says (`….vma.zst`): the guest's configuration, its firewall, one compressed
qcow2 image for each disk, and of a null guest its files.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

from autovibe_lab import disks
from autovibe_lab.config import Config, Drive, Section, drives
from autovibe_lab.errors import TaskError
from autovibe_lab.null_programs import Disk, Meta

CONFIG, FIREWALL, FILES = "qemu-server.conf", "qemu-server.fw", "null-guest.json"
MAP = re.compile(r"#qmdump#map:(\w+):drive-\w+:([^:]*):([^:]*):")


@dataclass
class Contents:
    """An archive that was read: the configuration's text, the firewall's, which disks have an image in it."""

    config: str
    firewall: str
    files: str
    images: set[str]

    @property
    def section(self) -> Section:
        lines = [line for line in self.config.splitlines() if not line.startswith("#qmdump#")]
        return Config.parse("\n".join(lines)).current

    @property
    def storages(self) -> dict[str, str]:
        """Where each disk was."""
        return {match[1]: match[2] for match in MAP.finditer(self.config)}


def included(section: Section) -> list[Drive]:
    """The disks that go into a backup."""
    return [drive for drive in drives(section) if drive.is_disk and drive.properties.get("backup", "1") != "0"]


def config_text(config: Config) -> str:
    """The configuration as a backup holds it: no snapshots, nothing pending, and where each disk was."""
    current = {key: value for key, value in config.current.items() if key not in ("lock", "parent", "vmstate")}
    current = {key: value for key, value in current.items() if not re.fullmatch(r"unused\d+", key)}
    text = Config(current).text() + ("\n" if config.snapshots or config.pending else "")
    for drive in included(current):
        kind = drive.volid.rpartition(".")[2] if "." in drive.volid else "raw"
        text += f"#qmdump#map:{drive.key}:drive-{drive.key}:{drive.volid.partition(':')[0]}:{kind}:\n"
    return text


async def write(target: Path, config: str, firewall: str, files: Disk | None, images: dict[str, Path]) -> None:
    """Make the archive; it has its name only once it is whole. `images`: disk key → qcow2 file."""
    members = {CONFIG: config, FIREWALL: firewall} | ({FILES: _dump(files)} if files else {})
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.dat")
    try:
        await asyncio.to_thread(_write, part, members, images)
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)


def _write(part: Path, members: dict[str, str], images: dict[str, Path]) -> None:
    with tarfile.open(part, "w") as archive:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
        for key, file in images.items():
            archive.add(file, f"drive-{key}.qcow2")


def read(archive: Path) -> Contents:
    """What is in it. Raises TaskError when it is none of ours."""
    try:
        with tarfile.open(archive) as content:
            names = set(content.getnames())
            texts = [content.extractfile(name).read().decode() if name in names else "" for name in MEMBERS]
    except (tarfile.TarError, OSError, KeyError) as error:
        raise TaskError(f"unable to read archive '{archive.name}': {error}") from None
    found = re.findall(r"drive-(\w+)\.qcow2", " ".join(sorted(names)))
    return Contents(*texts, set(found))


MEMBERS = (CONFIG, FIREWALL, FILES)


async def image(archive: Path, key: str, target: Path) -> None:
    """A disk's image out of the archive, as a qcow2 file of its own."""
    part = target.with_name(f".{target.name}.restore")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        await asyncio.to_thread(_extract, archive, f"drive-{key}.qcow2", part)
        await disks.full_copy(part, target)
    finally:
        part.unlink(missing_ok=True)


def _extract(archive: Path, name: str, target: Path) -> None:
    with tarfile.open(archive) as content, target.open("wb") as file:
        member = content.extractfile(name)
        while chunk := member.read(1 << 20):
            file.write(chunk)


def _dump(disk: Disk) -> str:
    files = {path: base64.b64encode(content).decode() for path, content in disk.files.items()}
    meta = {path: vars(found) for path, found in disk.meta.items()}
    return json.dumps({"files": files, "meta": meta, "folders": sorted(disk.folders)})


def load(text: str) -> Disk:
    """A null guest's files."""
    found = json.loads(text)
    files = {path: base64.b64decode(content) for path, content in found["files"].items()}
    return Disk(files, {path: Meta(**meta) for path, meta in found["meta"].items()}, set(found["folders"]))
