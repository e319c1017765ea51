"""One guest's backup, step by step, with the lines that vzdump writes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from autovibe_lab import archives, contents, disks, retention, wording
from autovibe_lab.config import Drive, format_size
from autovibe_lab.errors import TaskError
from autovibe_lab.guest import GuestError, NullGuest
from autovibe_lab.locks import LockTimeout
from autovibe_lab.node import Machine, Node
from autovibe_lab.options import agent_enabled
from autovibe_lab.storages import Storage
from autovibe_lab.tasks import Task

#: A snapshot of this name is taken of a running guest's disks, read and deleted again.
SNAPSHOT = "vzdump"
#: Seconds between two reports of how far a backup is.
REPORT = 3
EXTENSIONS = {"zstd": ".zst", "gzip": ".gz", "1": ".lzo", "lzo": ".lzo"}


@dataclass
class Job:
    """What a backup job asks of each guest. `prune`: None where nothing is removed. `bwlimit` in KiB/s."""

    storage: Storage
    mode: str = "snapshot"
    compress: str = "0"
    notes: str = ""
    protected: bool = False
    prune: dict[str, int] | None = None
    bwlimit: int = 0


@dataclass
class Backup:
    """The backup of one guest. `kept`: the guest was started meanwhile and goes on running."""

    node: Node
    machine: Machine
    job: Job
    task: Task
    kept: bool = False

    def log(self, text: str) -> None:
        self.task.log(f"INFO: {text}")

    async def run(self) -> None:
        """Make it. Raises TaskError."""
        begun = time.time()
        self.log(f"Starting Backup of VM {self.machine.vmid} (qemu)")
        self.log(f"Backup started at {_now()}")
        running = self.machine.running()
        self.log(f"status = {'running' if running else 'stopped'}")
        mode = self.job.mode if running else "stop"
        self._describe(mode, running)
        self._lock(begun)
        try:
            target = self._target(begun)
            await self._make(target, mode if running else "")
        finally:
            self.machine.config.current.pop("lock", None)
            self.node.save(self.machine)
        self._finish(target)
        took = time.strftime("%H:%M:%S", time.gmtime(time.time() - begun))
        self.log(f"Finished Backup of VM {self.machine.vmid} ({took})")
        self.log(f"Backup finished at {_now()}")

    def _describe(self, mode: str, running: bool) -> None:
        config = self.machine.config
        how = [f"backup mode: {mode}"]
        how += [f"bandwidth limit: {self.job.bwlimit} KiB/s"] if self.job.bwlimit else []
        how += ["ionice priority: 7"]
        what = [f"VM Name: {config.current.get('name', f'VM{self.machine.vmid}')}"]
        for drive in archives.included(config.current):
            size = drive.properties.get("size") or format_size(drive.size)
            what.append(f"include disk '{drive.key}' '{drive.volid}' {size}")
        for line in [*what, *how] if running else [*how, *what]:
            self.log(line)
        for key in sorted(key for key in config.current if re.fullmatch(r"unused\d+", key)):
            self.log(f"skip unused drive '{config.current[key]}' (not included into backup)")
        if config.snapshots:
            self.log("snapshots found (not included into backup)")
        if config.pending:
            self.log("pending configuration changes found (not included into backup)")

    def _lock(self, begun: float) -> None:
        if message := self.machine.locked():
            raise TaskError(message)
        self.machine.config.current["lock"] = "backup"
        self.node.save(self.machine)

    def _target(self, begun: float) -> Path:
        """The archive's file; two of a second get two names."""
        root, vmid = self.node.paths.storage(self.job.storage.id) / "dump", self.machine.vmid
        while True:
            if self.job.storage.type == "pbs":
                when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begun))
                target, said = root / "vm" / str(vmid) / when, f"Proxmox Backup Server archive 'vm/{vmid}/{when}'"
            else:
                when = time.strftime("%Y_%m_%d-%H_%M_%S", time.localtime(begun))
                target = root / f"vzdump-qemu-{vmid}-{when}.vma{EXTENSIONS.get(self.job.compress, '')}"
                said = f"vzdump archive '{_shown(self.job.storage.id)}/dump/{target.name}'"
            if not list(target.parent.glob(f"{target.name.partition('.')[0]}*")):
                self.log(f"creating {said}")
                return target
            begun += 1

    async def _make(self, target: Path, mode: str) -> None:
        """`mode` is empty for a stopped guest."""
        text, firewall = archives.config_text(self.machine.config), self.node.firewall.read(self.machine.vmid)
        guest = self.node.guest(self.machine)
        files = guest.disk.copy() if isinstance(guest, NullGuest) else None
        size = sum(drive.size for drive in archives.included(self.machine.config.current))
        scratch = target.with_name(f".{target.name}.images")
        try:
            async with self._still(mode):
                self.log(f"started backup task '{uuid.uuid4()}'")
                if mode == "snapshot":
                    self.log("resuming VM again")
                images = await self._images(scratch, bool(mode) and mode != "stop")
                await self._copy_time(size)
            await archives.write(target, text, firewall, files, images)
        finally:
            await asyncio.to_thread(_remove, scratch)
        whole, exact = wording.bytes_text(size), wording.bytes_text(size, 2)
        self.log(f"100% ({whole} of {whole}) in 1s, read: {whole}/s, write: 0 B/s")
        if files is not None:
            self.log(f"backup is sparse: {exact} (100%) total zero data")
        self.log(f"transferred {exact} in 1 seconds ({whole}/s)")
        if not (mode or self.kept or self.machine.is_template):
            self.log("stopping kvm after backup task")
        self.log(f"archive file size: {_short(target.stat().st_size)}")

    async def _copy_time(self, size: int) -> None:
        if self.machine.is_null:
            await self.node.spend(self.machine, "backup", copy=size)
            if limit := self.job.bwlimit << 10:
                await self._limited(size, limit)

    async def _limited(self, size: int, limit: int) -> None:
        """Take the time that `limit` bytes a second leave, and report every three seconds."""
        rate, whole = wording.bytes_text(limit), wording.bytes_text(size)
        for seconds in range(0, size // limit, REPORT):
            await asyncio.sleep(REPORT * self.node.time_scale)
            done = min((seconds + REPORT) * limit, size)
            how = f"{wording.bytes_text(done)} of {whole}) in {seconds + REPORT}s, read: {rate}/s, write: {rate}/s"
            self.log(f"{100 * done // size:3d}% ({how}")

    @contextlib.asynccontextmanager
    async def _still(self, mode: str) -> AsyncIterator[None]:
        """Bring the guest to where its disks can be read, and afterwards back to where it was."""
        from autovibe_lab.api.power import start_guest

        guest = self.node.guest(self.machine)
        if mode == "snapshot":
            async with self._frozen():
                await guest.snapshot(SNAPSHOT, False)
        elif mode == "suspend":
            self.log("suspending guest")
            await guest.snapshot(SNAPSHOT, False)
            await guest.pause()
        elif mode == "stop":
            self.log("stopping virtual guest")
            await guest.shutdown(60)
            await guest.stop()
        elif self.machine.is_template:
            self.log("starting template backup")
        else:
            self.log("starting kvm to execute backup task")
            await self._prelaunch()
        try:
            yield
        except asyncio.CancelledError:
            if not self.task.killed:
                self.task.log("ERROR: interrupted by signal")
                self.log("aborting backup job")
            raise
        finally:
            if not mode:
                await self._after_launch()
            if mode in ("snapshot", "suspend"):
                await guest.delete_snapshot(SNAPSHOT)
            if mode == "suspend":
                self.log("resuming VM again")
                await guest.resume()
            if mode == "stop":
                self.log("restarting vm")
                await start_guest(self.node, self.machine, self.task.log)

    async def _prelaunch(self) -> None:
        """Proxmox reads a stopped guest's disks through a QEMU that it starts, paused; a null guest shows it."""
        if self.machine.is_null:
            await self.node.guest(self.machine).start(self.machine.config.current)
            self.machine.started, self.machine.paused = time.time(), True

    async def _after_launch(self) -> None:
        """Stop it again, unless somebody has started the guest meanwhile."""
        if not self.machine.is_template and self.machine.is_null and not self.machine.paused:
            self.log("kvm status changed after backup ('running') - keep VM running")
            self.kept = True
            return
        if self.machine.is_null:
            await self.node.guest(self.machine).stop()
            self.machine.paused = False

    @contextlib.asynccontextmanager
    async def _frozen(self) -> AsyncIterator[None]:
        guest, frozen = self.node.guest(self.machine), False
        if agent_enabled(self.machine.config.current):
            with contextlib.suppress(GuestError):
                await guest.agent("guest-ping", timeout=3)
                self.log("issuing guest-agent 'fs-freeze' command")
                await guest.agent("guest-fsfreeze-freeze", timeout=60)
                frozen = True
        try:
            yield
        finally:
            if frozen:
                self.log("issuing guest-agent 'fs-thaw' command")
                with contextlib.suppress(GuestError):
                    await guest.agent("guest-fsfreeze-thaw", timeout=10)

    async def _images(self, folder: Path, snapshot: bool) -> dict[str, Path]:
        """A compressed image of each real disk."""
        found = {}
        for drive in archives.included(self.machine.config.current):
            if not self.node.storages.is_null(drive.volid):
                folder.mkdir(parents=True, exist_ok=True)
                found[drive.key] = folder / f"{drive.key}.qcow2"
                await self._image(drive, found[drive.key], snapshot)
        return found

    async def _image(self, drive: Drive, target: Path, snapshot: bool) -> None:
        path = self.node.storages.path(drive.volid)
        try:
            await disks.full_copy(path, target, SNAPSHOT if snapshot else None, compress=True)
        except disks.DiskError as error:
            raise TaskError(str(error)) from None

    def _finish(self, target: Path) -> None:
        """Notes, protection, the verification of a backup server, and the removal of what is no longer kept."""
        job = self.job
        if job.notes:
            self.log("adding notes to backup")
            contents.beside(target, contents.NOTES).write_text(self._notes())
        if job.protected:
            self.log("marking backup as protected")
            contents.beside(target, contents.PROTECTED).touch()
        if job.storage.type == "pbs":
            upid = f"UPID:pbs:{self.task.pid:08X}:00000000:00000000:{int(time.time()):08X}:verify:main:root@pam:"
            contents.beside(target, contents.VERIFIED).write_text(json.dumps({"state": "ok", "upid": upid}))
        if job.prune and not job.prune.get("keep-all"):
            self._prune(job.prune)

    def _notes(self) -> str:
        names = {
            "vmid": str(self.machine.vmid),
            "guestname": self.machine.config.current.get("name", f"VM {self.machine.vmid}"),
            "node": self.node.name,
            "cluster": "standalone node" if len(self.node.cluster.nodes) == 1 else "autovibe",
        }
        text = self.job.notes.replace("\\n", "\n").replace("\\\\", "\\")
        return re.sub(r"{{\s*(\w+)\s*}}", lambda match: names.get(match[1], match[0]), text)

    def _prune(self, keep: dict[str, int]) -> None:
        said = ", ".join(f"{key}={value}" for key, value in keep.items())
        self.log(f"prune older backups with retention: {said}")
        own = [
            entry
            for entry in contents.backups(self.node.storages, self.job.storage.id)
            if entry["vmid"] == self.machine.vmid
        ]
        doomed = [entry["volid"] for entry in retention.marks(own, keep) if entry["mark"] == "remove"]
        for volid in doomed:
            self.log(f"removing backup '{volid}'")
            contents.remove(self.node.storages.path(volid))
        self.log(f"pruned {len(doomed)} backup(s) not covered by keep-retention policy")


async def run(node: Node, vmid: int, job: Job, task: Task) -> bool:
    """Back one guest up; False, with the reason in the log, when it failed."""
    try:
        if vmid not in node.machines:
            raise TaskError(f"unable to find VM '{vmid}'")
        await Backup(node, node.machines[vmid], job, task).run()
    except (TaskError, GuestError, LockTimeout) as error:
        _failed(task, vmid, str(error))
        return False
    except asyncio.CancelledError:
        if task.killed:
            raise
        said = "interrupted by signal"
        _failed(task, vmid, said)
        task.log(f"ERROR: Backup job failed - {said}")
        raise TaskError(said) from None
    return True


def _failed(task: Task, vmid: int, reason: str) -> None:
    task.log(f"ERROR: Backup of VM {vmid} failed - {reason}")
    task.log(f"INFO: Failed at {_now()}")


def _remove(folder: Path) -> None:
    for file in folder.glob("*"):
        file.unlink()
    if folder.exists():
        folder.rmdir()


def _shown(storage: str) -> str:
    return "/var/lib/vz" if storage == "local" else f"/var/lib/vz/{storage}"


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _short(size: int) -> str:
    """`47KB`, `1.21GB`, as vzdump writes it."""
    for unit, shift in (("GB", 30), ("MB", 20)):
        if size >> shift:
            return f"{size / (1 << shift):.2f}{unit}" if unit == "GB" else f"{size >> shift}{unit}"
    return f"{max(size >> 10, 1)}KB"
