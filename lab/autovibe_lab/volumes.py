"""The node's storages: `local` holds real qcow2 images, `null` empty placeholders of the same names.

Work on `local` is done by module `disks`; a volume of `null` is only ever created, renamed and unlinked.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from autovibe_lab import disks
from autovibe_lab.errors import ApiError, TaskError
from autovibe_lab.paths import LabPaths, VolumeError

CONTENT = {"local": "images,import,iso", "null": "images"}

#: Files that are listed as images and ISOs.
IMAGES = (".qcow2", ".raw", ".vmdk", ".iso", ".img")

#: What Proxmox gives a cloud-init drive.
CLOUDINIT_SIZE = 4 << 20


@dataclass(frozen=True)
class Volume:
    """A volume that was made: its id and its size in bytes."""

    volid: str
    size: int


def is_null(volid: str) -> bool:
    return volid.startswith("null:")


def base_of(volid: str) -> str | None:
    """The base volume of a linked clone: `local:100/base-100-disk-0.qcow2/101/vm-101-disk-0.qcow2` → its first half."""
    storage, _, name = volid.partition(":")
    parts = name.split("/")
    return f"{storage}:{parts[0]}/{parts[1]}" if len(parts) == 4 else None


def own_id(volid: str) -> str:
    """The volume without its base: what linked clones of it name as their base."""
    storage, _, name = volid.partition(":")
    return f"{storage}:{'/'.join(name.split('/')[-2:])}"


def is_base(volid: str) -> bool:
    """The disk of a template."""
    return volid.rpartition("/")[2].startswith("base-")


class Storages:
    """Both storages; with `null`, placeholders stand on `local` too."""

    def __init__(self, paths: LabPaths, null: bool = False) -> None:
        self.paths = paths
        self.null = null

    def is_null(self, volid: str) -> bool:
        """Nothing but a placeholder stands for this volume."""
        return self.null or is_null(volid)

    def check(self, storage: str) -> None:
        if storage not in CONTENT:
            raise ApiError(500, f"storage '{storage}' does not exist")

    def path(self, volid: str) -> Path:
        try:
            return self.paths.volume(volid)
        except VolumeError as error:
            raise TaskError(str(error)) from None

    def exists(self, volid: str) -> bool:
        try:
            return self.paths.volume(volid).exists()
        except VolumeError:
            return False

    def free_name(self, storage: str, vmid: int) -> str:
        """The first `vm-100-disk-N.qcow2` that is not there, counting bases too."""
        folder = self.paths.images(vmid, storage)
        taken = {file.name for file in folder.iterdir()} if folder.exists() else set()
        numbers = {int(match[1]) for name in taken if (match := re.fullmatch(r"(?:vm|base)-\d+-disk-(\d+)\..*", name))}
        number = next(number for number in range(len(numbers) + 1) if number not in numbers)
        return f"vm-{vmid}-disk-{number}.qcow2"

    def _placeholder(self, volid: str) -> None:
        path = self.path(volid)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(exist_ok=False)

    async def create(self, storage: str, vmid: int, size: int) -> Volume:
        volid = f"{storage}:{vmid}/{self.free_name(storage, vmid)}"
        if self.is_null(volid):
            self._placeholder(volid)
        else:
            await disks.create(self.path(volid), size)
        return Volume(volid, size)

    def create_cloudinit(self, storage: str, vmid: int) -> Volume:
        """The drive's name and place; its content is written at each start."""
        volid = f"{storage}:{vmid}/vm-{vmid}-cloudinit.qcow2"
        path = self.path(volid)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return Volume(volid, CLOUDINIT_SIZE)

    def import_source(self, text: str) -> Path:
        """The file that `import-from` names: a volume id or an absolute path."""
        if text.startswith("/"):
            path = Path(text)
            if not path.exists():
                raise TaskError(f"can't find file '{text}'")
            return path
        path = self.path(text)
        if not path.exists():
            raise TaskError(f"volume '{text}' does not exist")
        return path

    async def import_image(self, storage: str, vmid: int, source: str) -> Volume:
        path = self.import_source(source)
        size = virtual_size(path)
        volid = f"{storage}:{vmid}/{self.free_name(storage, vmid)}"
        if self.is_null(volid):
            self._placeholder(volid)
        else:
            await disks.convert_import(path, self.path(volid))
        return Volume(volid, size)

    async def linked_clone(self, base: str, vmid: int) -> str:
        storage = base.partition(":")[0]
        name = self.free_name(storage, vmid)
        volid = f"{own_id(base)}/{vmid}/{name}"
        if self.is_null(volid):
            self._placeholder(volid)
        else:
            await disks.linked_clone(self.path(base), self.path(volid))
        return volid

    async def full_copy(self, source: str, storage: str, vmid: int, snapshot: str | None) -> str:
        volid = f"{storage}:{vmid}/{self.free_name(storage, vmid)}"
        if self.is_null(volid):
            self._placeholder(volid)
        elif self.is_null(source):
            raise TaskError(f"clone failed: volume '{source}' of storage 'null' has no content to copy to '{storage}'")
        else:
            await disks.full_copy(self.path(source), self.path(volid), snapshot)
        return volid

    def to_base(self, volid: str) -> str:
        """Rename a disk to a template's: `vm-100-disk-0` → `base-100-disk-0`."""
        head, slash, name = volid.rpartition("/")
        renamed = f"{head}{slash}{name.replace('vm-', 'base-', 1)}"
        path = self.path(volid)
        if path.exists():
            path.rename(self.path(renamed))
        return renamed

    def delete(self, volid: str) -> None:
        """Delete the volume and, when it was the last, the guest's folder."""
        path = self.path(volid)
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()

    def delete_all_of(self, vmid: int) -> None:
        """Delete every volume of the guest, whether a configuration names it or not."""
        for storage in CONTENT:
            shutil.rmtree(self.paths.images(vmid, storage), ignore_errors=True)

    async def snapshot_create(self, volid: str, name: str) -> None:
        if not self.is_null(volid):
            await disks.snapshot_create(self.path(volid), name)

    async def snapshot_apply(self, volid: str, name: str) -> None:
        if not self.is_null(volid):
            await disks.snapshot_apply(self.path(volid), name)

    async def snapshot_delete(self, volid: str, name: str) -> None:
        if not self.is_null(volid):
            await disks.snapshot_delete(self.path(volid), name)

    async def resize(self, volid: str, size: int) -> None:
        if not self.is_null(volid):
            await disks.resize(self.path(volid), size)

    # What the API shows -----------------------------------------------------------------------------------------

    def status(self, storage: str) -> dict:
        usage = shutil.disk_usage(self.paths.state)
        found = {"type": "dir", "active": 1, "enabled": 1, "shared": 0, "content": CONTENT[storage]}
        return found | {"total": usage.total, "used": usage.used, "avail": usage.free}

    def content(self, storage: str, known: Iterable[tuple[str, int]]) -> list[dict]:
        """Every volume of the storage; `known` are volume ids with their sizes from the guests' configurations."""
        sizes: dict[str, tuple[str, int]] = {own_id(volid): (volid, size) for volid, size in known}
        found = [self._image(storage, file, sizes) for file in self.paths.storage(storage).glob("images/*/*.*")]
        if storage == "local":
            for kind, folder in (("import", self.paths.imports), ("iso", self.paths.state / "template" / "iso")):
                found += [
                    _file(f"local:{kind}/{file.name}", kind, file)
                    for file in folder.glob("[!.]*")
                    if file.suffix in IMAGES
                ]
        return sorted((entry for entry in found if entry), key=lambda entry: entry["volid"])

    def _image(self, storage: str, file: Path, sizes: dict[str, tuple[str, int]]) -> dict | None:
        if file.name.startswith("."):
            return None
        own = f"{storage}:{file.parent.name}/{file.name}"
        volid, size = sizes.get(own, (own, 0))
        base = base_of(volid)
        entry = _file(volid, "images", file) | {"vmid": int(file.parent.name), "parent": None}
        if base:
            entry["parent"] = f"../{base.partition(':')[2]}"
        if self.is_null(own):
            entry["size"] = size
        return entry


def _file(volid: str, content: str, file: Path) -> dict:
    stat = file.stat()
    found = {"volid": volid, "content": content, "format": file.suffix[1:], "ctime": int(stat.st_mtime)}
    return found | {"size": virtual_size(file), "used": stat.st_blocks * 512}


def virtual_size(path: Path) -> int:
    """The size in bytes that a guest sees, from the head of a qcow2 image; else the file's own."""
    with path.open("rb") as file:
        head = file.read(32)
    if len(head) == 32 and head[:4] == b"QFI\xfb":
        return struct.unpack(">Q", head[24:32])[0]
    return path.stat().st_size
