"""What a storage holds, as the API lists it: disks, images to import, ISOs and backups."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from autovibe_lab.volumes import CLOUDINIT_SIZE, Storages, base_of, own_id, virtual_size

#: The files of each kind of content, by what their names end in; the folder in the storage.
EXTENSIONS = {
    "iso": (r".+\.(iso|img)", "template/iso"),
    "vztmpl": (r".+\.tar\.(gz|xz|zst|bz2)", "template/cache"),
    "import": (r".+\.(ova|ovf|qcow2|raw|vmdk)", "import"),
    "snippets": (r".+", "snippets"),
}
STAMP = r"\d{4}_\d\d_\d\d-\d\d_\d\d_\d\d"
ARCHIVE = re.compile(rf"vzdump-(qemu|lxc|openvz)-(\d+)-({STAMP})\.((?:vma|tar|tgz)(?:\.(?:gz|lzo|zst|bz2))?)")
#: Kept beside an archive.
NOTES, PROTECTED, VERIFIED = ".notes", ".protected", ".verify"


def status(storages: Storages, name: str, node: str) -> dict:
    """How full the storage is: as full as the disk that the lab is on."""
    storage = storages.config.get(name)
    active = int(storage.enabled and storage.on(node))
    found = {"type": storage.type, "active": active, "enabled": int(storage.enabled), "shared": int(storage.shared)}
    usage = shutil.disk_usage(storages.paths.state)
    numbers = {"total": usage.total, "used": usage.used, "avail": usage.free} if active else {}
    return found | {"content": ",".join(storage.content), "total": 0, "used": 0, "avail": 0} | numbers


def listing(storages: Storages, name: str, known: Iterable[tuple[str, int]]) -> list[dict]:
    """Every volume of the storage; `known` are volume ids with their sizes from the guests' configurations."""
    sizes = {own_id(volid): (volid, size) for volid, size in known}
    root, kinds = storages.paths.storage(name), storages.config.get(name).content
    found: list[dict] = []
    if "images" in kinds:
        found += [_image(storages, name, file, sizes) for file in root.glob("images/*/[!.]*")]
    for kind, (pattern, folder) in EXTENSIONS.items():
        files = (root / folder).glob("[!.]*") if kind in kinds else ()
        found += [_file(f"{name}:{kind}/{file.name}", kind, file) for file in files if re.fullmatch(pattern, file.name)]
    if "backup" in kinds:
        found += backups(storages, name)
    return sorted(found, key=lambda entry: entry["volid"])


def _image(storages: Storages, storage: str, file: Path, sizes: dict[str, tuple[str, int]]) -> dict:
    block = storages.config.get(storage).kind.block
    own = f"{storage}:{file.name}" if block else f"{storage}:{file.parent.name}/{file.name}"
    volid, size = sizes.get(own, (own, 0))
    entry = _file(volid, "images", file) | {"vmid": int(file.parent.name), "parent": None}
    if base := base_of(volid):
        entry["parent"] = f"../{base.partition(':')[2]}"
    if storages.is_null(own):
        entry["size"] = size or _written_size(file) or (CLOUDINIT_SIZE if "-cloudinit" in file.name else 0)
    return entry | ({"format": "raw"} if block else {})


def _written_size(placeholder: Path) -> int:
    """A placeholder that was allocated by hand says how large it is."""
    text = placeholder.read_text(errors="replace")[:20]
    return int(text) if text.isdigit() else 0


def _file(volid: str, content: str, file: Path) -> dict:
    stat = file.stat()
    found = {"volid": volid, "content": content, "format": file.suffix[1:], "ctime": int(stat.st_mtime)}
    # Of an image to import it is the file's own size.
    found["size"] = stat.st_size if content == "import" else virtual_size(file)
    return found | ({"used": stat.st_blocks * 512} if content == "images" else {})


# Backups ------------------------------------------------------------------------------------------------------------


def beside(archive: Path, suffix: str) -> Path:
    """The file that keeps an archive's notes, or says that it is protected."""
    return archive.with_name(archive.name + suffix)


def attributes(archive: Path) -> dict:
    """Notes, protection and verification of a backup."""
    found: dict[str, object] = {}
    if (notes := beside(archive, NOTES)).exists():
        found["notes"] = notes.read_text()
    if beside(archive, PROTECTED).exists():
        found["protected"] = 1
    if (verified := beside(archive, VERIFIED)).exists():
        found["verification"] = json.loads(verified.read_text())
    return found


def backups(storages: Storages, name: str) -> list[dict]:
    """All backups of the storage."""
    folder = storages.paths.storage(name) / "dump"
    if storages.config.get(name).type == "pbs":
        return [_snapshot(name, file) for file in folder.glob("vm/*/*Z")]
    return [_archive(name, file, match) for file in folder.glob("vzdump-*") if (match := ARCHIVE.fullmatch(file.name))]


def _archive(storage: str, file: Path, match: re.Match) -> dict:
    when = datetime.strptime(match[3], "%Y_%m_%d-%H_%M_%S").astimezone()
    entry = {"volid": f"{storage}:backup/{file.name}", "content": "backup", "format": match[4], "subtype": match[1]}
    entry |= {"vmid": int(match[2]), "ctime": int(when.timestamp()), "size": file.stat().st_size}
    return entry | attributes(file)


def _snapshot(storage: str, file: Path) -> dict:
    when = datetime.strptime(file.name, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    vmid = file.parent.name
    entry = {"volid": f"{storage}:backup/vm/{vmid}/{file.name}", "content": "backup", "format": "pbs-vm"}
    entry |= {"subtype": "qemu", "vmid": int(vmid), "ctime": int(when.timestamp()), "size": file.stat().st_size}
    return entry | attributes(file)


def remove(archive: Path) -> None:
    """The backup and what is beside it."""
    for suffix in ("", NOTES, PROTECTED, VERIFIED, ".log"):
        beside(archive, suffix).unlink(missing_ok=True)
