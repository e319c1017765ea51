# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What cloud-init is told at the first boot of a template that is being made: a CD of our own.

Proxmox VE's cloud-init drive cannot have packages installed, unless root puts a snippet on the node; and a cloud image
comes without the guest agent. A CD needs no root. It is taken out and deleted when the template is sealed.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from dataclasses import dataclass
from typing import Any

from .errors import ApiError, SettingsError, TaskFailed
from .images import Upload
from .machines import Machines, persist

DRIVE = "ide2"


@dataclass(frozen=True)
class Seed:
    user_data: str
    network_config: str | None = None
    storage: str = "local"
    #: Of the template: two that are made at once have a CD each.
    version: str = ""

    def files(self) -> dict[str, str]:
        """The files of cloud-init's NoCloud."""
        found = {"meta-data": "instance-id: autovibe-template\n", "user-data": self.user_data}
        return {**found, **({"network-config": self.network_config} if self.network_config else {})}

    @property
    def name(self) -> str:
        digest = hashlib.sha256(repr([self.version, *sorted(self.files().items())]).encode()).hexdigest()
        return f"autovibe-seed-{digest[:16]}.iso"

    def config(self) -> dict[str, Any]:
        return {DRIVE: f"{self.storage}:iso/{self.name},media=cdrom"}

    def bring(self, machines: Machines) -> None:
        persist(lambda: self._bring(machines))

    def _bring(self, machines: Machines) -> None:
        where = f"/nodes/{machines.node}/storage/{self.storage}"
        listed = machines.client.get(f"{where}/content", content="iso")
        if any(entry["volid"] == f"{self.storage}:iso/{self.name}" for entry in listed):
            return
        with tempfile.NamedTemporaryFile(suffix=".iso") as file:
            file.write(_iso(self.files()))
            file.flush()
            with Upload(file.name, self.name) as content:
                upid = machines.client.post(f"{where}/upload", filename=content, content="iso")
        machines.task(upid)

    def remove(self, machines: Machines) -> None:
        """Away with it; that it is gone already, or may not be deleted, does no harm: it holds no secret."""
        where = f"/nodes/{machines.node}/storage/{self.storage}/content/{self.storage}:iso/{self.name}"
        try:
            machines.task(machines.client.delete(where))
        except (ApiError, TaskFailed):
            return


def _iso(files: dict[str, str]) -> bytes:
    """An ISO 9660 image labelled `cidata`, by which cloud-init finds it."""
    try:
        import pycdlib
    except ImportError as error:
        raise SettingsError("seed: needs Python's pycdlib where Ansible runs; pip install pycdlib.") from error
    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, vol_ident="cidata", joliet=3, rock_ridge="1.09")
    for number, (name, text) in enumerate(files.items()):
        data = text.encode()
        image.add_fp(io.BytesIO(data), len(data), f"/F{number}.;1", rr_name=name, joliet_path=f"/{name}")
    out = io.BytesIO()
    image.write_fp(out)
    image.close()
    return out.getvalue()
