# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The image that a template is made of: what it is (its fingerprint), and where the node finds it (its volume)."""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from .errors import NotFound, SettingsError
from .machines import Machines, persist

#: Lengths of the hashes, in hexadecimal digits.
ALGORITHMS = {"md5": 32, "sha1": 40, "sha224": 56, "sha256": 64, "sha384": 96, "sha512": 128}
#: Of a file that is uploaded or downloaded: so many digits of its hash stand in its name.
DIGITS = 16
EXTENSION = re.compile(r"\.(qcow2|raw|vmdk|img)$")
NEW_DISK = re.compile(r"[^:/]+:\d+(\.\d+)?")


@dataclass(frozen=True)
class Image:
    """One of: a volume (or a new disk, `local:8`), a file where Ansible runs, a URL."""

    volume: str | None = None
    file: str | None = None
    url: str | None = None
    checksum: str | None = None
    storage: str = "local"

    def fingerprint(self, machines: Machines) -> str | None:
        """What changes when the image does. None for a new disk, which has no content."""
        if self.file:
            return self._checked(f"sha256:{file_hash(self.file, 'sha256')}")
        if self.url and not self.checksum:
            raise SettingsError("image_url: give the checksum, too; it says whether the image is still the same.")
        if self.checksum:
            algorithm, _colon, digest = self._parts()
            return f"{algorithm}:{digest}"
        if NEW_DISK.fullmatch(self.volume or ""):
            return None
        found = self._listed(machines, self.volume or "")
        if found is None:
            raise NotFound(f"disk_source: there is no volume {self.volume} on node {machines.node}.")
        return f"size={found['size']} ctime={found.get('ctime', 0)}"

    def obtain(self, machines: Machines, fingerprint: str | None) -> str:
        """The volume, brought to the node when it is not there."""
        if self.volume:
            return self.volume
        volume = self.place(fingerprint or "")
        # Two templates of one image, at once: one process brings it.
        name = hashlib.sha256(volume.encode()).hexdigest()[:16]
        with machines.tasks.shared(machines.node).alone(f"image-{name}", machines.tasks.timeout):
            persist(lambda: self._bring(machines, volume))
        return volume

    def place(self, fingerprint: str) -> str:
        """The volume of this image: its name carries the hash, so that another content is another volume."""
        name = posixpath.basename(self.file or urlsplit(self.url or "").path)
        match = EXTENSION.search(name)
        if not match:
            raise SettingsError(f"image: '{name}' is not the name of a .qcow2, .raw, .img or .vmdk file.")
        # Cloud images are qcow2 under whatever name; Proxmox VE reads an import's format from its ending.
        ending = match[0].replace(".img", ".qcow2")
        stem = re.sub(r"[^A-Za-z0-9_.-]", "-", name[: match.start()])
        return f"{self.storage}:import/{stem}-{fingerprint.partition(':')[2][:DIGITS]}{ending}"

    def _bring(self, machines: Machines, volume: str) -> None:
        if self.file:  # another controller's upload stands in the list before it is whole
            machines.tasks.node = machines.node
            machines.tasks.settle_own(kind="imgcopy")
        if self._listed(machines, volume):
            return
        name = volume.rpartition("/")[2]
        where = f"/nodes/{machines.node}/storage/{self.storage}"
        values: dict[str, Any] = {"content": "import"}
        if self.file:
            with Upload(self.file, name) as content:
                upid = machines.client.post(f"{where}/upload", filename=content, **values)
        else:
            algorithm, _colon, digest = self._parts()
            values |= {"url": self.url, "filename": name, "checksum": digest, "checksum__algorithm": algorithm}
            upid = machines.client.post(f"{where}/download-url", **values)
        machines.task(upid)

    def _listed(self, machines: Machines, volume: str) -> dict[str, Any] | None:
        storage = volume.partition(":")[0]
        listed = machines.client.get(f"/nodes/{machines.node}/storage/{storage}/content")
        return next((entry for entry in listed if entry["volid"] == volume), None)

    def _parts(self) -> tuple[str, str, str]:
        algorithm, colon, digest = (self.checksum or "").lower().partition(":")
        if len(digest) != ALGORITHMS.get(algorithm) or not re.fullmatch("[0-9a-f]+", digest):
            raise SettingsError(f"checksum: '{self.checksum}' is not ALGORITHM:HASH, such as sha256:2c26b46b…")
        return algorithm, colon, digest

    def _checked(self, fingerprint: str) -> str:
        """The file's own hash; what was given has to fit it."""
        if self.checksum:
            algorithm, _colon, digest = self._parts()
            found = file_hash(self.file or "", algorithm)
            if found != digest:
                raise SettingsError(f"image_file: {self.file} has the {algorithm} {found}, not {digest}.")
        return fingerprint


class Upload(io.FileIO):
    """A file that is uploaded under another name than its own."""

    def __init__(self, path: str, name: str):
        super().__init__(path, "rb")
        self.name = name


def file_hash(path: str, algorithm: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()
    except OSError as error:
        raise SettingsError(f"image_file: {path}: {os.strerror(error.errno or 0)}.") from error
