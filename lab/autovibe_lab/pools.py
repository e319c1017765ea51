"""Pools: which guests and storages belong together. They are kept with the users, in `user.cfg`."""

from __future__ import annotations

from pathlib import Path

from autovibe_lab.errors import ApiError
from autovibe_lab.usercfg import Pool, UserConfig


class Pools:
    """The pools of a user configuration, or of the `user.cfg` in a file."""

    def __init__(self, config: UserConfig | Path) -> None:
        self.config = UserConfig(config) if isinstance(config, Path) else config

    @property
    def all(self) -> dict[str, Pool]:
        return self.config.pools

    def save(self) -> None:
        self.config.save()

    def check(self, name: str) -> None:
        """The 403 that a create or clone into an unknown pool gets."""
        if name not in self.all:
            raise ApiError(403, f"Permission check failed (pool '{name}' does not exist)")

    def of(self, vmid: int) -> str | None:
        return next((name for name, pool in self.all.items() if vmid in pool.vms), None)

    def create(self, name: str, comment: str) -> None:
        if name in self.all:
            raise ApiError(500, f"create pool failed: pool '{name}' already exists")
        parent = name.rpartition("/")[0]
        if parent and parent not in self.all:
            raise ApiError(500, f"create pool failed: parent '{parent}' of pool '{name}' does not exist")
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
        self.config.drop(path=f"/pool/{name}")
        self.save()

    def add(self, name: str, vmid: int, *, move: bool = False) -> None:
        """Put a guest into a pool. Raises Proxmox's 500 where it is one's member already."""
        self._check_entry(name, vmid, move=move)
        self._enter(name, vmid)
        self.save()

    def enter(self, name: str, vms: list[int], storages: list[str], *, move: bool) -> None:
        """Add members; with one that can't be, none. The caller saves."""
        pool = self.all[name]
        for vmid in vms:
            self._check_entry(name, vmid, move=move)
        for storage in storages:
            if storage in pool.storages:
                raise ApiError(500, f"update pools failed: Storage '{storage}' is already a pool member")
        for vmid in vms:
            self._enter(name, vmid)
        pool.storages.update(storages)

    def leave(self, name: str, vms: list[int], storages: list[str]) -> None:
        """Take members away; with one that is none, nobody. The caller saves."""
        pool = self.all[name]
        for vmid in vms:
            if vmid not in pool.vms:
                raise ApiError(500, f"update pools failed: VM {vmid} is not a pool member")
        for storage in storages:
            if storage not in pool.storages:
                raise ApiError(500, f"update pools failed: Storage '{storage}' is not a pool member")
        pool.vms.difference_update(vms)
        pool.storages.difference_update(storages)

    def _check_entry(self, name: str, vmid: int, *, move: bool) -> None:
        old = self.of(vmid)
        if old == name:
            raise ApiError(500, f"update pools failed: VM {vmid} is already a pool member")
        if old is not None and not move:
            raise ApiError(
                500, f"update pools failed: VM {vmid} belongs already to pool '{old}' and 'allow-move' is not set"
            )

    def _enter(self, name: str, vmid: int) -> None:
        for pool in self.all.values():
            pool.vms.discard(vmid)
        self.all[name].vms.add(vmid)

    def remove(self, vmid: int) -> None:
        name = self.of(vmid)
        if name is not None:
            self.all[name].vms.discard(vmid)
            self.save()
