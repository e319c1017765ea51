"""What stands on the machine's disk of its work, so that it goes on after a reboot, a restore or a killed agent."""

import json
import os
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path

NEW, STARTED, ENDED, FINISHED = "new", "started", "ended", "finished"


@dataclass
class Work:
    """A machine's work: new → started (its CLI may have run) → ended (with a result) → finished (the hub has it).

    `session` is what the agent type needs to go on; `worked_seconds` counts all attempts, not the time between them;
    `resumes` counts those in a row that brought nothing new.
    """

    machine: str
    generation: int = 0
    phase: str = NEW
    session: dict = field(default_factory=dict)
    worked_seconds: float = 0.0
    resumes: int = 0
    result: dict | None = None


class WorkStore:
    """Keeps one machine's work in a file. Another machine's (this disk is a branch of it) counts for nothing."""

    def __init__(self, path: Path, machine: str):
        self._path, self._machine = path, machine
        self._lock = threading.Lock()
        self._written: dict | None = None

    def read(self) -> Work:
        """The kept work; new work when there is none of this machine."""
        try:
            work = Work(**json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return Work(self._machine)
        return work if work.machine == self._machine else Work(self._machine)

    def write(self, work: Work) -> None:
        """Replaces the file in one step, on the disk when this returns: the power may go at any time."""
        with self._lock:
            content = asdict(work)
            if content == self._written:
                return
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = self._path.with_name(f".{self._path.name}.new")
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(content, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
            sync_folder(self._path.parent)
            self._written = content


def sync_folder(folder: Path) -> None:
    """Brings a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
