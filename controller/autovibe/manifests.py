"""Manifests: which files stood in a workspace. Packed for the database, and compared.

A manifest is {"files": [{"path", "size", "sha256" (null when the file was too large to read), "mode"}], "truncated"}.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from typing import Any

EMPTY: dict[str, Any] = {"files": [], "truncated": False}
_FIELDS = ("path", "size", "sha256", "mode")
#: Hashes do not get smaller by trying harder.
_LEVEL = 3


def pack(manifest: dict[str, Any] | None) -> bytes | None:
    """As the database keeps it: compressed JSON, a list for each field. None when there is no manifest."""
    if not manifest:
        return None
    files = manifest.get("files") or []
    columns = {name: [file.get(name) for file in files] for name in _FIELDS}
    packed = {"version": 1, "truncated": bool(manifest.get("truncated")), **columns}
    return zlib.compress(json.dumps(packed, separators=(",", ":"), ensure_ascii=False).encode(), _LEVEL)


def unpack(packed: bytes | None) -> dict[str, Any]:
    """The manifest again; {} when there is none."""
    if packed is None:
        return {}
    found = json.loads(zlib.decompress(packed))
    rows = zip(*(found[name] for name in _FIELDS), strict=True)
    return {"files": [dict(zip(_FIELDS, row, strict=True)) for row in rows], "truncated": found["truncated"]}


@dataclass
class Diff:
    """What is different from one manifest to another; each list by path.

    added, removed: files as manifests have them. changed: (before, after) with other content. mode: (before, after)
    with another mode only. unread: paths of the same size whose content was too large to be read, so that nobody knows.
    `whole` is False when one of the manifests does not list all files.
    """

    added: list[dict[str, Any]] = field(default_factory=list)
    removed: list[dict[str, Any]] = field(default_factory=list)
    changed: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    mode: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    whole: bool = True

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.mode)

    def stat(self) -> dict[str, int]:
        """How many of each, and by how many bytes the files have grown altogether."""
        grown = sum(file["size"] for file in self.added) - sum(file["size"] for file in self.removed)
        grown += sum(after["size"] - before["size"] for before, after in self.changed)
        counts = {name: len(getattr(self, name)) for name in ("added", "removed", "changed", "mode", "unread")}
        return {**counts, "bytes": grown}


def diff(before: dict[str, Any], after: dict[str, Any]) -> Diff:
    """From `before` to `after`."""
    old = {file["path"]: file for file in before.get("files") or []}
    new = {file["path"]: file for file in after.get("files") or []}
    found = Diff(whole=not (before.get("truncated") or after.get("truncated")))
    found.added = [new[path] for path in sorted(new.keys() - old.keys())]
    found.removed = [old[path] for path in sorted(old.keys() - new.keys())]
    for path in sorted(old.keys() & new.keys()):
        one, other = old[path], new[path]
        if one["size"] != other["size"] or (_known(one, other) and one["sha256"] != other["sha256"]):
            found.changed.append((one, other))
            continue
        if one["mode"] != other["mode"]:
            found.mode.append((one, other))
        if not _known(one, other):
            found.unread.append(path)
    return found


def _known(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one["sha256"] is not None and other["sha256"] is not None
