"""Pools, kept in `user.cfg` in Proxmox's form: `pool:<id>:<comment>:<vm ids>:<storages>:`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from autovibe_lab.errors import ApiError


@dataclass
class Pool:
    comment: str = ""
    vms: set[int] = field(default_factory=set)
    storages: set[str] = field(default_factory=set)


class Pools:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.all: dict[str, Pool] = {}
        for line in file.read_text().splitlines() if file.exists() else ():
            kind, name, comment, vms, storages, *_ = [*line.split(":"), "", "", ""]
            if kind == "pool":
                members = {int(vmid) for vmid in vms.split(",") if vmid}
                self.all[name] = Pool(
                    unquote(comment), members, {storage for storage in storages.split(",") if storage}
                )

    def save(self) -> None:
        lines = [
            f"pool:{name}:{quote(pool.comment, safe=' ')}:{','.join(map(str, sorted(pool.vms)))}"
            f":{','.join(sorted(pool.storages))}:\n"
            for name, pool in sorted(self.all.items())
        ]
        part = self.file.with_name(f".{self.file.name}.new")
        part.write_text("".join(lines))
        os.replace(part, self.file)

    def check(self, name: str) -> None:
        """The 403 that a create or clone into an unknown pool gets."""
        if name not in self.all:
            raise ApiError(403, f"Permission check failed (pool '{name}' does not exist)")

    def of(self, vmid: int) -> str | None:
        return next((name for name, pool in self.all.items() if vmid in pool.vms), None)

    def create(self, name: str, comment: str) -> None:
        if name in self.all:
            raise ApiError(500, f"create pool failed: pool '{name}' already exists")
        self.all[name] = Pool(comment)
        self.save()

    def delete(self, name: str) -> None:
        if name not in self.all:
            raise ApiError(500, f"delete pool failed: pool '{name}' does not exist")
        pool = self.all[name]
        inside = [f"contains pool '{other}'" for other in self.all if other.startswith(f"{name}/")]
        inside += [f"contains VM {vmid}" for vmid in sorted(pool.vms)]
        inside += [f"contains storage '{storage}'" for storage in sorted(pool.storages)]
        if inside:
            raise ApiError(500, f"delete pool failed: pool '{name}' is not empty ({inside[0]})")
        del self.all[name]
        self.save()

    def add(self, name: str, vmid: int, *, move: bool = False) -> None:
        old = self.of(vmid)
        if old == name:
            raise ApiError(500, f"update pools failed: VM {vmid} is already a pool member")
        if old is not None:
            if not move:
                raise ApiError(
                    500, f"update pools failed: VM {vmid} belongs already to pool '{old}' and 'allow-move' is not set"
                )
            self.all[old].vms.discard(vmid)
        self.all[name].vms.add(vmid)
        self.save()

    def remove(self, vmid: int) -> None:
        name = self.of(vmid)
        if name is not None:
            self.all[name].vms.discard(vmid)
            self.save()
