"""Users, tokens, groups, roles, ACLs and pools, as they stand in `user.cfg` in Proxmox's form; secrets stand elsewhere.

::

    user:dev@pve:1:0:First:Last:mail@example.com:comment:keys:
    token:dev@pve!ci:0:1:comment:
    group:builders:dev@pve:comment:
    pool:lab:comment:100,101:local:
    role:Builder:VM.Audit,VM.Clone:
    acl:1:/pool/lab:dev@pve,dev@pve!ci,@builders:Builder:
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

ROOT = "root@pam"


@dataclass
class Pool:
    comment: str = ""
    vms: set[int] = field(default_factory=set)
    storages: set[str] = field(default_factory=set)


@dataclass
class Token:
    """An API token; `expire` in seconds since the epoch, 0 for never."""

    privsep: bool = True
    expire: int = 0
    comment: str = ""


@dataclass
class User:
    enable: bool = True
    expire: int = 0
    firstname: str = ""
    lastname: str = ""
    email: str = ""
    comment: str = ""
    keys: str = ""
    tokens: dict[str, Token] = field(default_factory=dict)


@dataclass
class Group:
    comment: str = ""
    members: set[str] = field(default_factory=set)


#: Who has a role on a path: `dev@pve`, `dev@pve!ci` or `@group` → role → whether it propagates.
Entries = dict[str, dict[str, bool]]


def split_token(authid: str) -> tuple[str, str | None]:
    """The user and, of a token, its name."""
    user, mark, token = authid.partition("!")
    return user, token if mark else None


def _text(value: str) -> str:
    """Text between colons."""
    return quote(value, safe=" @/!,;=()+*'\"")


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


class UserConfig:
    """The content of one `user.cfg`. Whoever changes it calls `save`."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.users: dict[str, User] = {}
        self.groups: dict[str, Group] = {}
        self.roles: dict[str, frozenset[str]] = {}
        self.pools: dict[str, Pool] = {}
        self.acls: dict[str, Entries] = {}
        #: Grows with every change: what was worked out of an older one is void.
        self.generation = 0
        for line in file.read_text().splitlines() if file.exists() else ():
            kind, *fields = line.split(":")
            if reader := getattr(self, f"_read_{kind}", None):
                reader(*(fields + [""] * 8)[:8])
        self.users.setdefault(ROOT, User())

    def _read_user(self, name: str, enable: str, expire: str, *texts: str) -> None:
        self.users[name] = User(enable == "1", int(expire or 0), *map(unquote, texts[:5]))

    def _read_token(self, name: str, expire: str, privsep: str, comment: str, *_: str) -> None:
        user, token = split_token(name)
        if user in self.users and token:
            self.users[user].tokens[token] = Token(privsep == "1", int(expire or 0), unquote(comment))

    def _read_group(self, name: str, members: str, comment: str, *_: str) -> None:
        self.groups[name] = Group(unquote(comment), set(_names(members)))

    def _read_pool(self, name: str, comment: str, vms: str, storages: str, *_: str) -> None:
        self.pools[name] = Pool(unquote(comment), {int(vmid) for vmid in _names(vms)}, set(_names(storages)))

    def _read_role(self, name: str, privileges: str, *_: str) -> None:
        self.roles[name] = frozenset(_names(privileges))

    def _read_acl(self, propagate: str, path: str, subjects: str, roles: str, *_: str) -> None:
        for subject in _names(subjects):
            for role in _names(roles):
                self.acls.setdefault(path, {}).setdefault(subject, {})[role] = propagate == "1"

    def lines(self) -> list[str]:
        found = []
        for name, user in sorted(self.users.items()):
            texts = (user.firstname, user.lastname, user.email, user.comment, user.keys)
            found.append(f"user:{name}:{int(user.enable)}:{user.expire}:{':'.join(map(_text, texts))}:")
            for token, its in sorted(user.tokens.items()):
                found.append(f"token:{name}!{token}:{its.expire}:{int(its.privsep)}:{_text(its.comment)}:")
        for name, group in sorted(self.groups.items()):
            found.append(f"group:{name}:{','.join(sorted(group.members))}:{_text(group.comment)}:")
        for name, pool in sorted(self.pools.items()):
            vms, storages = ",".join(map(str, sorted(pool.vms))), ",".join(sorted(pool.storages))
            found.append(f"pool:{name}:{_text(pool.comment)}:{vms}:{storages}:")
        found += [f"role:{name}:{','.join(sorted(names))}:" for name, names in sorted(self.roles.items())]
        for path, subject, role, propagate in self.entries():
            found.append(f"acl:{int(propagate)}:{path}:{subject}:{role}:")
        return found

    def entries(self) -> list[tuple[str, str, str, bool]]:
        """Path, subject, role and whether it propagates of every ACL."""
        return [
            (path, subject, role, propagate)
            for path, subjects in sorted(self.acls.items())
            for subject, roles in sorted(subjects.items())
            for role, propagate in sorted(roles.items())
        ]

    def save(self) -> None:
        self.generation += 1
        part = self.file.with_name(f".{self.file.name}.new")
        part.write_text("".join(f"{line}\n" for line in self.lines()))
        os.replace(part, self.file)

    def set_acl(self, path: str, subject: str, role: str, propagate: bool = True) -> None:
        self.acls.setdefault(path, {}).setdefault(subject, {})[role] = propagate

    def unset_acl(self, path: str, subject: str, role: str) -> None:
        """Take a role away; what is not there is no error."""
        roles = self.acls.get(path, {}).get(subject, {})
        roles.pop(role, None)
        self._sweep()

    def drop(self, *, path: str | None = None, subject: str | None = None, role: str | None = None) -> None:
        """Forget every ACL of this path, of this subject (and of a user's tokens), or of this role."""
        for where, subjects in self.acls.items():
            for name, roles in subjects.items():
                if where == path or (subject and name in (subject, *self._tokens_of(subject))):
                    roles.clear()
                elif role:
                    roles.pop(role, None)
        self._sweep()

    def _tokens_of(self, user: str) -> list[str]:
        return [f"{user}!{token}" for token in self.users[user].tokens] if user in self.users else []

    def _sweep(self) -> None:
        """No entry without roles stays, no path without entries."""
        kept = {path: {name: roles for name, roles in names.items() if roles} for path, names in self.acls.items()}
        self.acls = {path: names for path, names in kept.items() if names}
