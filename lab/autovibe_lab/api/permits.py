"""What each call needs, before its parameters are even looked at: Proxmox's own declarations, one line a call.

A line is `METHODS PATH : NEED`. In a path `*` is one segment and `**` all that follow; the first line that fits
counts. A need is `PATH PRIVILEGES` (all of `A,B`, any of `A|B`), `self` (it is about the caller), `group PRIVILEGES` (
on a group of the user it is about), `groups PRIVILEGES` (on those it names), `realm` (Realm.AllocateUser on that
user's realm), `modify PATH` (may change permissions there), `all` (everybody who is let in), `world` (everybody);
`agent` and `monitor` differ between Proxmox 8 and 9. `&` binds closest, then `or`, then `and`; `… if NAME` fails
without that parameter. A call without a line is root's alone.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from autovibe_lab.errors import ApiError
from autovibe_lab.permissions import Permissions, denied, normal
from autovibe_lab.usercfg import ROOT

CONFIG = "VM.Config.Disk|VM.Config.CDROM|VM.Config.CPU|VM.Config.Memory|VM.Config.Network|VM.Config.HWType"
CONFIG += "|VM.Config.Options|VM.Config.Cloudinit"

PERMITS = f"""
GET,POST /access/ticket : world
GET /access/domains : world
GET /access : all
GET /access/acl : all
PUT /access/acl : modify {{path}}
GET /access/permissions : all
GET /access/domains/* : /access/realm Realm.Allocate|Sys.Audit
POST /access/domains/*/sync : /access/realm/{{realm}} Realm.AllocateUser and /access/groups User.Modify
POST,PUT,DELETE /access/domains/** : /access/realm Realm.Allocate
GET /access/groups : all
GET /access/groups/* : /access/groups Sys.Audit|Group.Allocate
POST,PUT,DELETE /access/groups/** : /access/groups Group.Allocate
GET /access/roles/** : all
POST,PUT,DELETE /access/roles/** : /access Sys.Modify
PUT /access/password : self or realm & group User.Modify
GET /access/tfa : all
GET /access/tfa/** : self or group User.Modify|Sys.Audit
POST,PUT,DELETE /access/tfa/** : self or group User.Modify
GET /access/users : all
POST /access/users : realm and groups User.Modify
GET /access/users/* : group User.Modify|Sys.Audit
PUT /access/users/* : group User.Modify and groups User.Modify if groups
DELETE /access/users/* : realm and group User.Modify
GET /access/users/*/tfa : self or group User.Modify|Sys.Audit
PUT /access/users/*/unlock-tfa : group User.Modify
GET,POST,PUT,DELETE /access/users/*/token/** : self or group User.Modify

GET /pools : all
GET /pools/** : /pool/{{poolid}} Pool.Audit
POST,PUT,DELETE /pools/** : /pool/{{poolid}} Pool.Allocate

GET / : all
GET /version : all
GET /cluster : all
GET /cluster/nextid : all
GET /cluster/resources : all
GET /cluster/tasks : all
GET /cluster/log : all
GET /cluster/options : all
PUT /cluster/options : / Sys.Modify
GET /cluster/ha/status : all
GET /cluster/ha/** : / Sys.Audit
GET /cluster/replication/** : all
GET /cluster/firewall : all
GET /cluster/firewall/groups : all
GET /cluster/firewall/macros : all
GET /cluster/sdn : /sdn SDN.Audit
GET /cluster/sdn/** : all
POST /cluster/sdn/zones : /sdn/zones SDN.Allocate
PUT,DELETE /cluster/sdn/zones/* : /sdn/zones/{{zone}} SDN.Allocate
POST /cluster/sdn/vnets : /sdn/zones/{{zone}} SDN.Allocate
PUT /cluster/sdn : /sdn SDN.Allocate
GET /cluster/mapping/** : all
GET /cluster/backup-info : root
GET /cluster/** : / Sys.Audit
POST,PUT,DELETE /cluster/replication/** : /storage Datastore.Allocate
POST,PUT,DELETE /cluster/firewall/** : / Sys.Modify
POST,PUT,DELETE /cluster/backup/** : / Sys.Modify
POST,PUT,DELETE /cluster/ha/** : / Sys.Console

GET /storage : all
GET /storage/* : /storage/{{storage}} Datastore.Allocate
POST,PUT,DELETE /storage/** : /storage Datastore.Allocate

GET /nodes : all
GET /nodes/* : all
GET /nodes/*/version : all
GET /nodes/*/network : all
GET /nodes/*/aplinfo : all
GET /nodes/*/replication : all
GET /nodes/*/firewall : all
GET /nodes/*/sdn : all
GET /nodes/*/lxc : all
GET /nodes/*/config : / Sys.Audit
GET /nodes/*/hosts : / Sys.Audit
GET /nodes/*/journal : /nodes/{{node}} Sys.Syslog
GET /nodes/*/syslog : /nodes/{{node}} Sys.Syslog
GET /nodes/*/firewall/log : /nodes/{{node}} Sys.Syslog
POST /nodes/*/status : /nodes/{{node}} Sys.PowerMgmt
GET /nodes/*/tasks/** : all
DELETE /nodes/*/tasks/** : all
POST /nodes/*/startall : all
POST /nodes/*/stopall : all
POST /nodes/*/suspendall : all
POST /nodes/*/migrateall : all
POST /nodes/*/vzdump : all
GET /nodes/*/vzdump/** : all

GET /nodes/*/storage : all
POST /nodes/*/storage/*/upload : /storage/{{storage}} Datastore.AllocateTemplate
POST /nodes/*/storage/*/download-url : /storage/{{storage}} Datastore.AllocateTemplate \
and / Sys.Audit,Sys.Modify or /nodes/{{node}} Sys.AccessNetwork
GET /nodes/*/query-url-metadata : / Sys.Audit,Sys.Modify or /nodes/{{node}} Sys.AccessNetwork
DELETE /nodes/*/storage/*/prunebackups : all
GET /nodes/*/storage/*/import-metadata : all
GET /nodes/*/storage/*/file-restore/** : all
GET,PUT,DELETE /nodes/*/storage/*/content/* : all
POST /nodes/*/storage/*/content : /storage/{{storage}} Datastore.AllocateSpace
GET /nodes/*/storage/*/** : /storage/{{storage}} Datastore.Audit|Datastore.AllocateSpace

GET /nodes/*/qemu : all
POST /nodes/*/qemu : all
GET /nodes/*/qemu/* : all
DELETE /nodes/*/qemu/* : /vms/{{vmid}} VM.Allocate
GET /nodes/*/qemu/*/status : all
GET /nodes/*/qemu/*/status/current : /vms/{{vmid}} VM.Audit
POST /nodes/*/qemu/*/status/* : /vms/{{vmid}} VM.PowerMgmt
GET /nodes/*/qemu/*/agent : all
GET,POST /nodes/*/qemu/*/agent/** : agent
POST /nodes/*/qemu/*/agent : agent
POST /nodes/*/qemu/*/monitor : monitor
POST /nodes/*/qemu/*/clone : /vms/{{vmid}} VM.Clone and /vms/{{newid}} VM.Allocate or /pool/{{pool}} VM.Allocate if pool
PUT,POST /nodes/*/qemu/*/config : /vms/{{vmid}} {CONFIG}
PUT /nodes/*/qemu/*/cloudinit : /vms/{{vmid}} VM.Config.Cloudinit
PUT /nodes/*/qemu/*/resize : /vms/{{vmid}} VM.Config.Disk
PUT /nodes/*/qemu/*/unlink : /vms/{{vmid}} VM.Config.Disk
POST /nodes/*/qemu/*/move_disk : /vms/{{vmid}} VM.Config.Disk
POST /nodes/*/qemu/*/template : /vms/{{vmid}} VM.Allocate
GET,POST /nodes/*/qemu/*/migrate : /vms/{{vmid}} VM.Migrate
POST /nodes/*/qemu/*/remote_migrate : /vms/{{vmid}} VM.Migrate
POST /nodes/*/qemu/*/snapshot : /vms/{{vmid}} VM.Snapshot
GET /nodes/*/qemu/*/snapshot/*/config : /vms/{{vmid}} VM.Snapshot|VM.Snapshot.Rollback|VM.Audit
PUT /nodes/*/qemu/*/snapshot/*/config : /vms/{{vmid}} VM.Snapshot
POST /nodes/*/qemu/*/snapshot/*/rollback : /vms/{{vmid}} VM.Snapshot|VM.Snapshot.Rollback
GET /nodes/*/qemu/*/snapshot/* : all
DELETE /nodes/*/qemu/*/snapshot/* : /vms/{{vmid}} VM.Snapshot
GET /nodes/*/qemu/*/firewall : all
GET /nodes/*/qemu/*/firewall/log : /vms/{{vmid}} VM.Console
GET /nodes/*/qemu/*/firewall/** : /vms/{{vmid}} VM.Audit
POST,PUT,DELETE /nodes/*/qemu/*/firewall/** : /vms/{{vmid}} VM.Config.Network
PUT /nodes/*/qemu/*/sendkey : /vms/{{vmid}} VM.Console
POST /nodes/*/qemu/*/vncproxy : /vms/{{vmid}} VM.Console
POST /nodes/*/qemu/*/termproxy : /vms/{{vmid}} VM.Console
POST /nodes/*/qemu/*/spiceproxy : /vms/{{vmid}} VM.Console
GET /nodes/*/qemu/*/** : /vms/{{vmid}} VM.Audit

GET /nodes/*/subscription : all
GET /nodes/*/hardware : all
GET /nodes/*/disks : all
GET /nodes/*/disks/** : / Sys.Audit
GET /nodes/*/hardware/** : / Sys.Audit|Sys.Modify
GET /nodes/*/replication/** : all
GET /nodes/*/sdn/zones : all
GET /nodes/*/sdn/zones/** : /sdn/zones/{{zone}} SDN.Audit
GET /nodes/*/** : /nodes/{{node}} Sys.Audit
PUT /nodes/*/config : / Sys.Modify
POST /nodes/*/wakeonlan : /nodes/{{node}} Sys.PowerMgmt
PUT,POST,DELETE /nodes/*/dns : /nodes/{{node}} Sys.Modify
PUT,POST,DELETE /nodes/*/hosts : /nodes/{{node}} Sys.Modify
PUT,POST,DELETE /nodes/*/time : /nodes/{{node}} Sys.Modify
PUT,POST,DELETE /nodes/*/network/** : /nodes/{{node}} Sys.Modify
PUT,POST,DELETE /nodes/*/services/** : /nodes/{{node}} Sys.Modify
PUT,POST,DELETE /nodes/*/firewall/** : /nodes/{{node}} Sys.Modify
"""


@dataclass(frozen=True)
class Asking:
    """One call as its needs see it: who makes it, and its parameters before they are checked."""

    permissions: Permissions
    authid: str
    params: dict[str, object]
    method: str
    template: str

    def text(self, name: str) -> str:
        return str(self.params.get(name, ""))

    def path(self, template: str) -> str:
        return normal(re.sub(r"{(\w+)}", lambda match: self.text(match[1]), template))


@functools.cache
def _lines() -> list[tuple[set[str], re.Pattern, str]]:
    found = []
    for line in PERMITS.strip().splitlines():
        call, _, need = line.partition(" : ")
        if need:
            methods, path = call.split()
            pattern = re.escape(path).replace(r"/\*\*", "(/.*)?").replace(r"\*", "[^/]+")
            found.append((set(methods.split(",")), re.compile(pattern), need))
    return found


@functools.cache
def need_of(method: str, template: str) -> str | None:
    """The need of a call, or None when it is root's alone. `template` as its route has it."""
    path = re.sub(r"{[^}]*}", "x", template)
    needs = (need for methods, pattern, need in _lines() if method in methods and pattern.fullmatch(path))
    need = next(needs, "root")
    return None if need == "root" else need


def check(asking: Asking) -> None:
    """Raises the 403 of a call that the caller may not make."""
    if asking.authid == ROOT:
        return
    need = need_of(asking.method, asking.template)
    if need is None:
        raise denied("user != root@pam")
    for part in need.split(" and "):
        choices = part.split(" or ")
        if len(choices) == 1:
            _demand(asking, part)
        elif not any(_holds(asking, choice) for choice in choices):
            raise denied()


def _holds(asking: Asking, choice: str) -> bool:
    try:
        for part in choice.split(" & "):
            _demand(asking, part)
    except ApiError:
        return False
    return True


def _demand(asking: Asking, need: str) -> None:
    """Raises the 403 of one need."""
    need, _, required = need.partition(" if ")
    if required and required not in asking.params:
        if need.startswith("groups"):  # a change that names no groups
            return
        raise denied()
    kind, _, names = need.partition(" ")
    if kind in ("all", "world"):
        return
    if kind.startswith("/"):
        _check(asking, asking.path(kind), names)
    elif kind == "modify":
        path = asking.path(names)
        asking.permissions.check(asking.authid, path, *asking.permissions.may_modify(path), any=True)
    elif kind in ("agent", "monitor"):
        _check(asking, asking.path("/vms/{vmid}"), _inside_guest(asking))
    else:
        _about_user(asking, kind, names)


def _check(asking: Asking, path: str, names: str) -> None:
    any = "|" in names
    asking.permissions.check(asking.authid, path, *re.split("[,|]", names), any=any)


#: PVE 9: what the commands of the guest agent need there. VM.GuestAgent.Unrestricted is enough for each.
AGENT_9 = {
    "file-read": "VM.GuestAgent.FileRead",
    "file-write": "VM.GuestAgent.FileWrite",
    "exec": "VM.GuestAgent.Unrestricted",
    "exec-status": "VM.GuestAgent.Unrestricted",
    "set-user-password": "VM.GuestAgent.Unrestricted",
    "fsfreeze-freeze": "VM.GuestAgent.FileSystemMgmt",
    "fsfreeze-thaw": "VM.GuestAgent.FileSystemMgmt",
    "fstrim": "VM.GuestAgent.FileSystemMgmt",
    "shutdown": "VM.PowerMgmt",
    "suspend-disk": "VM.PowerMgmt",
    "suspend-hybrid": "VM.PowerMgmt",
    "suspend-ram": "VM.PowerMgmt",
}


def _inside_guest(asking: Asking) -> str:
    if asking.permissions.version < 9:
        return "VM.Monitor"
    if asking.template.endswith("/monitor"):
        return "Sys.Modify"
    command = asking.template.rpartition("/")[2]
    name = AGENT_9.get(asking.text("command") if command == "agent" else command, "VM.GuestAgent.Audit")
    return name if name.endswith("Unrestricted") else f"{name}|VM.GuestAgent.Unrestricted"


# About users ----------------------------------------------------------------------------------------------------------


def _about_user(asking: Asking, kind: str, names: str) -> None:
    """`self`, `realm`, `group` (that the user is in) and `groups` (that the call names)."""
    permissions, userid = asking.permissions, asking.text("userid")
    if kind == "self":
        if asking.authid != userid:
            raise denied()
    elif kind == "realm":
        permissions.check(asking.authid, f"/access/realm/{userid.partition('@')[2]}", "Realm.AllocateUser")
    elif permissions.can(asking.authid, "/access/groups", *names.split("|"), any=True):
        return
    elif kind == "groups":
        for group in re.findall(r"[^,; ]+", asking.text("groups")) or [""]:
            path = normal(f"/access/groups/{group}")
            permissions.check(asking.authid, path, *names.split("|"), any=True)
    else:
        _in_a_group_of(asking, userid, names.split("|"))


def _in_a_group_of(asking: Asking, userid: str, names: list[str]) -> None:
    """The user must be in a group on which the caller has one of these privileges."""
    permissions = asking.permissions
    if userid not in permissions.config.users:
        raise ApiError(500, f"no such user ('{userid}')")
    for name, group in permissions.config.groups.items():
        path = f"/access/groups/{name}"
        if userid in group.members and permissions.can(asking.authid, path, *names, any=True):
            return
    raise denied()
