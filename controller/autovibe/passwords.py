"""Passwords: argon2id with argon2-cffi's parameters, which are RFC 9106's for machines with little memory."""

from __future__ import annotations

import threading

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from autovibe.errors import Invalid

LEAST, MOST = 12, 1024
#: A hash takes 64 MiB: guesses must not add up to the machine's memory.
_slots = threading.Semaphore(2)
_hasher = PasswordHasher()
_nobody = ""


class WeakPassword(Invalid):
    """The password is not good enough."""

    code = "weak_password"


def hashed(password: str) -> str:
    """The password's hash, or WeakPassword."""
    if not LEAST <= len(password) <= MOST:
        raise WeakPassword(f"A password has {LEAST} to {MOST} characters")
    with _slots:
        return _hasher.hash(password)


def fits(password: str, password_hash: str | None) -> bool:
    """Whether it is the password; takes as long when there is none."""
    global _nobody
    if not _nobody:
        _nobody = hashed("nobody has this password")
    with _slots:
        try:
            return _hasher.verify(password_hash or _nobody, password[:MOST]) and password_hash is not None
        except (Argon2Error, InvalidHashError):
            return False
