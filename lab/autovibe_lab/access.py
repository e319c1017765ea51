"""Everything about who may do what, in one place: users, their secrets, realms, pools, and the checks."""

from __future__ import annotations

import json
import os
from pathlib import Path

from autovibe_lab.permissions import Permissions
from autovibe_lab.pools import Pools
from autovibe_lab.shadow import Shadow, write_secret
from autovibe_lab.usercfg import ROOT, User, UserConfig, split_token

#: The realms that are always there.
REALMS = {
    "pam": {"type": "pam", "comment": "Linux PAM standard authentication"},
    "pve": {"type": "pve", "comment": "Proxmox VE authentication server"},
}


class Access:
    """The users, groups, roles, ACLs and pools of a cluster, kept in `folder`. `version` is Proxmox's own, 8 or 9."""

    def __init__(self, folder: Path, version: int = 8) -> None:
        self.folder = folder
        self.version = version
        self.config = UserConfig(folder / "user.cfg")
        self.shadow = Shadow(folder / "priv" / "shadow.cfg")
        self.permissions = Permissions(self.config, version)
        self.pools = Pools(self.config)
        self._domains = folder / "domains.json"
        self.domains: dict[str, dict] = dict(REALMS)
        if self._domains.exists():
            self.domains |= json.loads(self._domains.read_text())

    def save_domains(self) -> None:
        part = self._domains.with_name(".domains.json.new")
        part.write_text(json.dumps(self.domains, indent=1))
        os.replace(part, self._domains)

    def alive(self, authid: str, now: float) -> bool:
        """Whether this user or token is known, enabled, and not past its time."""
        name, token = split_token(authid)
        user = self.config.users.get(name)
        if user is None or not user.enable or 0 < user.expire <= now:
            return False
        if token is None:
            return True
        its = user.tokens.get(token)
        return its is not None and not 0 < its.expire <= now

    def set_password(self, userid: str, password: str) -> None:
        """A new password; that of root@pam is told in the state folder, as the first one was."""
        self.shadow.set_password(userid, password)
        if userid == ROOT:
            write_secret(self.folder / "root-password", password)

    def user(self, userid: str) -> User | None:
        return self.config.users.get(userid)

    def forget_guest(self, vmid: int) -> None:
        """A guest is gone: so are its place in a pool and its ACLs."""
        self.config.drop(path=f"/vms/{vmid}")
        self.pools.remove(vmid)
        self.config.save()
