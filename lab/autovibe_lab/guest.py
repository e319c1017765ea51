"""What the node asks of a guest, and the guest that is none.

`Guest` is the whole interface between the API and a virtual machine. `QemuGuest` (module `qemu`) runs a real one;
`NullGuest` starts no process and answers the agent at once: for tests and benchmarks at scale.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import posixpath
import re
import time
from dataclasses import dataclass
from typing import Protocol

from autovibe_lab import null_programs
from autovibe_lab.config import DRIVES, Drive
from autovibe_lab.null_programs import Disk

#: What the agent captures of a program's output, each of both.
OUTPUT_LIMIT = 16 << 20


#: What qemu-ga 7.2 knows, and of it what has no answer when it succeeds.
COMMANDS = [
    "get-cpustats",
    "get-diskstats",
    "ssh-remove-authorized-keys",
    "ssh-add-authorized-keys",
    "ssh-get-authorized-keys",
    "get-devices",
    "get-osinfo",
    "get-timezone",
    "get-users",
    "get-host-name",
    "exec",
    "exec-status",
    "get-memory-block-info",
    "set-memory-blocks",
    "get-memory-blocks",
    "set-user-password",
    "get-fsinfo",
    "get-disks",
    "set-vcpus",
    "get-vcpus",
    "network-get-interfaces",
    "fstrim",
    "fsfreeze-thaw",
    "fsfreeze-freeze-list",
    "fsfreeze-freeze",
    "fsfreeze-status",
    "file-flush",
    "file-seek",
    "file-write",
    "file-read",
    "file-close",
    "file-open",
    "info",
    "set-time",
    "get-time",
    "ping",
    "sync",
    "sync-delimited",
]
UNANSWERED = ("suspend-hybrid", "suspend-ram", "suspend-disk", "shutdown")


class GuestError(Exception):
    """The guest could not do it; the message is what Proxmox would say as a task's error."""


class AgentError(GuestError):
    """The guest agent did not answer, or answered with an error."""


class Guest(Protocol):
    """A virtual machine as the node sees it. `config` is the current section of its configuration file."""

    vmid: int
    #: The number of its process, while it runs.
    pid: int

    async def start(self, config: dict[str, str]) -> None:
        """Start it; returns once it runs. `vmstate` in the config names a snapshot with RAM to resume from
        (after a rollback): start with `-loadvm`. Raises GuestError."""

    async def stop(self) -> None:
        """Kill it at once. Of a stopped guest: nothing."""

    async def shutdown(self, timeout: float) -> bool:
        """Ask it to go, through its agent or by ACPI. False when it still runs after `timeout` seconds."""

    def running(self) -> bool: ...

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    async def reset(self) -> None:
        """Press its reset button."""

    async def agent(self, command: str, arguments: dict | None = None, timeout: float = 5) -> object:
        """One guest agent command by its own name (`guest-ping`, `guest-exec`, …) with its own arguments; returns what
        stands under `return`. Raises AgentError."""

    async def snapshot(self, name: str, ram: bool) -> None:
        """Snapshot the disks (and the RAM) of the running guest, through QMP."""

    async def delete_snapshot(self, name: str) -> None:
        """Delete that snapshot from the running guest's disks, through QMP."""

    async def resize(self, key: str, size: int) -> None:
        """Give the running guest's drive (`scsi0`) `size` bytes."""

    async def adopt(self, config: dict[str, str]) -> bool:
        """Take it over if an earlier daemon's process of it still runs."""

    async def close(self) -> None:
        """Let go of it without stopping it."""


def boots_from_cd(config: dict[str, str]) -> bool:
    """The first device of the boot order is a CD drive with an image in it."""
    first = config.get("boot", "").removeprefix("order=").partition(";")[0]
    drive = Drive.parse(first, config.get(first, ""))
    return bool(DRIVES.fullmatch(first)) and drive.is_cdrom and "/" in drive.volid and not drive.is_cloudinit


@dataclass
class Process:
    """A program that a null guest was told to run; its result is there from `ends` on."""

    run: null_programs.Run
    ends: float
    signal: int | None = None


