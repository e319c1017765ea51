# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Templates: a disk image made into a VM that others are cloned from, one version for each set of inputs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from .checkpoints import Checkpoints
from .config import Identity
from .errors import ApiError, NotFound, NotPossible
from .machines import Change, Machines, Raced, persist


@dataclass(frozen=True)
class Inputs:
    """What a template is made of; its version is their hash."""

    name: str
    disk: str
    storage: str
    cores: int = 1
    memory: int = 512
    bridge: str = "vmbr1"
    cloudinit_storage: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)

    def version(self) -> str:
        text = json.dumps(self.__dict__, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def config(self) -> dict[str, Any]:
        """The parameters that create the VM. A `disk` like `null:1` is a new one of that size (GiB)."""
        size = self.disk.rpartition(":")[2]
        scsi0 = self.disk if size.isdigit() else f"{self.storage}:0,import-from={self.disk}"
        return {
            "name": self.name,
            "cores": self.cores,
            "memory": self.memory,
            "ostype": "l26",
            "scsihw": "virtio-scsi-single",
            "scsi0": scsi0,
            "ide2": f"{self.cloudinit_storage or self.storage}:cloudinit",
            "net0": f"virtio,bridge={self.bridge}",
            "agent": "enabled=1",
            "boot": "order=scsi0",
            "serial0": "socket",
            **self.options,
        }


class Templates:
    def __init__(self, machines: Machines):
        self.machines, self.client = machines, machines.client
        self.checkpoints = Checkpoints(machines)

    def ensure(
        self,
        inputs: Inputs,
        *,
        installation: str | None,
        vmid: int | None = None,
        pool: str | None = None,
        tags: list[str] | None = None,
        check: bool = False,
    ) -> Change:
        """The template's version for these inputs; an older version of the same name stays beside it."""
        identity = Identity.of(installation=installation, template=inputs.name, inputs=inputs.version())
        found = self._find(identity, inputs.name, vmid)
        after = {"name": inputs.name, "inputs": inputs.version(), "template": True}
        if found and self._is_template(found):
            return Change(after, after, self._facts(found, inputs, identity))
        if check:
            return Change({}, after, self._facts(found or vmid, inputs, identity))
        values = {
            **inputs.config(),
            "description": identity.line(),
            "tags": ";".join(tags or ["autovibe"]),
            "pool": pool,
        }
        made = persist(lambda: self._create(found, vmid, identity, values))
        persist(lambda: self.checkpoints.convert(made))
        return Change({}, after, self._facts(made, inputs, identity))

    def convert(self, vmid: int, *, check: bool = False) -> Change:
        """A VM that is there, stopped and without snapshots, as a template."""
        seen = self.machines.settled(vmid)
        if seen is None:
            raise NotFound(f"VM {vmid} does not exist on node {self.machines.node}.")
        facts = {"name": seen.config.get("name"), "vm_id": vmid, "node": self.machines.node, "inputs": None}
        if seen.running:
            raise NotPossible(f"VM {vmid} is running; only a stopped VM can become a template.")
        if not seen.template and not check:
            persist(lambda: self.checkpoints.convert(vmid))
        return Change({"template": seen.template}, {"template": True}, facts)

    def _find(self, identity: Identity, name: str, vmid: int | None) -> int | None:
        if vmid is not None:
            seen = self.machines.settled(vmid)
            if seen is not None:
                self.machines.check_identity(seen, identity)
                self._refuse_other_version(seen.config, identity, vmid)
            return vmid if seen else None
        for vm in self.machines.list():
            if vm.get("name") == name:
                config = self.machines.config(vm["vmid"]) or {}
                if identity.owns(config.get("description")) and _version(config) == identity.get("inputs"):
                    return int(vm["vmid"])
        return None

    def _refuse_other_version(self, config: dict[str, Any], identity: Identity, vmid: int) -> None:
        if _version(config) != identity.get("inputs"):
            raise NotPossible(
                f"VM {vmid} is another version of template '{identity.get('template')}' (inputs {_version(config)}, "
                f"wanted {identity.get('inputs')}); give the new version another VM id."
            )

    def _is_template(self, vmid: int) -> bool:
        seen = self.machines.settled(vmid)
        return bool(seen and seen.template)

    def _create(self, found: int | None, vmid: int | None, identity: Identity, values: dict[str, Any]) -> int:
        if found is not None:
            return found
        # Looked for again: a pass whose answer was lost may have made it.
        again = self._find(identity, values["name"], vmid)
        if again is not None:
            return again
        new = vmid or int(self.client.get("/cluster/nextid"))
        try:
            self.machines.task(self.client.post(f"/nodes/{self.machines.node}/qemu", vmid=new, **values))
        except ApiError as error:
            if error.id_taken:
                raise Raced(f"VM id {new}.") from error
            raise
        return new

    def _facts(self, vmid: int | None, inputs: Inputs, identity: Identity) -> dict[str, Any]:
        return {"name": inputs.name, "vm_id": vmid, "node": self.machines.node, "inputs": identity.get("inputs")}


def _version(config: dict[str, Any]) -> str | None:
    identity = Identity.parse(config.get("description"))
    return identity.get("inputs") if identity else None
