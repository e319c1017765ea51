"""What stood in the files of a checkpoint, as far as it is known: from the workspaces that machines have left.

A manifest says which content a file had, so a file of a workspace that was left later, or by an ancestor, is as good
when its hash is the same. Everything else is only on the checkpoint's disk.
"""

from __future__ import annotations

import difflib
import hashlib
import time
from collections.abc import Iterable
from typing import Any

from sqlalchemy.orm import Session

from autovibe import machine_files, manifests, workspaces
from autovibe.models import Checkpoint, Machine
from autovibe.settings import Settings

#: The largest file whose lines are compared, and all of them together; machines chose what is in them.
TEXT_BYTES = 1 << 20
LINES = 20_000
TOGETHER_BYTES = 64 << 20
SECONDS = 10.0
#: Machines whose workspaces are looked through, from a checkpoint's own to its ancestors'.
ANCESTORS = 10


def unified(session: Session, settings: Settings, before: Checkpoint, after: Checkpoint, found: manifests.Diff) -> str:
    """The changes of a diff's text files, in the unified form; of the others, a line that says why they are not."""
    pairs = [(None, file) for file in found.added] + [(file, None) for file in found.removed] + found.changed
    wanted = {(file["path"], file["sha256"]) for pair in pairs for file in pair if file}
    known = by_hash(session, settings, (after, before), wanted)
    lines: list[str] = []
    end = time.monotonic() + SECONDS
    for old, new in sorted(pairs, key=lambda pair: (pair[1] or pair[0])["path"]):
        try:
            lines += _lines(old, new, known, end)
        except _OutOfTime:
            lines.append(f"{(new or old)['path']}: there is too much to be compared")
    return "\n".join(lines)


def by_hash(
    session: Session, settings: Settings, checkpoints: Iterable[Checkpoint], wanted: set[tuple[str, str | None]]
) -> dict[str, bytes]:
    """What stands under these paths in workspaces that were left, until each (path, SHA-256) is there; by its hash."""
    known = {hashlib.sha256(b"").hexdigest(): b""}
    left = TOGETHER_BYTES
    for machine in _machines(session, checkpoints):
        missing = {path for path, digest in wanted if digest is not None and digest not in known}
        if not missing:
            break
        try:
            archive = machine_files.workspace(session, settings, machine)
        except machine_files.NoFiles:
            continue
        for content in workspaces.contents(archive, missing, TEXT_BYTES):
            left -= len(content)
            if left < 0:
                return known
            known[hashlib.sha256(content).hexdigest()] = content
    return known


def _machines(session: Session, checkpoints: Iterable[Checkpoint]) -> list[Machine]:
    """Those that have made the checkpoints, and those that theirs started from."""
    found: dict[Any, Machine] = {}
    for start in checkpoints:
        checkpoint: Checkpoint | None = start
        for _ in range(ANCESTORS):
            if checkpoint is None or checkpoint.creating_machine_uuid is None:
                break
            machine = session.get_one(Machine, checkpoint.creating_machine_uuid)
            found[machine.uuid] = machine
            parent = machine.parent_checkpoint_uuid
            checkpoint = session.get(Checkpoint, parent) if parent else None
    return list(found.values())


def _lines(old: dict[str, Any] | None, new: dict[str, Any] | None, known: dict[str, bytes], end: float) -> list[str]:
    path = (new or old)["path"]
    texts = []
    for file in (old, new):
        text, why = _text(file, known)
        if text is None:
            return [f"{path}: {why}"]
        texts.append(text.splitlines())
        if len(texts[-1]) > LINES:
            return [f"{path}: too many lines to be compared"]
    names = [f"a/{path}" if old else "/dev/null", f"b/{path}" if new else "/dev/null"]
    changes = _changes(*texts, end)
    return [f"--- {names[0]}", f"+++ {names[1]}", *changes] if changes else [f"{path}: no line is different"]


class _OutOfTime(Exception):
    """The lines have not been compared by then."""


class _Matcher(difflib.SequenceMatcher):
    """Of lines that somebody may have chosen so that comparing them takes hours: it takes the cube of their number."""

    def __init__(self, old: list[str], new: list[str], end: float) -> None:
        self._end = end
        super().__init__(None, old, new)

    def find_longest_match(self, *where: int) -> difflib.Match:
        if time.monotonic() > self._end:
            raise _OutOfTime()
        return super().find_longest_match(*where)


def _changes(old: list[str], new: list[str], end: float) -> list[str]:
    """The hunks of a unified diff, as `difflib.unified_diff` writes them; _OutOfTime."""
    lines: list[str] = []
    for group in _Matcher(old, new, end).get_grouped_opcodes():
        (_, old_first, _, new_first, _), (_, _, old_last, _, new_last) = group[0], group[-1]
        lines.append(f"@@ -{_range(old_first, old_last)} +{_range(new_first, new_last)} @@")
        for what, i1, i2, j1, j2 in group:
            if what == "equal":
                lines += [f" {line}" for line in old[i1:i2]]
                continue
            lines += [f"-{line}" for line in old[i1:i2]]
            lines += [f"+{line}" for line in new[j1:j2]]
    return lines


def _range(first: int, last: int) -> str:
    """Lines as a hunk names them, counted from 1; of none, the one before."""
    length = last - first
    if length == 1:
        return str(first + 1)
    return f"{first + 1 if length else first},{length}"


def _text(file: dict[str, Any] | None, known: dict[str, bytes]) -> tuple[str | None, str]:
    """A file's text, or None and why it cannot be shown."""
    if file is None:
        return "", ""
    if file["size"] > TEXT_BYTES:
        return None, "too large to be shown"
    content = known.get(file["sha256"] or "")
    if content is None:
        return None, "its content is only on the checkpoint's disk, or there is too much of it"
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None, "not a text"
    return (None, "not a text") if "\0" in text else (text, "")
