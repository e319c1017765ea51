"""Who is calling: a user by a ticket and its CSRF token, or an API token by its secret."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from autovibe_lab.access import Access
from autovibe_lab.errors import ApiError
from autovibe_lab.shadow import write_secret
from autovibe_lab.usercfg import ROOT

TOKEN_ID = "autovibe@pve!autovibe"
TICKET_SECONDS = 7200


def kept(path: Path) -> str:
    """The secret of this file, made at first use."""
    if not path.exists():
        write_secret(path, secrets.token_hex(24))
    return path.read_text().strip()


@dataclass(frozen=True)
class Secrets:
    """The lab's secrets. They last as long as its state folder does."""

    root_password: str
    token_secret: str
    lab_token: str
    key: str

    @classmethod
    def load(cls, state: Path) -> Secrets:
        (state / "token-id").write_text(TOKEN_ID)
        names = ("root-password", "token-secret", "lab-token", "auth-key")
        return cls(*(kept(state / name) for name in names))


class Refused(Exception):
    """A 401 with an empty body; the message is the reason phrase."""


class Auth:
    """Logins and tickets. The password of root@pam and the secret of the lab's own token are kept in files."""

    def __init__(self, secrets: Secrets, access: Access) -> None:
        self.secrets = secrets
        self.access = access
        if ROOT not in access.shadow.hashes:
            access.shadow.set_password(ROOT, secrets.root_password)
        access.shadow.set_secret(TOKEN_ID, secrets.token_secret)

    def _sign(self, text: str) -> str:
        return hmac.new(self.secrets.key.encode(), text.encode(), hashlib.sha256).hexdigest()

    def _alive(self, authid: str) -> bool:
        return self.access.alive(authid, time.time())

    def ticket(self, params: dict[str, object]) -> dict:
        """The answer of POST /access/ticket; raises the 401 that has a body."""
        user = str(params["username"])
        user = user if "@" in user else f"{user}@{params.get('realm', 'pam')}"
        password = str(params["password"])
        # A ticket is a password too: so a client renews it.
        valid = self._alive(user) and (self._ticket_user(password) == user or self._password(user, password))
        if not valid:
            raise ApiError(401, "authentication failure")
        if "path" in params:
            self.access.permissions.check(user, str(params["path"]), *re.findall(r"[\w.]+", str(params["privs"])))
        issued = f"{int(time.time()):08X}"
        ticket = f"PVE:{user}:{issued}"
        return {
            "username": user,
            "ticket": f"{ticket}::{self._sign(ticket)}",
            "CSRFPreventionToken": f"{issued}:{self._sign(f'CSRF:{issued}:{user}')}",
            "cap": self.access.permissions.capabilities(user),
        }

    def _password(self, user: str, password: str) -> bool:
        return "!" not in user and self.access.shadow.verify(user, password)

    def _ticket_user(self, ticket: str) -> str | None:
        text, _, signature = ticket.partition("::")
        parts = text.split(":")
        if len(parts) != 3 or not hmac.compare_digest(signature.encode(), self._sign(text).encode()):
            return None
        return parts[1] if time.time() - int(parts[2], 16) < TICKET_SECONDS else None

    def user(self, method: str, authorization: str, cookies: str, csrf: str) -> str:
        """Who makes this call; raises Refused."""
        if match := re.fullmatch(r"PVEAPIToken[= ](.*)", authorization):
            name, _, secret = match[1].rpartition("=")
            if "!" in name and self._alive(name) and self.access.shadow.verify(name, secret):
                return name
            raise Refused("Authentication failed!")
        found = re.search(r"(?:^|;\s*)PVEAuthCookie=([^;]+)", cookies)
        if not found:
            raise Refused("No ticket")
        user = self._ticket_user(unquote(found[1].strip('"')))
        if user is None or not self._alive(user):
            raise Refused("Authentication failed!")
        if method != "GET":
            issued, _, signature = csrf.partition(":")
            if not hmac.compare_digest(signature.encode(), self._sign(f"CSRF:{issued}:{user}").encode()):
                raise Refused("Permission denied - invalid csrf token")
        return user
