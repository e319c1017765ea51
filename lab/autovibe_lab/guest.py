"""What the node asks of a guest, and the guest that is none.

`Guest` is the whole interface between the API and a virtual machine. `QemuGuest` (module `qemu`) runs a real one;
`NullGuest` starts no process and answers the agent at once: for tests and benchmarks at scale.
"""

from __future__ import annotations

import base64
import itertools
import re
from typing import Protocol


class GuestError(Exception):
    """The guest could not do it; the message is what Proxmox would say as a task's error."""


class AgentError(GuestError):
    """The guest agent did not answer, or answered with an error."""


class Guest(Protocol):
    """A virtual machine as the node sees it. `config` is the current section of its configuration file."""

    vmid: int

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


class NullGuest:
    """A guest without a process. What the agent writes is kept in memory and stands for the disk's content: it outlives
    a stop, goes into snapshots and is copied to clones."""

    def __init__(self, vmid: int) -> None:
        self.vmid = vmid
        self.files: dict[str, bytes] = {}
        self.snapshots: dict[str, dict[str, bytes]] = {}
        self.frozen = False
        self._running = False
        self._config: dict[str, str] = {}
        self._handles: dict[int, tuple[str, str, int]] = {}
        self._results: dict[int, dict] = {}
        self._next = itertools.count(1000)

    async def start(self, config: dict[str, str]) -> None:
        self._config = dict(config)
        self._running = True
        self.frozen = False

    async def stop(self) -> None:
        self._running = False
        self._handles.clear()
        self._results.clear()

    async def shutdown(self, timeout: float) -> bool:
        await self.stop()
        return True

    def running(self) -> bool:
        return self._running

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    async def resize(self, key: str, size: int) -> None: ...

    async def adopt(self, config: dict[str, str]) -> bool:
        return False

    async def close(self) -> None: ...

    async def snapshot(self, name: str, ram: bool) -> None:
        self.snapshots[name] = dict(self.files)

    async def delete_snapshot(self, name: str) -> None:
        self.snapshots.pop(name, None)

    def rollback(self, name: str) -> None:
        """The disk as it was at the snapshot."""
        self.files = dict(self.snapshots.get(name, {}))

    async def agent(self, command: str, arguments: dict | None = None, timeout: float = 5) -> object:
        if not self._running:
            raise AgentError("QEMU guest agent is not running")
        answer = getattr(self, "_" + command.replace("-", "_"), None)
        if answer is None:
            raise AgentError(f"The command {command} has not been found")
        return answer(**{key.replace("-", "_"): value for key, value in (arguments or {}).items()})

    def _guest_ping(self) -> dict:
        return {}

    def _guest_sync(self, id: int) -> int:
        return id

    def _guest_info(self) -> dict:
        return {"version": "7.2.0", "supported_commands": []}

    def _guest_get_osinfo(self) -> dict:
        return {"id": "null", "name": "Null guest", "pretty-name": "Null guest", "machine": "x86_64"}

    def _guest_get_host_name(self) -> dict:
        return {"host-name": self._config.get("name", f"VM{self.vmid}")}

    def _guest_exec(self, path: str, arg: list[str] | None = None, **_: object) -> dict:
        pid = next(self._next)
        self._results[pid] = {"exited": True, "exitcode": 0}
        return {"pid": pid}

    def _guest_exec_status(self, pid: int) -> dict:
        if pid not in self._results:
            raise AgentError("Invalid parameter 'pid'")
        return self._results.pop(pid)

    def _guest_file_open(self, path: str, mode: str = "r") -> int:
        if mode.startswith("r") and path not in self.files:
            raise AgentError(f"failed to open file '{path}' (mode: '{mode}'): No such file or directory")
        handle = next(self._next)
        self._handles[handle] = (path, mode, 0)
        if mode.startswith("w"):
            self.files[path] = b""
        return handle

    def _guest_file_write(self, handle: int, buf_b64: str, count: int | None = None) -> dict:
        path, _, _ = self._handles[handle]
        content = base64.b64decode(buf_b64)[:count]
        self.files[path] = self.files.get(path, b"") + content
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
        return 1

    def _guest_fsfreeze_thaw(self) -> int:
        count, self.frozen = int(self.frozen), False
        return count

    def _guest_fstrim(self) -> dict:
        return {"paths": []}

    def _guest_network_get_interfaces(self) -> list[dict]:
        loopback = {"ip-address-type": "ipv4", "ip-address": "127.0.0.1", "prefix": 8}
        interfaces = [{"name": "lo", "hardware-address": "00:00:00:00:00:00", "ip-addresses": [loopback]}]
        mac = re.search(r"=((?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2})", self._config.get("net0", ""))
        address = re.search(r"\bip=([0-9.]+)/(\d+)", self._config.get("ipconfig0", ""))
        if mac:
            interface: dict = {"name": "eth0", "hardware-address": mac[1].lower(), "ip-addresses": []}
            if address:
                found = {"ip-address-type": "ipv4", "ip-address": address[1], "prefix": int(address[2])}
                interface["ip-addresses"].append(found)
            interfaces.append(interface)
        return interfaces
