"""The privileges of Proxmox VE 8.4 and 9, and the roles that are always there."""

from __future__ import annotations

#: For each kind of object: what only an administrator gets, what its admin, its user and its auditor get.
GROUPS: dict[str, dict[str, str]] = {
    "VM": {
        "admin": "VM.Config.Disk VM.Config.CPU VM.Config.Memory VM.Config.Network VM.Config.HWType VM.Config.Options"
        " VM.Allocate VM.Clone VM.Migrate VM.Monitor VM.Snapshot VM.Snapshot.Rollback",
        "user": "VM.Config.CDROM VM.Config.Cloudinit VM.Console VM.Backup VM.PowerMgmt",
        "audit": "VM.Audit",
    },
    "Sys": {
        "root": "Sys.PowerMgmt Sys.Modify Sys.Incoming Sys.AccessNetwork",
        "admin": "Sys.Console Sys.Syslog",
        "audit": "Sys.Audit",
    },
    "Datastore": {
        "admin": "Datastore.Allocate Datastore.AllocateTemplate",
        "user": "Datastore.AllocateSpace",
        "audit": "Datastore.Audit",
    },
    "SDN": {"admin": "SDN.Allocate", "user": "SDN.Use", "audit": "SDN.Audit"},
    "User": {"root": "Realm.Allocate", "admin": "User.Modify Group.Allocate Realm.AllocateUser"},
    "Pool": {"admin": "Pool.Allocate", "audit": "Pool.Audit"},
    "Mapping": {"admin": "Mapping.Modify", "user": "Mapping.Use", "audit": "Mapping.Audit"},
}

#: What PVE 9 has instead of VM.Monitor.
OF_9 = {
    "admin": "VM.GuestAgent.FileRead VM.GuestAgent.FileWrite VM.GuestAgent.FileSystemMgmt VM.GuestAgent.Unrestricted"
    " VM.Replicate",
    "audit": "VM.GuestAgent.Audit",
}


def _groups(version: int) -> dict[str, dict[str, list[str]]]:
    groups = {name: {level: text.split() for level, text in levels.items()} for name, levels in GROUPS.items()}
    if version >= 9:
        groups["VM"]["admin"].remove("VM.Monitor")
        for level, text in OF_9.items():
            groups["VM"][level] += text.split()
    return groups


def privileges(version: int = 8) -> frozenset[str]:
    """Every privilege that this version knows."""
    found = {name for levels in _groups(version).values() for names in levels.values() for name in names}
    return frozenset(found | {"Permissions.Modify"})


def builtin_roles(version: int = 8) -> dict[str, frozenset[str]]:
    """The roles that Proxmox makes itself; nobody can change or delete them."""
    roles: dict[str, set[str]] = {"NoAccess": set(), "Administrator": set(privileges(version))}
    for name, levels in _groups(version).items():
        audit, user = levels.get("audit", []), levels.get("user", [])
        allowed = {*levels.get("admin", []), *user, *audit}
        roles[f"PVE{name}Admin"] = allowed
        roles.setdefault("PVEAdmin", set()).update(allowed - {"Mapping.Modify"})
        roles.setdefault("PVEAuditor", set()).update(audit)
        if user:
            roles[f"PVE{name}User"] = {*user, *audit}
    roles["PVEPoolUser"] = {"Pool.Audit"}
    roles["PVETemplateUser"] = {"VM.Clone", "VM.Audit"}
    return {name: frozenset(names) for name, names in roles.items()}
