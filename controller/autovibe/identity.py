"""What role `machine` pushes into a guest: who it is, where its hub is, and a token that enrols it once."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path
from uuid import UUID

from autovibe import ca
from autovibe.hubkey import hub_key, write_secret
from autovibe.models import Machine
from autovibe.settings import Settings


def enrol_token(settings: Settings, machine_uuid: UUID, generation: int) -> str:
    """The one-time token of a machine's generation. Derived, so that a repeated spawn pushes the same one."""
    digest = hmac.digest(hub_key(settings.state_dir), f"enrol:{machine_uuid}:{generation}".encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def is_enrol_token(settings: Settings, machine_uuid: UUID, generation: int, token: str) -> bool:
    """Whether the hub made this token for that machine and generation; compared in constant time."""
    expected = enrol_token(settings, machine_uuid, generation)
    return hmac.compare_digest(expected.encode(), token.encode("utf-8", "replace"))


def identity(settings: Settings, machine: Machine) -> dict:
    """The identity of a machine's present generation."""
    return {
        "machine": str(machine.uuid),
        "generation": machine.generation,
        "hub_url": settings.hub_url_for_guests,
        "ca_sha256": ca.ensure_for(settings).ca_sha256,
        "token": enrol_token(settings, machine.uuid, machine.generation),
    }


def write_identity(settings: Settings, machine: Machine, path: Path) -> Path:
    """Writes the identity to a 0600 file, for a role to push; returns the path."""
    path = Path(path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_secret(path, json.dumps(identity(settings, machine)).encode())
    return path
