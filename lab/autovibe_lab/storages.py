"""The storages that are configured: `storage.cfg` in Proxmox's own form, and what each type of storage can do.

::

    dir: local
            path /var/lib/vz
            content iso,backup
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from autovibe_lab.errors import ApiError

IMAGES = "images"
FILES = frozenset({"images", "rootdir", "vztmpl", "iso", "backup", "snippets", "import", "none"})
BLOCKS = frozenset({"images", "rootdir", "none"})
#: What a disk can be asked for, as a pair: the feature, and of what (`current`, `snap`shot, `base` of a template).
FILE_FEATURES = frozenset(
    {("snapshot", "current"), ("snapshot", "snap"), ("clone", "base"), ("template", "current")}
    | {("copy", what) for what in ("base", "current", "snap")}
)
THIN_FEATURES = frozenset(
    {("snapshot", "current"), ("clone", "base"), ("clone", "snap"), ("template", "current")}
    | {("copy", what) for what in ("base", "current", "snap")}
)
#: ZFS can copy neither a snapshot nor clone one through the API.
ZFS_FEATURES = frozenset(
    {("snapshot", "current"), ("snapshot", "snap"), ("clone", "base"), ("template", "current")}
    | {("copy", what) for what in ("base", "current")}
)


@dataclass(frozen=True)
class Kind:
    """A type of storage. `block`: its volumes have no folder and no format in their names; `rollback_past`: disks can
    be rolled back past newer snapshots."""

    required: tuple[str, ...]
    content: frozenset[str]
    default: str
    features: frozenset[tuple[str, str]] = frozenset()
    block: bool = False
    shared: bool = False
    rollback_past: bool = True
    fixed: tuple[str, ...] = ()


_files = {"content": FILES, "default": "images,rootdir,vztmpl,iso,backup,snippets", "features": FILE_FEATURES}
_blocks = {"content": BLOCKS, "default": "images,rootdir", "block": True}
KINDS = {
    "btrfs": Kind(("path",), **_files),
    "cephfs": Kind((), FILES - {"images", "rootdir"}, "backup,iso,vztmpl", shared=True),
    "cifs": Kind(("server", "share"), **_files, shared=True),
    "dir": Kind(("path",), **_files),
    "esxi": Kind(("server", "username", "password"), frozenset({"import"}), "import"),
    "glusterfs": Kind(("volume",), **_files, shared=True),
    "iscsi": Kind(("portal", "target"), frozenset({"images", "none"}), "images", block=True, shared=True),
    "iscsidirect": Kind(("portal", "target"), frozenset({"images", "none"}), "images", block=True, shared=True),
    "lvm": Kind(("vgname",), **_blocks, features=frozenset({("copy", "current"), ("copy", "base")})),
    "lvmthin": Kind(("vgname", "thinpool"), **_blocks, features=THIN_FEATURES),
    "nfs": Kind(("server", "export"), **_files, shared=True),
    "pbs": Kind(("server", "datastore"), frozenset({"backup", "none"}), "backup", shared=True),
    "rbd": Kind((), **_blocks, features=THIN_FEATURES, shared=True),
    "zfs": Kind(("portal", "target", "pool", "blocksize", "iscsiprovider"), **_blocks, shared=True),
    "zfspool": Kind(("pool",), **_blocks, features=ZFS_FEATURES, rollback_past=False),
}
#: The lab's own storage is one that all nodes share.
SHARED = ("null",)
#: Options of every type.
COMMON = {"nodes", "content", "disable", "shared", "bwlimit", "prune-backups", "max-protected-backups", "maxfiles"}
#: Options of a type beside those that it requires.
OPTIONS = {
    "dir": {"mkdir", "create-base-path", "create-subdirs", "is_mountpoint", "format", "preallocation", "content-dirs"},
    "nfs": {
        "path",
        "options",
        "format",
        "preallocation",
        "mkdir",
        "content-dirs",
        "create-base-path",
        "create-subdirs",
    },
    "lvmthin": set(),
    "lvm": {"base", "saferemove", "saferemove_throughput", "tagged_only"},
    "zfspool": {"blocksize", "sparse", "mountpoint"},
    "pbs": {"namespace", "username", "password", "port", "fingerprint", "encryption-key", "master-pubkey"}
    | {"skip-cert-verification"},
}
#: Never shown again.
SECRET = ("password", "encryption-key", "keyring", "master-pubkey")


@dataclass
class Storage:
    """One storage as it is configured."""

    id: str
    type: str
    options: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        return KINDS[self.type]

    @property
    def content(self) -> list[str]:
        return [kind for kind in self.options.get("content", self.kind.default).split(",") if kind != "none"]

    @property
    def enabled(self) -> bool:
        return self.options.get("disable", "0") != "1"

    @property
    def shared(self) -> bool:
        return self.id in SHARED or self.kind.shared or self.options.get("shared", "0") == "1"

    def on(self, node: str) -> bool:
        """Whether this node has it."""
        nodes = self.options.get("nodes")
        return not nodes or node in re.split(r"[,; ]+", nodes)

    def can(self, feature: str, what: str = "current") -> bool:
        return (feature, what) in self.kind.features


class StorageConfig:
    """`storage.cfg`. `builtin` storages are there from the start; a lab's folder is where it is, so their path is not
    read from the file."""

    def __init__(self, file: Path, builtin: dict[str, tuple[Path, str]]) -> None:
        self.file = file
        self.all: dict[str, Storage] = {}
        if file.exists():
            self._parse(file.read_text())
        for name, (path, content) in builtin.items():
            if not file.exists():
                self.all[name] = Storage(name, "dir", {"content": content})
            if name in self.all:
                self.all[name].options["path"] = str(path)

    def as_installed(self) -> None:
        """A new node has `local` only, before anything is written into the file: with priority 0 and every content."""
        if not self.file.exists():
            path = self.all["local"].options["path"]
            content = "backup,images,iso,rootdir,snippets,vztmpl"
            options = {"path": path, "content": content, "prune-backups": "keep-all=1", "priority": "0"}
            self.all = {"local": Storage("local", "dir", options)}

    def _parse(self, text: str) -> None:
        storage = None
        for line in text.splitlines():
            if match := re.fullmatch(r"(\w+): (\S+)", line):
                storage = self.all[match[2]] = Storage(match[2], match[1])
            elif storage and line.strip():
                key, _, value = line.strip().partition(" ")
                storage.options[key] = value or "1"

    def text(self) -> str:
        parts = []
        for storage in self.all.values():
            lines = (f"\t{key} {value}\n" for key, value in storage.options.items() if key not in SECRET)
            parts.append(f"{storage.type}: {storage.id}\n" + "".join(lines) + "\n")
        return "".join(parts)

    def digest(self) -> str:
        return hashlib.sha1(self.text().encode(), usedforsecurity=False).hexdigest()

    def save(self) -> None:
        for storage in self.all.values():
            storage.options.pop("priority", None)
        part = self.file.with_name(f".{self.file.name}.new")
        part.write_text(self.text())
        os.replace(part, self.file)

    def get(self, name: str) -> Storage:
        """The storage, or the 500 of one that is not there."""
        if name not in self.all:
            raise ApiError(500, f"storage '{name}' does not exist")
        return self.all[name]

    def add(self, name: str, type: str, options: dict[str, str]) -> None:
        self._check(type, options)
        for key in KINDS[type].required:
            if key not in options:
                raise ApiError(500, f"missing value for required option '{key}'")
        if name in self.all:
            raise ApiError(500, f"create storage failed: storage ID '{name}' already defined")
        self.all[name] = Storage(name, type, {"content": KINDS[type].default} | options)
        self.save()

    def change(self, name: str, options: dict[str, str], delete: list[str]) -> None:
        if name not in self.all:
            raise ApiError(500, f"update storage failed: storage '{name}' does not exist")
        storage = self.all[name]
        for key in options:
            if key in storage.kind.required:
                raise ApiError(500, f"can't change value of fixed parameter '{key}'")
        self._check(storage.type, options)
        for key in delete:
            if key in options:
                raise ApiError(500, f"unable to set and delete property '{key}' at the same time!")
            if key in storage.kind.required:
                raise ApiError(500, f"unable to delete required option '{key}'")
            if key not in COMMON | OPTIONS.get(storage.type, set()):
                raise ApiError(500, f"no such option '{key}'")
            storage.options.pop(key, None)
        storage.options |= options
        self.save()

    def remove(self, name: str) -> None:
        if name not in self.all:
            raise ApiError(500, f"delete storage failed: storage '{name}' does not exist")
        del self.all[name]
        self.save()

    def _check(self, type: str, options: dict[str, str]) -> None:
        kind, known = KINDS[type], OPTIONS.get(type)
        for key in options:
            if known is not None and key not in COMMON | known | set(kind.required):
                raise ApiError(500, f"unexpected property '{key}'")
        for content in options.get("content", "").split(","):
            if content and content not in kind.content:
                raise ApiError(500, f"storage does not support content type '{content}'")
