"""What a node does with secrets of cloud-init before it keeps them: hash the password, look at the SSH keys."""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
import struct
from urllib.parse import unquote

ALPHABET = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ROUNDS = 5000
#: The order in which SHA-crypt writes the 32 bytes of its digest, three at a time, from the last to be written first.
ORDER = [(0, 10, 20), (21, 1, 11), (12, 22, 2), (3, 13, 23), (24, 4, 14), (15, 25, 5), (6, 16, 26), (27, 7, 17)]
ORDER += [(18, 28, 8), (9, 19, 29)]


def sha256_crypt(password: str, salt: str | None = None) -> str:
    """`$5$salt$hash`, as `/etc/shadow` holds it (https://akkadia.org/drepper/SHA-crypt.txt)."""
    salt = salt or "".join(secrets.choice(ALPHABET) for _ in range(8))
    key, pepper = password.encode(), salt.encode()
    other = hashlib.sha256(key + pepper + key).digest()
    first = hashlib.sha256(key + pepper + _stretched(other, len(key)))
    bits = len(key)
    while bits:
        first.update(other if bits & 1 else key)
        bits >>= 1
    digest = first.digest()
    keys = _stretched(hashlib.sha256(key * len(key)).digest(), len(key))
    salts = _stretched(hashlib.sha256(pepper * (16 + digest[0])).digest(), len(pepper))
    for number in range(ROUNDS):
        parts = [keys if number % 2 else digest, salts if number % 3 else b"", keys if number % 7 else b""]
        digest = hashlib.sha256(b"".join([*parts, digest if number % 2 else keys])).digest()
    return f"$5${salt}${_written(digest)}"


def _stretched(block: bytes, length: int) -> bytes:
    return (block * (length // len(block) + 1))[:length]


def _written(digest: bytes) -> str:
    text = ""
    for high, middle, low in ORDER:
        text += _letters(digest[high] << 16 | digest[middle] << 8 | digest[low], 4)
    return text + _letters(digest[31] << 8 | digest[30], 3)


def _letters(number: int, count: int) -> str:
    return "".join(ALPHABET[number >> 6 * at & 63] for at in range(count))


def valid_ssh_keys(quoted: str) -> bool:
    """Every line of these URL-encoded keys is one that ssh-keygen reads."""
    lines = [line.strip() for line in unquote(quoted).splitlines()]
    return all(_valid_key(line) for line in lines if line and not line.startswith("#"))


def _valid_key(line: str) -> bool:
    """Somewhere in the line: a type, and its blob, which begins with the same type and is whole."""
    words = line.split()
    for kind, encoded in zip(words, words[1:], strict=False):
        try:
            fields = _fields(base64.b64decode(encoded, validate=True))
        except (binascii.Error, ValueError):
            continue
        if len(fields) > 1 and fields[0] == kind.encode():
            return kind != "ssh-ed25519" or len(fields[1]) == 32
    return False


def _fields(blob: bytes) -> list[bytes]:
    """The length-prefixed parts of a key; ValueError when one is cut short."""
    found, at = [], 0
    while at < len(blob):
        if at + 4 > len(blob):
            raise ValueError("cut short")
        (length,) = struct.unpack_from(">I", blob, at)
        at += 4 + length
        if at > len(blob):
            raise ValueError("cut short")
        found.append(blob[at - length : at])
    return found
