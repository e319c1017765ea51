"""Where the lab keeps its files: Proxmox's own forms under one state folder."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

#: A unix socket's path ends within 108 bytes; this leaves room for "/<vmid>.agent.sock" and the like.
LONGEST_RUN_FOLDER = 70

STORAGE_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9]")
#: A volume on a block storage, whose name has no folder: `vm-100-disk-0`, `base-100-disk-0/vm-101-disk-0`.
BLOCK = re.compile(r"(?:(base-\d+-[^/\s]+)/)?((?:vm|base)-(\d+)-[^/\s]+)")
TEMPLATES = {"iso": "iso", "vztmpl": "cache"}


class VolumeError(Exception):
    """This is not a volume of the lab."""


@dataclass(frozen=True)
class Network:
    """What guests can reach: `hub_port` on the host's loopback, as 192.168.100.2:8000 inside."""

    hub_port: int


@dataclass(frozen=True)
class LabPaths:
    """The files of one lab. Nothing here creates a folder but `make()`.

    ::

        qemu-server/100.conf            a guest's configuration, with snapshot sections
        images/100/vm-100-disk-0.qcow2  volumes of storage `local`
        import/autovibe-guest.qcow2     disk images to import, storage `local`
        template/iso/                   ISO images, storage `local`
        null/images/100/…               volumes of storage `null`: empty placeholders
        dump/                           backups on storage `local`
        storage.cfg, storage/NAME/…     the storages, and the volumes of all others
        firewall/100.fw                 firewalls of guests, the node (host.fw) and all (cluster.fw)
        tasks/                          one log and one status file a task
        jobs.cfg                        planned backups
        user.cfg                        pools
        nodes/pve2/…                    the same of a further node; volumes of `null`, pools and sockets are shared
    """

    state: Path
    #: The state folder of the first node, when this is another one's: what the nodes share is there.
    first: Path | None = None

    @property
    def shared(self) -> Path:
        return self.first or self.state

    def of_node(self, name: str) -> LabPaths:
        """The paths of another node of the same cluster: `nodes/pve2/…`."""
        return LabPaths(self.state / "nodes" / name, self.state)

    def conf(self, vmid: int) -> Path:
        return self.confs / f"{vmid}.conf"

    @property
    def confs(self) -> Path:
        return self.state / "qemu-server"

    def images(self, vmid: int, storage: str = "local") -> Path:
        return self.storage(storage) / "images" / str(vmid)

    @property
    def imports(self) -> Path:
        return self.state / "import"

    @property
    def tasks(self) -> Path:
        return self.state / "tasks"

    @property
    def firewall(self) -> Path:
        return self.shared / "firewall"

    @property
    def jobs_cfg(self) -> Path:
        return self.shared / "jobs.cfg"

    @property
    def storage_cfg(self) -> Path:
        return self.shared / "storage.cfg"

    @property
    def user_cfg(self) -> Path:
        return self.shared / "user.cfg"

    @property
    def run(self) -> Path:
        """Sockets and pid files (mode 0700). Where the state's path is too long for sockets: a folder in /tmp."""
        folder = self.shared / "run"
        if len(os.fsencode(folder)) <= LONGEST_RUN_FOLDER:
            return folder
        digest = hashlib.sha256(os.fsencode(self.shared.absolute())).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"autovibe-lab-{os.getuid()}-{digest}"

    def closed(self, vmid: int, iface: str) -> Path:
        """The file that keeps the guest from the hub while it is there."""
        return self.run / f"{vmid}.{iface}.closed"

    def storage(self, name: str) -> Path:
        """The folder of a storage."""
        if name == "local":
            return self.state
        if name == "null":
            return self.shared / "null"
        if not STORAGE_ID.fullmatch(name):
            raise VolumeError(f"storage '{name}' does not exist")
        shared = self.shared / "storage" / name
        return shared if shared.exists() else self.state / "storage" / name

    def volume(self, volid: str) -> Path:
        """The file of a volume id: `local:100/vm-100-disk-0.qcow2`, `local:import/x.qcow2`, `local:iso/x.iso`, and
        linked clones as Proxmox writes them, `local:100/base-100-disk-0.qcow2/101/vm-101-disk-0.qcow2`."""
        storage, colon, name = volid.partition(":")
        parts = name.split("/")
        if colon and (block := BLOCK.fullmatch(name)):
            return self.storage(storage) / "images" / block[3] / block[2]
        if colon and parts[0] == "backup" and ".." not in parts:
            return self.storage(storage).joinpath("dump", *parts[1:])
        if not colon or len(parts) not in (2, 4) or any(part in ("", ".", "..") for part in parts):
            raise VolumeError(f"unable to parse volume ID '{volid}'")
        folder, file = parts[-2:]
        root = self.storage(storage)
        if folder in ("iso", "vztmpl"):
            return root / "template" / TEMPLATES[folder] / file
        if folder in ("import", "snippets"):
            return root / folder / file
        if not folder.isdigit():
            raise VolumeError(f"unable to parse volume ID '{volid}'")
        return root / "images" / folder / file

    def make(self) -> None:
        """Create the folders that must stand."""
        for folder in (self.state, self.run):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        for folder in (self.confs, self.imports, self.tasks, self.state / "images", self.shared / "null" / "images"):
            folder.mkdir(parents=True, exist_ok=True)
        (self.state / "template" / "iso").mkdir(parents=True, exist_ok=True)
