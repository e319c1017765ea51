"""Who is calling: root by a ticket and its CSRF token, the project by its API token."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from autovibe_lab.api.access import PRIVILEGES
from autovibe_lab.errors import ApiError

ROOT = "root@pam"
TOKEN_ID = "autovibe@pve!autovibe"
TICKET_SECONDS = 7200


def write_secret(path: Path, text: str) -> None:
    """A file that nobody else may read, from its first byte on."""
    part = path.with_name(f".{path.name}.new")
    part.unlink(missing_ok=True)
    with open(part, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)
    part.replace(path)


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
    def __init__(self, secrets: Secrets) -> None:
        self.secrets = secrets

    def _sign(self, text: str) -> str:
        return hmac.new(self.secrets.key.encode(), text.encode(), hashlib.sha256).hexdigest()

    def ticket(self, params: dict[str, object]) -> dict:
        """The answer of POST /access/ticket; raises the 401 that has a body."""
        user = str(params["username"])
        user = user if "@" in user else f"{user}@{params.get('realm', 'pam')}"
        password = str(params["password"])
        valid = user == ROOT and hmac.compare_digest(password.encode(), self.secrets.root_password.encode())
        # A ticket is a password too: so a client renews it.
        if not valid and not (user == ROOT and self._ticket_user(password) == user):
            raise ApiError(401, "authentication failure")
        issued = f"{int(time.time()):08X}"
        ticket = f"PVE:{user}:{issued}"
        return {
            "username": user,
            "ticket": f"{ticket}::{self._sign(ticket)}",
            "CSRFPreventionToken": f"{issued}:{self._sign(f'CSRF:{issued}:{user}')}",
            "cap": {"vms": {name: 1 for name in PRIVILEGES if name.startswith("VM.")}},
        }

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
            if name == TOKEN_ID and hmac.compare_digest(secret.encode(), self.secrets.token_secret.encode()):
                return TOKEN_ID
            raise Refused("Authentication failed!")
        found = re.search(r"(?:^|;\s*)PVEAuthCookie=([^;]+)", cookies)
        if not found:
            raise Refused("No ticket")
        user = self._ticket_user(unquote(found[1].strip('"')))
        if user is None:
            raise Refused("Authentication failed!")
        if method != "GET":
            issued, _, signature = csrf.partition(":")
            if not hmac.compare_digest(signature.encode(), self._sign(f"CSRF:{issued}:{user}").encode()):
                raise Refused("Permission denied - invalid csrf token")
        return user
