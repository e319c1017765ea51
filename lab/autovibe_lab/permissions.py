"""Who may do what: the privileges of a user or token on a path, worked out as Proxmox does.

A role set on a path holds there and, if it propagates, below. What is nearer replaces what is farther; on one path a
token's own entry comes before its user's, a user's before its groups'; `NoAccess` beats every other role. Members of a
pool get the roles of the pool's path besides. A privilege-separated token has what both itself and its user have.
"""

from __future__ import annotations

import re

from autovibe_lab.errors import ApiError
from autovibe_lab.privileges import builtin_roles, privileges
from autovibe_lab.usercfg import ROOT, UserConfig, split_token

#: Privileges with whether each propagates further down, as /access/permissions shows them.
Privileges = dict[str, int]

_NAME = r"[A-Za-z0-9._-]+"
ACL_PATHS = re.compile(
    rf"/|/access(/groups(/{_NAME})?|/realm(/{_NAME})?)?|/nodes(/{_NAME})?|/pool(/{_NAME}){{0,3}}"
    rf"|/sdn(/(controllers|dns|ipams|fabrics)(/{_NAME})?|/zones(/{_NAME}(/{_NAME}(/[1-9][0-9]{{0,3}})?)?)?)?"
    rf"|/storage(/{_NAME})?|/vms(/[1-9][0-9]{{2,}})?|/mapping(/(hostpci|pci|usb|dir)(/{_NAME})?|/notifications(/{_NAME})?)?"
)

#: The paths that /access/permissions shows beside those of the ACLs and of the pools' members.
TOP = ("/", "/access", "/access/groups", "/nodes", "/pool", "/sdn", "/storage", "/vms")


def denied(what: str = "") -> ApiError:
    """The 403 of a call for which a privilege is missing."""
    return ApiError(403, "Permission check failed" + (f" ({what})" if what else ""))


def normal(path: str) -> str:
    return re.sub(r"/+", "/", f"/{path}").rstrip("/") or "/"


