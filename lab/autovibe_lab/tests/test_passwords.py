"""Cloud-init's secrets as a node keeps them."""

from __future__ import annotations

import pytest
from autovibe_lab.passwords import sha256_crypt, valid_ssh_keys

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGnkWVwLx6EGauHikBinrv/HntxNn+s3udanHuNR8yD6 lab@x"


def test_a_password_is_hashed_as_crypt_does() -> None:
    """As `openssl passwd -5 -salt saltstring 'Hello world!'` says."""
    hashed = "$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5"
    assert sha256_crypt("Hello world!", "saltstring") == hashed


def test_two_hashes_of_one_password_differ() -> None:
    assert sha256_crypt("secret") != sha256_crypt("secret")


@pytest.mark.parametrize("keys", [KEY, f"{KEY}\n{KEY}\n", "", f'command="true" {KEY}', f"# mine\n{KEY}"])
def test_keys_that_are_taken(keys: str) -> None:
    assert valid_ssh_keys(keys.replace("+", "%2B"))


@pytest.mark.parametrize(
    "keys", ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFoo lab@x", "rubbish", KEY.replace("-ed", "-xd")]
)
def test_keys_that_are_refused(keys: str) -> None:
    assert not valid_ssh_keys(keys)
