"""/access: realms, roles, groups, permissions, ACLs and passwords. Users and their tokens are in module `users`."""

from __future__ import annotations

import re

from autovibe_lab.api.routes import Call, route
from autovibe_lab.errors import ApiError, invalid
from autovibe_lab.permissions import ACL_PATHS, normal
from autovibe_lab.usercfg import ROOT, Group, split_token


def names(text: object) -> list[str]:
    """The items of a list as Proxmox takes it."""
    return [name for name in re.split(r"[,;\s\0]+", str(text or "")) if name]


def index(*subdirs: str) -> list[dict]:
    return [{"subdir": name} for name in subdirs]


@route("GET", "/access")
async def access(call: Call) -> object:
    return index("users", "groups", "roles", "acl", "domains", "openid", "tfa", "ticket", "password")


@route("GET", "/access/ticket")
async def dummy(call: Call) -> None:
    """Proxmox has it for formatters only."""


@route("GET", "/access/permissions")
async def permissions(call: Call) -> object:
    found, authid = call.node.access.permissions, str(call.get("userid", call.user))
    if call.user not in (authid, split_token(authid)[0]):
        call.check("/access", "Sys.Audit")
    if path := call.get("path"):
        return {path: found.of(authid, normal(path))}
    return found.all_of(authid)


@route("PUT", "/access/password")
async def password(call: Call) -> None:
    """Who is not root@pam shows that it is really them: with their present password."""
    if call.user != ROOT:
        if "confirmation-password" not in call.params:
            raise invalid(**{"confirmation-password": "password is required to modify user"})
        if not call.node.access.shadow.verify(call.user, call.params["confirmation-password"]):
            raise ApiError(401, "authentication failure")
    _user(call)
    call.node.access.set_password(call.params["userid"], call.params["password"])


def _user(call: Call) -> None:
    if call.params["userid"] not in call.node.access.config.users:
        raise ApiError(500, f"no such user ('{call.params['userid']}')")


# Roles ----------------------------------------------------------------------------------------------------------------


def _privileges(call: Call) -> frozenset[str]:
    given = names(call.get("privs"))
    for name in given:
        if name not in call.node.access.permissions.known:
            raise invalid(privs=f"invalid format - invalid privilege '{name}'\n")
    return frozenset(given)


@route("GET", "/access/roles")
async def roles(call: Call) -> object:
    found = call.node.access.permissions
    return [
        {"roleid": name, "privs": ",".join(sorted(its)), "special": int(name in found.builtin)}
        for name, its in sorted(found.roles.items())
    ]


@route("GET", "/access/roles/{roleid}")
async def role(call: Call) -> object:
    found = call.node.access.permissions.role(call.params["roleid"])
    if found is None:
        raise ApiError(500, f"role '{call.params['roleid']}' does not exist")
    return dict.fromkeys(sorted(found), 1)


@route("POST", "/access/roles")
async def create_role(call: Call) -> None:
    found, name, given = call.node.access.permissions, call.params["roleid"], _privileges(call)
    if name in found.roles:
        raise ApiError(500, f"create role failed: role '{name}' already exists")
    if name.upper().startswith("PVE"):
        raise invalid(roleid="cannot use role ID starting with the (case-insensitive) 'PVE' namespace")
    call.node.access.config.roles[name] = given
    call.node.access.config.save()


@route("PUT", "/access/roles/{roleid}")
async def update_role(call: Call) -> None:
    name, config, given = call.params["roleid"], call.node.access.config, _privileges(call)
    if name in call.node.access.permissions.builtin:
        raise ApiError(500, f"auto-generated role '{name}' cannot be modified")
    if name not in config.roles:
        raise ApiError(500, f"update role failed: role '{name}' does not exist")
    config.roles[name] = config.roles[name] | given if call.get("append") else given
    config.save()


@route("DELETE", "/access/roles/{roleid}")
async def delete_role(call: Call) -> None:
    name, config = call.params["roleid"], call.node.access.config
    if name in call.node.access.permissions.builtin:
        raise ApiError(500, f"auto-generated role '{name}' cannot be deleted")
    if name not in config.roles:
        raise ApiError(500, f"delete role failed: role '{name}' does not exist")
    del config.roles[name]
    config.drop(role=name)
    config.save()


# Groups ---------------------------------------------------------------------------------------------------------------


def _comment(text: str) -> dict:
    return {"comment": text} if text else {}


@route("GET", "/access/groups")
async def groups(call: Call) -> object:
    return [
        {"groupid": name, "users": ",".join(sorted(group.members))} | _comment(group.comment)
        for name, group in sorted(call.node.access.config.groups.items())
        if call.can(f"/access/groups/{name}", "User.Modify", "Sys.Audit", "Group.Allocate", any=True)
    ]


@route("GET", "/access/groups/{groupid}")
async def group(call: Call) -> object:
    its = call.node.access.config.groups.get(call.params["groupid"])
    if its is None:
        raise ApiError(500, f"group '{call.params['groupid']}' does not exist")
    return {"members": sorted(its.members)} | _comment(its.comment)


@route("POST", "/access/groups")
async def create_group(call: Call) -> None:
    name, config = call.params["groupid"], call.node.access.config
    if name in config.groups:
        raise ApiError(500, f"create group failed: group '{name}' already exists")
    config.groups[name] = Group(call.get("comment", ""))
    config.save()


def _group(call: Call, doing: str) -> str:
    if call.params["groupid"] not in call.node.access.config.groups:
        raise ApiError(500, f"{doing} group failed: group '{call.params['groupid']}' does not exist")
    return call.params["groupid"]


