"""What a user or token proves itself with, hashed, in a file that nobody else may read: `priv/shadow.cfg`.

::

    dev@pve:scrypt$<salt>$<hash>:
    dev@pve!ci:sha256$<hash>:
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

#: A token's secret is random already; a password is not, and costs a moment (20 ms) to try.
COST = {"n": 2**13, "r": 8, "p": 1}


def write_secret(path: Path, text: str) -> None:
    """A file that nobody else may read, from its first byte on."""
    part = path.with_name(f".{path.name}.new")
    part.unlink(missing_ok=True)
    with open(part, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)
    part.replace(path)


def _scrypt(secret: str, salt: str) -> str:
    return hashlib.scrypt(secret.encode(), salt=bytes.fromhex(salt), **COST).hex()


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class Shadow:
    """The hashes of one lab's passwords and token secrets."""

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self.hashes = dict(line.split(":")[:2] for line in lines if line)

    def _save(self) -> None:
        self.file.parent.mkdir(mode=0o700, exist_ok=True)
        write_secret(self.file, "".join(f"{name}:{its}:\n" for name, its in sorted(self.hashes.items())))

    def set_password(self, user: str, password: str) -> None:
        salt = secrets.token_hex(8)
        self.hashes[user] = f"scrypt${salt}${_scrypt(password, salt)}"
        self._save()

    def set_secret(self, token: str, secret: str) -> None:
        digest = f"sha256${_sha256(secret)}"
        if self.hashes.get(token) != digest:
            self.hashes[token] = digest
            self._save()

    def forget(self, name: str) -> None:
        """A user with all its tokens, or one token."""
        gone = [other for other in self.hashes if other == name or other.startswith(f"{name}!")]
        for other in gone:
            del self.hashes[other]
        if gone:
            self._save()

    def verify(self, name: str, secret: str) -> bool:
        kind, *rest = self.hashes.get(name, "").split("$")
        if kind == "scrypt":
            return hmac.compare_digest(_scrypt(secret, rest[0]), rest[1])
        return kind == "sha256" and hmac.compare_digest(_sha256(secret), rest[0])