class Permissions:
    """What a user configuration lets whom do. `version` is Proxmox's own, 8 or 9."""

    def __init__(self, config: UserConfig, version: int = 8) -> None:
        self.config = config
        self.version = version
        self.builtin = builtin_roles(version)
        self.known = privileges(version)
        self._cache: dict[tuple[str, str], Privileges] = {}
        self._generation = -1

    def role(self, name: str) -> frozenset[str] | None:
        """The privileges of a role, or None."""
        return self.builtin.get(name, self.config.roles.get(name))

    @property
    def roles(self) -> dict[str, frozenset[str]]:
        return self.config.roles | self.builtin

    # What somebody has ------------------------------------------------------------------------------------------------

    def of(self, authid: str, path: str) -> Privileges:
        """The privileges of a user or token on this path."""
        if self._generation != self.config.generation:
            self._cache.clear()
            self._generation = self.config.generation
        found = self._cache.get((authid, path))
        if found is None:
            found = self._cache[authid, path] = self._work_out(authid, path)
        return found

    def _work_out(self, authid: str, path: str) -> Privileges:
        if authid == ROOT:
            return dict.fromkeys(self.known, 1)
        user, token = split_token(authid)
        if user not in self.config.users:
            return {}
        if token is None:
            return self._privileges(self._roles_with_pools(authid, path))
        its = self.config.users[user].tokens.get(token)
        if its is None:
            return {}
        of_user = self.of(user, path)
        if not its.privsep:
            return of_user
        own = self._privileges(self._roles_with_pools(authid, path))
        return {name: int(flag and of_user[name]) for name, flag in own.items() if name in of_user}

    def _privileges(self, roles: dict[str, bool]) -> Privileges:
        found: Privileges = {}
        for role, propagate in roles.items():
            for name in self.role(role) or ():
                if name in self.known:
                    found[name] = int(found.get(name, 0) or propagate)
        return found

    def _roles_with_pools(self, authid: str, path: str) -> dict[str, bool]:
        roles = self._roles(authid, path)
        pools = self._pools_of(path)
        if not pools or "NoAccess" in roles:
            return roles
        of_pools = [role for pool in pools for role in self._roles(authid, f"/pool/{pool}")]
        if "NoAccess" in of_pools:
            return {"NoAccess": False}
        return dict.fromkeys(of_pools, False) | roles

    def _pools_of(self, path: str) -> list[str]:
        kind, _, name = path[1:].partition("/")
        if kind == "vms" and name.isdigit():
            return [pool for pool, its in self.config.pools.items() if int(name) in its.vms]
        if kind == "storage" and name:
            return [pool for pool, its in self.config.pools.items() if name in its.storages]
        return []

    def _roles(self, authid: str, path: str) -> dict[str, bool]:
        """The roles that the ACLs of this path and of those above give; pools are not looked at."""
        roles: dict[str, bool] = {}
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts) + 1):
            entries = self.config.acls.get("/" + "/".join(parts[:depth]))
            if entries:
                final = depth == len(parts)
                roles = self._of_entries(authid, entries, final) or roles
        return {"NoAccess": roles["NoAccess"]} if "NoAccess" in roles else roles

    def _of_entries(self, authid: str, entries: dict[str, dict[str, bool]], final: bool) -> dict[str, bool]:
        def holding(subject: str) -> dict[str, bool]:
            return {role: flag for role, flag in entries.get(subject, {}).items() if final or flag}

        if own := holding(authid):
            return own
        found: dict[str, bool] = {}
        for subject in entries:
            group = self.config.groups.get(subject[1:]) if subject.startswith("@") else None
            if group and authid in group.members:
                found |= holding(subject)
        return found

    def all_of(self, authid: str) -> dict[str, Privileges]:
        """The privileges on every path that is named anywhere, as GET /access/permissions shows them."""
        paths = {*TOP, *self.config.acls}
        for pool in self.config.pools.values():
            paths |= {f"/vms/{vmid}" for vmid in pool.vms} | {f"/storage/{storage}" for storage in pool.storages}
        return {path: found for path in sorted(paths) if (found := self.of(authid, path))}

    # Checks -----------------------------------------------------------------------------------------------------------

    def can(self, authid: str, path: str, *names: str, any: bool = False) -> bool:
        """Whether all of these privileges, or `any` of them, are there."""
        found = self.of(authid, path)
        return (max if any else min)(name in found for name in names)

    def check(self, authid: str, path: str, *names: str, any: bool = False) -> None:
        """The 403 that names the path and the first privilege that is missing, or all of which one would do."""
        if self.can(authid, path, *names, any=any):
            return
        missing = "|".join(names) if any else next(name for name in names if name not in self.of(authid, path))
        raise denied(f"{path}, {missing}")

    def may_modify(self, path: str) -> list[str]:
        """The privileges of which one lets somebody change who may do what on this path."""
        also = {"storage": ["Datastore.Allocate"], "vms": ["VM.Allocate"], "pool": ["Pool.Allocate"]}
        kind, _, name = path[1:].partition("/")
        return ["Permissions.Modify", *(also.get(kind, []) if name else [])]

    def capabilities(self, authid: str) -> dict[str, dict[str, int]]:
        """What a login answers as `cap`: by kind of object, the privileges held anywhere."""
        of_kind = {"vms": "VM.", "access": "User.|Group.", "storage": "Datastore.", "nodes": "Sys.", "sdn": "SDN."}
        of_kind |= {"mapping": "Mapping.", "dc": "Sys.Audit$|Sys.Modify$|SDN."}
        found: dict[str, dict[str, int]] = {kind: {} for kind in of_kind}
        for path in ("/", "/nodes", "/access/groups", "/vms", "/storage", "/sdn", "/mapping", *self.config.acls):
            kind = path.split("/")[1] or "dc"
            held = self.of(authid, path)
            kinds = ("vms", "storage") if kind == "pool" else (kind,) if kind in of_kind else ()
            for kind in kinds:
                pattern = re.compile("(" + of_kind[kind].replace(".", r"\.") + ")")
                modify = "Permissions.Modify" in held and kind != "dc"
                found[kind] |= {name: 1 for name in held if pattern.match(name)}
                if modify:
                    found[kind]["Permissions.Modify"] = 1
        return found