class NullGuest:
    """A guest without a process. What the agent writes is kept in memory and stands for the disk's content: it outlives
    a stop, goes into snapshots and is copied to clones. What lies in `/run` ends with each start. Its programs are
    those of `null_programs`.

    With `bare` it has no operating system, unless it boots from a CD: no agent answers, and ACPI wakes nobody.
    """

    def __init__(self, vmid: int, bare: bool = False) -> None:
        self.vmid = vmid
        self.pid = 100_000 + vmid
        self.bare = bare
        self.disk = Disk()
        self.snapshots: dict[str, Disk] = {}
        self.frozen = False
        self._running = False
        self._silent = False
        self._stopped = asyncio.Event()
        self._config: dict[str, str] = {}
        self._handles: dict[int, tuple[str, str, int]] = {}
        self._processes: dict[int, Process] = {}
        self._next = itertools.count(1000)

    @property
    def has_system(self) -> bool:
        """An operating system runs in it."""
        return self._running and not self._silent

    @property
    def files(self) -> dict[str, bytes]:
        return self.disk.files

    async def start(self, config: dict[str, str]) -> None:
        self._config = dict(config)
        self._running, self._silent = True, self.bare and not boots_from_cd(config)
        self._stopped.clear()
        self.frozen = False
        if not config.get("vmstate"):
            self.disk.boot()

    async def stop(self) -> None:
        self._running = False
        self._stopped.set()
        self._handles.clear()
        self._processes.clear()

    async def shutdown(self, timeout: float) -> bool:
        if self._silent:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), timeout)
            return not self._running
        await self.stop()
        return True

    def running(self) -> bool:
        return self._running

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    async def reset(self) -> None:
        self._handles.clear()
        self._processes.clear()
        self.disk.boot()

    async def resize(self, key: str, size: int) -> None: ...

    async def adopt(self, config: dict[str, str]) -> bool:
        return False

    async def close(self) -> None: ...

    async def snapshot(self, name: str, ram: bool) -> None:
        self.snapshots[name] = self.disk.copy()

    async def delete_snapshot(self, name: str) -> None:
        self.snapshots.pop(name, None)

    def rollback(self, name: str) -> None:
        """The disk as it was at the snapshot."""
        self.disk = self.snapshots.get(name, Disk()).copy()

    async def agent(self, command: str, arguments: dict | None = None, timeout: float = 5) -> object:
        if not self._running:
            raise AgentError("QEMU guest agent is not running")
        if self._silent:
            await asyncio.sleep(timeout)
            raise AgentError(f"got timeout: the guest agent did not answer {command} within {timeout:g} s")
        answer = getattr(self, "_" + command.replace("-", "_"), None)
        if answer is None:
            raise AgentError(f"The command {command} has not been found")
        return answer(**{key.replace("-", "_"): value for key, value in (arguments or {}).items()})

    def _guest_ping(self) -> dict:
        return {}

    def _guest_sync(self, id: int) -> int:
        return id

    def _guest_info(self) -> dict:
        commands = [{"name": f"guest-{name}", "enabled": True, "success-response": True} for name in COMMANDS]
        for command in commands:
            command["enabled"] = command["name"] != "guest-get-devices"  # Windows only
        silent = [{"name": f"guest-{name}", "enabled": True, "success-response": False} for name in UNANSWERED]
        return {"version": "7.2.22", "supported_commands": commands + silent}

    def _guest_get_osinfo(self) -> dict:
        found = {"id": "null", "name": "Null guest", "pretty-name": "Null guest 1", "machine": "x86_64"}
        found |= {"version": "1", "version-id": "1", "kernel-release": "6.1.0-0-null", "kernel-version": "#1 SMP"}
        return found

    def _hostname(self) -> str:
        return self._config.get("name", f"VM{self.vmid}")

    def _guest_get_host_name(self) -> dict:
        return {"host-name": self._hostname()}

    def _guest_get_time(self) -> int:
        return time.time_ns()

    def _guest_get_timezone(self) -> dict:
        return {"zone": "UTC", "offset": 0}

    def _guest_get_users(self) -> list:
        return []

    def _guest_get_fsinfo(self) -> list:
        return []

    def _guest_get_vcpus(self) -> list[dict]:
        return [
            {"logical-id": number, "online": True, "can-offline": number > 0}
            for number in range(int(self._config.get("cores", "1")))
        ]

    def _guest_get_memory_blocks(self) -> list[dict]:
        return [{"phys-index": number, "online": True, "can-offline": True} for number in (1, 0)]

    def _guest_get_memory_block_info(self) -> dict:
        return {"size": 128 << 20}

    def _guest_set_user_password(self, username: str, password: str, crypted: bool = False) -> dict:
        if self.bare or username != "root":
            raise AgentError("child process has failed to set user password")
        return {}

    def _guest_suspend(self) -> None:
        raise AgentError("the guest can't suspend")

    _guest_suspend_disk = _guest_suspend_ram = _guest_suspend_hybrid = _guest_suspend

    def _guest_exec(self, path: str, arg: list[str] | None = None, input_data: str = "", **_: object) -> dict:
        if null_programs.missing(path, self.disk):
            failed = f"Failed to execute child process “{path}” (No such file or directory)"
            raise AgentError(f"Guest agent command failed, error was '{failed}'")
        run = null_programs.run(self.disk, self._hostname(), [path, *(arg or [])], base64.b64decode(input_data))
        pid = next(self._next)
        self._processes[pid] = Process(run, asyncio.get_running_loop().time() + run.seconds)
        for victim, signal in run.kills:
            process = self._processes.get(victim)
            if process and process.ends > asyncio.get_running_loop().time():
                process.ends, process.signal = 0, signal
        return {"pid": pid}

    def _guest_exec_status(self, pid: int) -> dict:
        if pid not in self._processes:
            raise AgentError("Invalid parameter 'pid'")
        if self._processes[pid].ends > asyncio.get_running_loop().time():
            return {"exited": False}
        process = self._processes.pop(pid)
        found: dict[str, object] = {"exited": True}
        if process.signal:
            return found | {"signal": process.signal}
        found["exitcode"] = process.run.code
        for name, content in (("out", process.run.out), ("err", process.run.err)):
            if content:
                found[f"{name}-data"] = base64.b64encode(content[:OUTPUT_LIMIT]).decode()
            if len(content) > OUTPUT_LIMIT:
                found[f"{name}-truncated"] = True
        return found

    def _guest_file_open(self, path: str, mode: str = "r") -> int:
        known = path in self.files if mode.startswith("r") else self.disk.has_folder(posixpath.dirname(path) or "/")
        if not known:
            raise AgentError(f"failed to open file '{path}' (mode: '{mode}'): No such file or directory")
        handle = next(self._next)
        self._handles[handle] = (path, mode, 0)
        if mode.startswith("w"):
            self.disk.files.pop(path, None)
            self.disk.write(path, b"")
        return handle

    def _guest_file_write(self, handle: int, buf_b64: str, count: int | None = None) -> dict:
        path, _, _ = self._handles[handle]
        content = base64.b64decode(buf_b64)[:count]
        self.disk.write(path, content, append=True)
        return {"count": len(content), "eof": False}

    def _guest_file_read(self, handle: int, count: int = 4096) -> dict:
        path, mode, at = self._handles[handle]
        content = self.files[path][at : at + count]
        self._handles[handle] = (path, mode, at + len(content))
        eof = at + len(content) >= len(self.files[path])
        return {"count": len(content), "buf-b64": base64.b64encode(content).decode(), "eof": eof}

    def _guest_file_close(self, handle: int) -> dict:
        self._handles.pop(handle, None)
        return {}

    def _guest_fsfreeze_status(self) -> str:
        return "frozen" if self.frozen else "thawed"

    def _guest_fsfreeze_freeze(self) -> int:
        self.frozen = True
        return self._file_systems()

    def _guest_fsfreeze_thaw(self) -> int:
        count, self.frozen = self._file_systems() if self.frozen else 0, False
        return count

    def _file_systems(self) -> int:
        """How many can be frozen: what runs off a CD has none."""
        return 0 if self.bare else 1

    def _guest_fstrim(self) -> dict:
        return {"paths": []}

    def _guest_network_get_interfaces(self) -> list[dict]:
        loopback = [{"ip-address-type": "ipv4", "ip-address": "127.0.0.1", "prefix": 8}]
        loopback += [{"ip-address-type": "ipv6", "ip-address": "::1", "prefix": 128}]
        traffic = {f"{way}-{what}": 0 for way in ("rx", "tx") for what in ("bytes", "packets", "errs", "dropped")}
        interfaces = [{"name": "lo", "hardware-address": "00:00:00:00:00:00", "ip-addresses": loopback}]
        interfaces[0]["statistics"] = dict(traffic)
        mac = re.search(r"=((?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2})", self._config.get("net0", ""))
        address = re.search(r"\bip=([0-9.]+)/(\d+)", self._config.get("ipconfig0", ""))
        if mac:
            interface: dict = {"name": "eth0", "hardware-address": mac[1].lower(), "ip-addresses": []}
            interface["statistics"] = dict(traffic)
            if address:
                found = {"ip-address-type": "ipv4", "ip-address": address[1], "prefix": int(address[2])}
                interface["ip-addresses"].append(found)
            interfaces.append(interface)
        return interfaces
