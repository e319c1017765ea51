"""Messages to the hub on the machine's disk, until the hub has them: in order, each once, whatever ends in between."""

import contextlib
import json
import os
import secrets
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

BATCH = 100
BATCH_BYTES = 400_000
#: A file is deleted once all of it is with the hub; so large, another is begun.
FILE_BYTES = 4 << 20
#: While the hub is away: beyond it the oldest file is given up.
LIMIT_BYTES = 32 << 20


@dataclass(frozen=True)
class Batch:
    """Messages of one file, up to offset `end`. Its name and each message's `seq` tell the hub which they are."""

    name: str
    messages: list[dict]
    end: int
    next_seq: int


class Spool:
    """Files of JSON lines, `<number>-<random>`: line n of a file is its message n; `<file>.sent` says what is sent.

    Every agent begins a file of its own, so that no name is used twice: not after a restore of this disk either.
    """

    def __init__(self, folder: Path, machine: str, file_bytes: int = FILE_BYTES, limit_bytes: int = LIMIT_BYTES):
        self._folder = folder / machine
        self._file_bytes, self._limit_bytes = file_bytes, limit_bytes
        self._lock = threading.Lock()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for other in folder.iterdir():
            if other.name != machine:  # this disk is a branch of that machine's, which has said it itself
                shutil.rmtree(other, ignore_errors=True)
        self._sent: dict[str, tuple[int, int]] = {}
        self._begin_file()

    def add(self, message: dict) -> None:
        """Keeps a message, {"at", "kind", "text"}."""
        with self._lock:
            if self._size >= self._file_bytes:
                self._own.close()
                self._begin_file()
                self._give_up_oldest(message)
            self._write(message)

    def take(self) -> Batch | None:
        """The oldest messages that the hub does not have; the same again until `done`. None when there are none."""
        with self._lock:
            for name in self._names():
                if (batch := self._read(name)) is not None:
                    return batch
                if name != self._own_name:
                    self._remove(name)
            return None

    def done(self, batch: Batch) -> None:
        """The hub has these."""
        with self._lock:
            self._sent[batch.name] = (batch.end, batch.next_seq)
            with contextlib.suppress(OSError):
                mark = self._folder / f"{batch.name}.sent"
                new = mark.with_suffix(".new")
                new.write_text(json.dumps(self._sent[batch.name]), encoding="utf-8")
                os.replace(new, mark)

    def _begin_file(self) -> None:
        numbers = [int(name.partition("-")[0]) for name in self._names()]
        self._own_name = f"{max(numbers, default=0) + 1:08d}-{secrets.token_hex(8)}"
        self._own = (self._folder / self._own_name).open("ab", buffering=0)
        self._size = 0

    def _write(self, message: dict) -> None:
        line = json.dumps(message).encode() + b"\n"
        self._own.write(line)
        self._size += len(line)

    def _give_up_oldest(self, like: dict) -> None:
        """Keeps to the limit; what is given up is said, in a message that is otherwise like the given one."""
        dropped = 0
        names = self._names()
        while len(names) > 1 and sum((self._folder / name).stat().st_size for name in names) > self._limit_bytes:
            lines = (self._folder / names[0]).read_bytes().count(b"\n")
            dropped += lines - self._place(names[0])[1]
            self._remove(names.pop(0))
        if dropped:
            text = f"{dropped} messages were dropped: the hub was away for too long"
            self._write({**like, "kind": "system", "text": text})

    def _names(self) -> list[str]:
        found = (path.name for path in self._folder.iterdir() if "." not in path.name)
        return sorted(name for name in found if name.partition("-")[0].isdecimal())

    def _place(self, name: str) -> tuple[int, int]:
        """(offset, seq) of the first message that is not sent."""
        if name not in self._sent:
            try:
                offset, seq = json.loads((self._folder / f"{name}.sent").read_text(encoding="utf-8"))
                self._sent[name] = (int(offset), int(seq))
            except (OSError, ValueError, TypeError):
                self._sent[name] = (0, 0)
        return self._sent[name]

    def _read(self, name: str) -> Batch | None:
        end, seq = self._place(name)
        messages, size = [], 0
        with (self._folder / name).open("rb") as file:
            file.seek(end)
            while len(messages) < BATCH and size < BATCH_BYTES:
                line = file.readline()
                if not line.endswith(b"\n"):  # nothing more, or half a line: the power went
                    break
                with contextlib.suppress(ValueError, TypeError):
                    messages.append({**json.loads(line), "seq": seq})
                seq, end, size = seq + 1, end + len(line), size + len(line)
        return Batch(name, messages, end, seq) if size else None

    def _remove(self, name: str) -> None:
        for path in (self._folder / name, self._folder / f"{name}.sent"):
            path.unlink(missing_ok=True)
        self._sent.pop(name, None)
