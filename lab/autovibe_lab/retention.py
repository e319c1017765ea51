"""Which backups `prune-backups` keeps: the newest of each hour, day, week …, so many of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

#: Option → what makes two backups the same one of that period. In the order in which they are applied.
PERIODS: dict[str, Callable[[int], object]] = {
    "keep-last": lambda ctime: ctime,
    "keep-hourly": lambda ctime: time.strftime("%Y-%m-%d %H", time.localtime(ctime)),
    "keep-daily": lambda ctime: time.strftime("%Y-%m-%d", time.localtime(ctime)),
    "keep-weekly": lambda ctime: time.strftime("%G-%V", time.localtime(ctime)),
    "keep-monthly": lambda ctime: time.strftime("%Y-%m", time.localtime(ctime)),
    "keep-yearly": lambda ctime: time.strftime("%Y", time.localtime(ctime)),
}


def parse(text: str) -> dict[str, int]:
    """`keep-last=3,keep-daily=7` → numbers."""
    return {key: int(value) for key, _, value in (part.partition("=") for part in text.split(",") if part)}


def marks(backups: Iterable[dict], keep: dict[str, int]) -> list[dict]:
    """Each backup with `mark`: `keep`, `remove` or `protected`. Each guest's are counted for themselves."""
    found = []
    for entry in backups:
        mark = {"mark": "protected"} if entry.get("protected") else {}
        found.append({key: entry[key] for key in ("volid", "ctime", "vmid")} | {"type": entry["subtype"]} | mark)
    for vmid in {entry["vmid"] for entry in found}:
        group = [entry for entry in found if entry["vmid"] == vmid and "mark" not in entry]
        _mark(sorted(group, key=lambda entry: -entry["ctime"]), keep)
    return sorted(found, key=lambda entry: (entry["vmid"], entry["ctime"]))


def _mark(group: list[dict], keep: dict[str, int]) -> None:
    """`group` is newest first."""
    if keep.get("keep-all") or not any(keep.get(option) for option in PERIODS):
        for entry in group:
            entry["mark"] = "keep"
    for option, period in PERIODS.items():
        covered = {period(entry["ctime"]) for entry in group if entry.get("mark") == "keep"}
        new: set[object] = set()
        for entry in group:
            name = period(entry["ctime"])
            if "mark" in entry or name in covered:
                continue
            if name in new:
                entry["mark"] = "remove"
            elif len(new) < keep.get(option, 0):
                new.add(name)
                entry["mark"] = "keep"
            else:
                break
    for entry in group:
        entry.setdefault("mark", "remove")
