"""Planned backups: `jobs.cfg` in Proxmox's own form. They are kept and shown, and never run by themselves."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

#: Written as numbers in the API.
FLAGS = ("enabled", "all", "protected", "remove", "quiet", "stdexcludes", "stop", "repeat-missed")
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@dataclass
class Job:
    id: str
    options: dict[str, str] = field(default_factory=dict)

    def shown(self) -> dict[str, object]:
        numbers = {key: int(value) for key, value in self.options.items() if key in FLAGS}
        return {"id": self.id, "type": "vzdump", "enabled": 1} | self.options | numbers

    def next_run(self, now: float) -> int | None:
        """When its schedule comes next; None for a schedule that is not understood."""
        return next_event(self.options.get("schedule", ""), now)


class Jobs:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.all: dict[str, Job] = {}
        job = None
        for line in file.read_text().splitlines() if file.exists() else ():
            if match := re.fullmatch(r"vzdump: (\S+)", line):
                job = self.all[match[1]] = Job(match[1])
            elif job and line.strip():
                key, _, value = line.strip().partition(" ")
                job.options[key] = value

    def save(self) -> None:
        parts = []
        for job in self.all.values():
            parts.append(f"vzdump: {job.id}\n" + "".join(f"\t{key} {text}\n" for key, text in job.options.items()))
        part = self.file.with_name(f".{self.file.name}.new")
        part.write_text("\n".join(parts))
        os.replace(part, self.file)

    def forget(self, vmid: int) -> None:
        """A guest that was purged is in no job; a job that was only for it is gone."""
        for job in list(self.all.values()):
            given = re.findall(r"\d+", job.options.get("vmid", ""))
            if str(vmid) in given:
                left = [text for text in given if text != str(vmid)]
                job.options["vmid"] = ",".join(left)
                if not left:
                    del self.all[job.id]
        self.save()


def next_event(schedule: str, now: float) -> int | None:
    """The next time of a calendar event: `02:00`, `sat 18:15`, `mon..fri 22:00`, `*/15`, `*:30`, `daily` …"""
    words = {"minutely": "*:*", "hourly": "*:00", "daily": "00:00", "weekly": "mon 00:00", "midnight": "00:00"}
    *days, clock = words.get(schedule, schedule).split() or [""]
    if not re.search(r"[\d*]", clock):
        days, clock = [*days, clock], "00:00"
    hours, _, minutes = clock.rpartition(":")
    wanted_days, wanted_hours, wanted_minutes = _days(days), _numbers(hours or "*", 24), _numbers(minutes, 60)
    if not (wanted_days and wanted_hours and wanted_minutes):
        return None
    at = int(now) // 60 * 60 + 60
    for minute in range(8 * 24 * 60):
        then = time.localtime(at + 60 * minute)
        if then.tm_min in wanted_minutes and then.tm_hour in wanted_hours and then.tm_wday in wanted_days:
            return at + 60 * minute
    return None


def _days(words: list[str]) -> set[int]:
    if not words:
        return set(range(7))
    found: set[int] = set()
    for part in ",".join(words).lower().split(","):
        first, _, last = part.partition("..")
        if first[:3] not in DAYS or (last or first)[:3] not in DAYS:
            return set()
        found |= set(range(DAYS.index(first[:3]), DAYS.index((last or first)[:3]) + 1))
    return found


def _numbers(text: str, end: int) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\*|\d+)(?:\.\.(\d+))?(?:/(\d+))?", part)
        if not match:
            return set()
        first = 0 if match[1] == "*" else int(match[1])
        last = end - 1 if match[1] == "*" or (match[3] and not match[2]) else int(match[2] or first)
        found |= set(range(first, last + 1, int(match[3] or 1)))
    return {number for number in found if number < end}
