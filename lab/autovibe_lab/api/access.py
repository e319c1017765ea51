"""/access: tickets and permissions. Whoever is let in may do everything but what only root's ticket may."""

from __future__ import annotations

from autovibe_lab.api.routes import Call, route
from autovibe_lab.schema import STRING, opt

PRIVILEGES = [
    "Datastore.Allocate",
    "Datastore.AllocateSpace",
    "Datastore.AllocateTemplate",
    "Datastore.Audit",
    "Pool.Allocate",
    "Pool.Audit",
    "SDN.Use",
    "Sys.Audit",
    "Sys.Modify",
    "VM.Allocate",
    "VM.Audit",
    "VM.Backup",
    "VM.Clone",
    "VM.Config.CDROM",
    "VM.Config.CPU",
    "VM.Config.Cloudinit",
    "VM.Config.Disk",
    "VM.Config.HWType",
    "VM.Config.Memory",
    "VM.Config.Network",
    "VM.Config.Options",
    "VM.Console",
    "VM.Migrate",
    "VM.Monitor",
    "VM.PowerMgmt",
    "VM.Snapshot",
    "VM.Snapshot.Rollback",
]


@route("GET", "/access/ticket")
async def dummy(call: Call) -> None:
    """Proxmox has it for formatters only."""


@route("GET", "/access/permissions", path=opt(STRING), userid=opt(STRING))
async def permissions(call: Call) -> object:
    paths = [call.get("path")] if "path" in call.params else ["/", "/access", "/nodes", "/pool", "/storage", "/vms"]
    return {path: dict.fromkeys(PRIVILEGES, 1) for path in paths}


@route("GET", "/access/domains")
async def domains(call: Call) -> object:
    return [{"realm": "pam", "type": "pam", "comment": "Linux PAM standard authentication"}]


@route("GET", "/access/users")
async def users(call: Call) -> object:
    return [{"userid": name, "enable": 1, "expire": 0} for name in ("root@pam", "autovibe@pve")]
