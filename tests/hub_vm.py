"""A VM that an admin has made by hand, for a hub to run in, as far as a lab goes."""

from __future__ import annotations

import uuid
from typing import Any

from test_least_privilege import USER, Admin

#: What role proxmox_host gives the token on the hub's VM.
PRIVILEGES = "VM.Audit,VM.Config.Options,VM.Snapshot"


def hub_admin(lab: Any) -> Admin:
    """root@pam of a lab (its `folder` and `url`), who has made that role."""
    root = Admin(lab)
    root.call("POST", "access/roles", roleid="AutovibeHub", privs=PRIVILEGES)
    return root


class Vm:
    """A VM that an admin has made by hand, in no pool; what an admin sees of it."""

    def __init__(
        self, admin: Admin, vmid: int, *, granted: bool = True, smbios_uuid: str | None = None, **config: Any
    ) -> None:
        self.admin, self.id, self.uuid = admin, vmid, smbios_uuid or str(uuid.uuid4())
        made = {"name": f"hub-{vmid}", "memory": 2048, "scsi0": "null:4", "agent": 1} | config
        admin.call("POST", "nodes/pve1/qemu", vmid=vmid, smbios1=f"uuid={self.uuid}", **made)
        admin.call("POST", f"nodes/pve1/qemu/{vmid}/status/start")
        if granted:
            self.grant()

    def grant(self) -> None:
        for whose in ({"users": USER}, {"tokens": (self.admin.lab.folder / "token-id").read_text().strip()}):
            self.admin.call("PUT", "access/acl", path=f"/vms/{self.id}", roles="AutovibeHub", **whose)

    @property
    def config(self) -> dict[str, Any]:
        return self.admin.call("GET", f"nodes/pve1/qemu/{self.id}/config")

    @property
    def status(self) -> dict[str, Any]:
        return self.admin.call("GET", f"nodes/pve1/qemu/{self.id}/status/current")

    @property
    def snapshots(self) -> set[str]:
        listed = self.admin.call("GET", f"nodes/pve1/qemu/{self.id}/snapshot")
        return {one["name"] for one in listed} - {"current"}