@route("PUT", "/access/groups/{groupid}")
async def update_group(call: Call) -> None:
    name, config = _group(call, "update"), call.node.access.config
    config.groups[name].comment = call.get("comment", config.groups[name].comment)
    config.save()


@route("DELETE", "/access/groups/{groupid}")
async def delete_group(call: Call) -> None:
    name, config = _group(call, "delete"), call.node.access.config
    del config.groups[name]
    config.drop(subject=f"@{name}")
    config.save()


# ACLs -----------------------------------------------------------------------------------------------------------------


@route("GET", "/access/acl")
async def acl(call: Call) -> object:
    found, audit = [], call.can("/access", "Sys.Audit")
    for path, subject, role, propagate in call.node.access.config.entries():
        if audit or call.can(path, *call.node.access.permissions.may_modify(path), any=True):
            kind = "group" if subject.startswith("@") else "token" if "!" in subject else "user"
            entry = {"path": path, "type": kind, "ugid": subject.lstrip("@"), "roleid": role}
            found.append(entry | {"propagate": int(propagate)})
    return found


SUBJECTS = ("users", "groups", "tokens")


@route("PUT", "/access/acl")
async def change_acl(call: Call) -> None:
    if not any(call.get(kind) for kind in SUBJECTS):
        raise invalid(**dict.fromkeys(SUBJECTS, "either 'users', 'groups' or 'tokens' is required."))
    config, path = call.node.access.config, normal(call.params["path"])
    if not call.get("delete") and not ACL_PATHS.fullmatch(path):
        raise invalid(path=f"invalid ACL path '{call.params['path']}'")
    roles, subjects = names(call.params["roles"]), []
    propagate = bool(call.get("propagate", True))
    for role in roles:
        _may_hand_out(call, path, role, propagate)
        subjects = _subjects(call)
    for role in roles:
        for subject in subjects:
            if call.get("delete"):
                config.unset_acl(path, subject, role)
            else:
                config.set_acl(path, subject, role, propagate)
    config.save()


def _may_hand_out(call: Call, path: str, role: str, propagate: bool) -> None:
    """Without Permissions.Modify only what the caller has here can be handed out or taken."""
    found = call.node.access.permissions
    its, own = found.role(role), found.of(call.user, path)
    if its is None:
        raise ApiError(500, f"ACL update failed: role '{role}' does not exist")
    if "Permissions.Modify" in own:
        return
    verb = "remove" if call.get("delete") else "add"
    if not its <= set(own):
        raise invalid(role=f"Cannot {verb} role '{role}' - requires 'Permissions.Modify' or superset of privileges.")
    if propagate and not all(own[name] for name in its):
        raise invalid(
            role=f"Cannot {verb} role '{role}' with propagation - requires 'Permissions.Modify' or propagated superset"
            " of privileges."
        )


def _subjects(call: Call) -> list[str]:
    """Those that are named, as they stand in an ACL; an unknown one is Proxmox's 500."""
    config = call.node.access.config
    for name in names(call.get("groups")):
        if name not in config.groups:
            raise ApiError(500, f"ACL update failed: group '{name}' does not exist")
    for name in names(call.get("users")):
        if name not in config.users:
            raise ApiError(500, f"ACL update failed: user '{name}' does not exist")
    for name in names(call.get("tokens")):
        user, token = split_token(name)
        if user not in config.users:
            raise ApiError(500, f"ACL update failed: no such user ('{user}')")
        if token not in config.users[user].tokens:
            raise ApiError(500, f"ACL update failed: no such token '{token}' for user '{user}'")
    return [f"@{name}" for name in names(call.get("groups"))] + names(call.get("users")) + names(call.get("tokens"))


# Realms ---------------------------------------------------------------------------------------------------------------

#: Of a realm's parameters: its name, what to do, and secrets, which nobody here needs. The lab asks no directory.
NOT_KEPT = ("realm", "delete", "digest", "password", "client-key", "check-connection")


@route("GET", "/access/domains")
async def domains(call: Call) -> object:
    shown = ("type", "comment", "default", "tfa")
    found = call.node.access.domains
    return [{"realm": name} | {key: its[key] for key in shown if key in its} for name, its in sorted(found.items())]


def _domain(call: Call, what: str = "") -> dict:
    found = call.node.access.domains.get(call.params["realm"])
    if found is None:
        raise ApiError(500, f"{what}domain '{call.params['realm']}' does not exist")
    return found


@route("GET", "/access/domains/{realm}")
async def domain(call: Call) -> object:
    return _domain(call)


@route("POST", "/access/domains")
async def create_domain(call: Call) -> None:
    its = {name: value for name, value in call.params.items() if name not in NOT_KEPT}
    if call.params["realm"] in call.node.access.domains:
        raise ApiError(500, f"add auth server failed: domain '{call.params['realm']}' already exists")
    if its["type"] in ("pam", "pve"):
        raise ApiError(500, f"add auth server failed: unable to create builtin type '{its['type']}'")
    call.node.access.domains[call.params["realm"]] = its
    call.node.access.save_domains()


@route("PUT", "/access/domains/{realm}")
async def update_domain(call: Call) -> None:
    its = _domain(call, "update auth server failed: ")
    its.update({name: value for name, value in call.params.items() if name not in NOT_KEPT})
    for name in names(call.get("delete")):
        its.pop(name, None)
    call.node.access.save_domains()


@route("DELETE", "/access/domains/{realm}")
async def delete_domain(call: Call) -> None:
    _domain(call, "delete auth server failed: ")
    del call.node.access.domains[call.params["realm"]]
    call.node.access.save_domains()
