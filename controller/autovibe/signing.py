"""The secrets that access tokens are signed with. They rotate: a new one each month, the one before stays good for as
long as its tokens live.

They lie in `<state>/hub/signing.json` (0600): {"keys": [{"kid", "secret", "made_at"}]}, the newest first.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from pathlib import Path

from autovibe.hubkey import hub_dir, locked, write_secret

ROTATE_SECONDS = 30 * 24 * 3600
KEPT = 2

_cache: dict[Path, tuple[int, list[dict]]] = {}
_lock = threading.Lock()


def current(state_dir: Path) -> tuple[str, str]:
    """(kid, secret) to sign with; made, or made anew, when it is time."""
    keys = _load(state_dir)
    if not keys or time.time() - keys[0]["made_at"] > ROTATE_SECONDS:
        keys = rotate(state_dir, older_than=ROTATE_SECONDS)
    return keys[0]["kid"], keys[0]["secret"]


def by_kid(state_dir: Path, kid: str) -> str | None:
    """The secret of a token's `kid`, or None."""
    return next((key["secret"] for key in _load(state_dir) if key["kid"] == kid), None)


def rotate(state_dir: Path, *, older_than: float = 0) -> list[dict]:
    """Put a new secret first, unless another process has just done so; the last ones stay."""
    folder = hub_dir(state_dir)
    with locked(folder):
        keys = _read(folder / "signing.json")
        if not keys or time.time() - keys[0]["made_at"] >= older_than:
            made = {"kid": secrets.token_hex(8), "secret": secrets.token_urlsafe(48), "made_at": time.time()}
            keys = [made, *keys][:KEPT]
            write_secret(folder / "signing.json", json.dumps({"keys": keys}).encode())
    return keys


def _load(state_dir: Path) -> list[dict]:
    """What the file says, read again when another process has changed it."""
    path = hub_dir(state_dir) / "signing.json"
    try:
        stamp = path.stat().st_mtime_ns
    except FileNotFoundError:
        return []
    with _lock:
        if path not in _cache or _cache[path][0] != stamp:
            _cache[path] = (stamp, _read(path))
        return _cache[path][1]


def _read(path: Path) -> list[dict]:
    return json.loads(path.read_bytes())["keys"] if path.exists() else []
