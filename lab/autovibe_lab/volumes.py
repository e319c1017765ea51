"""The volumes of the node's storages: real qcow2 images on a storage of type `dir`, empty placeholders on `null` and on
those of every other type.

Work on images is done by module `disks`; a placeholder is only ever created, renamed and unlinked.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

from autovibe_lab import disks
from autovibe_lab.errors import ApiError, TaskError
from autovibe_lab.paths import BLOCK, LabPaths, VolumeError
from autovibe_lab.storages import Storage, StorageConfig

#: What Proxmox gives a cloud-init drive.
CLOUDINIT_SIZE = 4 << 20


def storage_config(paths: LabPaths) -> StorageConfig:
    """The storages of a lab: at first `local` and `null`."""
    builtin = {"local": (paths.shared, "images,import,iso,backup"), "null": (paths.shared / "null", "images")}
    return StorageConfig(paths.storage_cfg, builtin)


@dataclass(frozen=True)
class Volume:
    """A volume that was made: its id and its size in bytes."""

    volid: str
    size: int


def base_of(volid: str) -> str | None:
    """The base volume of a linked clone: `local:100/base-100-disk-0.qcow2/101/vm-101-disk-0.qcow2` → its first half."""
    storage, _, name = volid.partition(":")
    if block := BLOCK.fullmatch(name):
        return f"{storage}:{block[1]}" if block[1] else None
    parts = name.split("/")
    return f"{storage}:{parts[0]}/{parts[1]}" if len(parts) == 4 else None


def own_id(volid: str) -> str:
    """The volume without its base: what linked clones of it name as their base."""
    storage, _, name = volid.partition(":")
    if block := BLOCK.fullmatch(name):
        return f"{storage}:{block[2]}"
    return f"{storage}:{'/'.join(name.split('/')[-2:])}"


def is_base(volid: str) -> bool:
    """The disk of a template."""
    return re.split(r"[:/]", volid)[-1].startswith("base-")


class Storages:
    """The volumes of one node; with `null`, placeholders stand for all of them."""

    def __init__(self, paths: LabPaths, config: StorageConfig, null: bool = False) -> None:
        self.paths = paths
        self.config = config
        self.null = null

    def is_null(self, volid: str) -> bool:
        """Nothing but a placeholder stands for this volume."""
        name = volid.partition(":")[0]
        storage = self.config.all.get(name)
        return self.null or name == "null" or (storage is not None and storage.type != "dir")

    def check(self, storage: str) -> Storage:
        """The storage, or the 500 of one that is not there."""
        return self.config.get(storage)

    def check_images(self, storage: str) -> None:
        """The same, and the 500 of one that holds no disks of guests."""
        if "images" not in self.check(storage).content:
            raise ApiError(500, f"storage '{storage}' does not support content-type 'images'")

    def can(self, volid: str, feature: str, snapshot: str | None = None) -> bool:
        """Whether the volume's storage can do this with it, or with a snapshot of it."""
        storage = self.config.get(volid.partition(":")[0])
        if volid.endswith((".raw", ".vmdk")) and (feature == "snapshot" or snapshot):
            return False
        return storage.can(feature, "snap" if snapshot else "base" if is_base(volid) else "current")

    def volid(self, storage: str, vmid: int, name: str, form: str = "qcow2") -> str:
        """`name` as this storage writes it. What is more than a placeholder is qcow2."""
        if self.config.get(storage).kind.block:
            return f"{storage}:{name}"
        volid = f"{storage}:{vmid}/{name}.{form}"
        if form != "qcow2" and not self.is_null(volid):
            raise TaskError(f"unsupported format '{form}'")
        return volid

    def size(self, volid: str) -> int:
        """The size in bytes that a guest sees; a placeholder says it in its text."""
        path = self.path(volid)
        if not self.is_null(volid) or not path.exists():
            return virtual_size(path) if path.exists() else 0
        text = path.read_text(errors="replace")[:20]
        return int(text) if text.isdigit() else 0

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
        """The first `vm-100-disk-N` that is not there, counting bases too."""
        folder = self.paths.images(vmid, storage)
        taken = {file.name for file in folder.iterdir()} if folder.exists() else set()
        numbers = {
            int(match[1]) for name in taken if (match := re.fullmatch(r"(?:vm|base)-\d+-disk-(\d+)(?:\..*)?", name))
        }
        number = next(number for number in range(len(numbers) + 1) if number not in numbers)
        return f"vm-{vmid}-disk-{number}"

    def _placeholder(self, volid: str, size: int) -> None:
        path = self.path(volid)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(exist_ok=False)
        path.write_text(str(size))

    async def create(self, storage: str, vmid: int, size: int, form: str = "qcow2") -> Volume:
        volid = self.volid(storage, vmid, self.free_name(storage, vmid), form)
        if self.is_null(volid):
            self._placeholder(volid, size)
        else:
            await disks.create(self.path(volid), size)
        return Volume(volid, size)

    def create_cloudinit(self, storage: str, vmid: int, form: str = "qcow2") -> Volume:
        """The drive's name and place; its content is written at each start."""
        volid = self.volid(storage, vmid, f"vm-{vmid}-cloudinit", form)
        path = self.path(volid)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(CLOUDINIT_SIZE) if self.is_null(volid) else "")
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

    async def import_image(self, storage: str, vmid: int, source: str, form: str = "qcow2") -> Volume:
        path = self.import_source(source)
        size = virtual_size(path) if source.startswith("/") or ":import/" in source else self.size(source)
        volid = self.volid(storage, vmid, self.free_name(storage, vmid), form)
        if self.is_null(volid):
            self._placeholder(volid, size)
        else:
            await disks.convert_import(path, self.path(volid))
        return Volume(volid, size)

    async def linked_clone(self, base: str, vmid: int) -> str:
        storage = base.partition(":")[0]
        volid = self.volid(storage, vmid, self.free_name(storage, vmid))
        # LVM-thin does not tell a clone from another volume.
        if self.config.get(storage).type != "lvmthin":
            volid = f"{own_id(base)}/{volid.partition(':')[2]}"
        if self.is_null(volid):
            self._placeholder(volid, self.size(base))
        else:
            await disks.linked_clone(self.path(base), self.path(volid))
        return volid

    async def full_copy(self, source: str, storage: str, vmid: int, snapshot: str | None, form: str = "qcow2") -> str:
        volid = self.volid(storage, vmid, self.free_name(storage, vmid), form)
        if self.is_null(volid):
            self._placeholder(volid, self.size(source))
        elif self.is_null(source):
            raise TaskError(f"volume '{source}' is a placeholder without content to copy to '{storage}'")
        else:
            await disks.full_copy(self.path(source), self.path(volid), snapshot)
        return volid

    def to_base(self, volid: str) -> str:
        """Rename a disk to a template's: `vm-100-disk-0` → `base-100-disk-0`."""
        head, mark, name = re.fullmatch(r"(.*)([:/])(.*)", volid).groups()
        renamed = f"{head}{mark}{name.replace('vm-', 'base-', 1)}"
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
        for storage in self.config.all:
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
        if self.is_null(volid):
            self.path(volid).write_text(str(size))
        else:
            await disks.resize(self.path(volid), size)


def virtual_size(path: Path) -> int:
    """The size in bytes that a guest sees, from the head of a qcow2 image; else the file's own."""
    with path.open("rb") as file:
        head = file.read(32)
    if len(head) == 32 and head[:4] == b"QFI\xfb":
        return struct.unpack(">Q", head[24:32])[0]
    return path.stat().st_size
