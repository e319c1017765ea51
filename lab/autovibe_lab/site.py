"""What a site's admin has made before autovibe comes: a pool, and a user with a token that may do what it needs there.

`least` gives the token exactly what the collection needs (the table in `lab/README.md`), `full` everything but what
only root may, `bare` makes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from autovibe_lab.access import Access
from autovibe_lab.auth import TOKEN_ID
from autovibe_lab.usercfg import Token, User, split_token

POOL = "autovibe"
SITES = ("least", "full", "bare")

#: What the token may do with the guests of its pool, by version of Proxmox.
MACHINES = (
    "Pool.Audit VM.Allocate VM.Audit VM.Backup VM.Clone VM.Config.CPU VM.Config.Disk"
    " VM.Config.HWType VM.Config.Memory VM.Config.Network VM.Config.Options VM.PowerMgmt VM.Snapshot"
)
#: For the guest agent's commands; that of 9 includes VM.GuestAgent.Audit, FileRead, FileWrite and FileSystemMgmt.
INSIDE = {8: "VM.Monitor", 9: "VM.GuestAgent.Unrestricted"}


def roles(version: int = 8) -> dict[str, frozenset[str]]:
    """The roles of the token."""
    inside = INSIDE[version]
    return {
        "AutovibeMachines": frozenset(f"{MACHINES} {inside}".split()),
        "AutovibeStorage": frozenset({"Datastore.AllocateSpace"}),
        "AutovibeNetwork": frozenset({"SDN.Use"}),
        "AutovibeBuild": frozenset({"VM.Config.CDROM"}),
        "AutovibeImages": frozenset({"Datastore.AllocateSpace", "Datastore.AllocateTemplate"}),
        "AutovibeDownload": frozenset({"Sys.AccessNetwork"}),
    }


def prepare(access: Access, site: str, storages: Iterable[str], bridges: Iterable[str]) -> None:
    """Make what is missing. Once the user is there it is the admin's: what was taken from it stays taken."""
    config = access.config
    user, token = split_token(TOKEN_ID)
    if site == "bare" or user in config.users:
        return
    config.users[user] = User(comment="Runs the machines of autovibe", tokens={token: Token()})
    if site == "full":
        where = [("/", "Administrator")]
    else:
        config.roles |= roles(access.version)
        where = [(f"/pool/{POOL}", "AutovibeMachines"), (f"/pool/{POOL}", "AutovibeBuild")]
        where += [("/storage/local", "AutovibeImages"), ("/nodes/pve1", "AutovibeDownload")]
        where += [(f"/storage/{storage}", "AutovibeStorage") for storage in storages]
        where += [(f"/sdn/zones/localnetwork/{bridge}", "AutovibeNetwork") for bridge in bridges]
    for path, role in where:
        for subject in (user, TOKEN_ID):
            config.set_acl(path, subject, role)
    config.save()
