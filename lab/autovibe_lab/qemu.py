"""A guest that is a real virtual machine: one QEMU process, its monitor, its agent.

The process outlives the daemon that started it, on purpose: a restarted daemon adopts it by its pid file and sockets,
and `orphans()` finds whatever a crash has left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import uuid
from pathlib import Path

from autovibe_lab import qemu_command
from autovibe_lab.agent_channel import AgentChannel
from autovibe_lab.guest import AgentError, GuestError
from autovibe_lab.paths import LabPaths, Network
from autovibe_lab.qmp import Qmp, QmpError

#: Seconds that a new QEMU has to open its monitor, and one that was told to quit to be gone.
START_TIMEOUT, QUIT_TIMEOUT = 30, 5


class QemuGuest:
    """See `guest.Guest`. `accel` is `kvm` or `tcg` (module `accel` finds out which)."""

    def __init__(self, vmid: int, lab: LabPaths, network: Network, accel: str = "tcg", restrict: bool = True) -> None:
        self.vmid = vmid
        # Absolute, so that the processes' command lines tell the lab that they are of.
        self._lab = LabPaths(lab.state.absolute())
        self._network, self._accel, self._restrict = network, accel, restrict
        self._config: dict[str, str] = {}
        self._process: Process | None = None
        self._qmp: Qmp | None = None
        self._channel = AgentChannel(self._file("qga"))
        self._agent_open = asyncio.Event()

    # -- power

    async def start(self, config: dict[str, str]) -> None:
        if self.running():
            raise GuestError(f"VM {self.vmid} already running")
        argv = qemu_command.command(
            self.vmid, config, self._lab, self._network, accel=self._accel, restrict=self._restrict
        )
        if state := config.get("vmstate"):
            argv += ["-loadvm", state]
        for program, package in (("qemu-system-x86_64", "qemu-system-x86"), ("socat", "socat")):
            if not shutil.which(program):
                raise GuestError(f"{program} is missing: install the package {package}")
        await self._forget()
        self._config = dict(config)
        log = self._file("log")
        with log.open("wb") as output:
            # A session of its own: a signal to the daemon's terminal is none to its guests.
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self._process = Process(child.pid, child)
        try:
            await asyncio.wait_for(self._connect(), START_TIMEOUT)
        except (QmpError, OSError, TimeoutError):
            await self._process.kill()
            await self._forget()
            said = log.read_text(errors="replace").strip().splitlines()
            raise GuestError(f"start failed: QEMU exited: {said[-1] if said else 'no monitor'}") from None
        except BaseException:
            await self._process.kill()
            raise

    async def adopt(self, config: dict[str, str]) -> bool:
        """Take over the QEMU that an earlier daemon started, if it still runs."""
        pid = _pid_of(self._file("pid"), self._lab)
        if pid is None:
            return False
        await self._forget(files=False)
        self._config = dict(config)
        self._process = Process(pid)
        try:
            await asyncio.wait_for(self._connect(), START_TIMEOUT)
        except (QmpError, OSError, TimeoutError):
            # Without its monitor it is of no use to anybody.
            await self._process.kill()
            await self._forget()
            return False
        return True

    async def stop(self) -> None:
        if self._process is None:
            return
        if self._qmp is not None:
            with contextlib.suppress(QmpError, TimeoutError):
                await asyncio.wait_for(self._qmp.execute("quit"), QUIT_TIMEOUT)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.exited.wait(), QUIT_TIMEOUT)
        await self._process.kill()
        await self._forget()

    async def shutdown(self, timeout: float) -> bool:
        if not self.running():
            return True
        try:
            async with asyncio.timeout(timeout):
                await self._ask_to_go(min(timeout, 3))
                await self._process.exited.wait()
        except TimeoutError:
            return not self.running()
        await self._forget()
        return True

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def running(self) -> bool:
        return self._process is not None and not self._process.exited.is_set()

    async def wait(self) -> None:
        """Until the guest is off, whoever turned it off."""
        if self._process is not None:
            await self._process.exited.wait()

    async def pause(self) -> None:
        await self._monitor("stop")

    async def resume(self) -> None:
        await self._monitor("cont")

    async def reset(self) -> None:
        # It was started with -no-reboot, which takes every reset for an end; the BIOS resets once more by itself.
        await self._monitor("set-action", reboot="reset")
        await self._monitor("system_reset")

    async def close(self) -> None:
        self._channel.close()
        if self._qmp is not None:
            await self._qmp.close()
            self._qmp = None
        if self._process is not None:
            self._process.release()
            self._process = None

    # -- agent

    async def agent(self, command: str, arguments: dict | None = None, timeout: float = 5) -> object:
        if not self.running():
            raise AgentError(f"VM {self.vmid} is not running")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        await self._agent_ready(timeout)
        return await self._channel.call(command, arguments, max(deadline - loop.time(), 0.01))

    async def _agent_ready(self, timeout: float) -> None:
        """Until the agent in the guest has opened its port: what is sent before would wait there, and be run later."""
        if self._agent_open.is_set():
            return
        opened = asyncio.ensure_future(self._agent_open.wait())
        gone = asyncio.ensure_future(self._process.exited.wait())
        try:
            await asyncio.wait((opened, gone), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            opened.cancel()
            gone.cancel()
        if not self._agent_open.is_set():
            raise AgentError("QEMU guest agent is not running")

    async def _ask_to_go(self, agent_timeout: float) -> None:
        if qemu_command.agent_enabled(self._config) and self._agent_open.is_set():
            with contextlib.suppress(AgentError):
                await self.agent("guest-ping", timeout=agent_timeout)
                await self._channel.send("guest-shutdown", {"mode": "powerdown"}, agent_timeout)
                return
        with contextlib.suppress(GuestError):
            await self._monitor("system_powerdown")

    # -- snapshots

    async def snapshot(self, name: str, ram: bool) -> None:
        nodes = self._disks()
        if ram:
            await self._job("snapshot-save", tag=name, vmstate=nodes[0], devices=nodes)
            return
        actions = [
            {"type": "blockdev-snapshot-internal-sync", "data": {"device": node, "name": name}} for node in nodes
        ]
        await self._monitor("transaction", actions=actions)

    async def delete_snapshot(self, name: str) -> None:
        await self._job("snapshot-delete", tag=name, devices=self._disks())

    async def resize(self, key: str, size: int) -> None:
        """Tell the running guest that its drive (`scsi0`) has `size` bytes."""
        await self._monitor("block_resize", node_name=f"drive-{key}", size=size)

    def _disks(self) -> list[str]:
        found = [drive.node for drive in qemu_command.drives(self._config, self._lab) if not drive.read_only]
        if not found:
            raise GuestError(f"VM {self.vmid} has no disk to snapshot")
        return found

    # -- monitor

    async def _connect(self) -> None:
        path, delay = self._file("qmp"), 0.01
        while True:
            try:
                self._qmp = await Qmp.connect(path, self._on_event)
                break
            except (OSError, QmpError):
                if not self.running():
                    raise
                await asyncio.sleep(delay)
                delay = min(delay * 1.5, 0.2)
        for device in await self._qmp.execute("query-chardev"):
            if device["label"] == "qga" and device["frontend-open"]:
                self._agent_open.set()

    def _on_event(self, name: str, data: dict) -> None:
        if name == "VSERPORT_CHANGE" and data.get("id") == "qga":
            if data["open"]:
                self._agent_open.set()
            else:
                self._agent_open.clear()
                self._channel.close()

    async def _monitor(self, command: str, **arguments: object) -> object:
        if self._qmp is None or not self.running():
            raise GuestError(f"VM {self.vmid} not running")
        try:
            return await self._qmp.execute(command, **arguments)
        except QmpError as error:
            raise GuestError(f"VM {self.vmid} qmp command '{command}' failed - {error}") from None

    async def _job(self, command: str, **arguments: object) -> None:
        if self._qmp is None or not self.running():
            raise GuestError(f"VM {self.vmid} not running")
        try:
            await self._qmp.run_job(command, f"{command}-{uuid.uuid4().hex[:8]}", **arguments)
        except QmpError as error:
            raise GuestError(f"VM {self.vmid} qmp command '{command}' failed - {error}") from None

    def _file(self, kind: str) -> Path:
        """One of the guest's files that live as long as its process: pid, qmp, qga, console, log."""
        return self._lab.run / f"{self.vmid}.{kind}"

    async def _forget(self, files: bool = True) -> None:
        """Let go of a process that is gone, and of its sockets. Its console and log stay until the next start."""
        await self.close()
        self._agent_open.clear()
        if files:
            for kind in ("pid", "qmp", "qga"):
                self._file(kind).unlink(missing_ok=True)


class Process:
    """A QEMU process, our child or not; `exited` is set as soon as it is gone."""

    def __init__(self, pid: int, child: subprocess.Popen | None = None) -> None:
        self.pid, self._child = pid, child
        self.exited = asyncio.Event()
        self._descriptor: int | None = None
        self._loop = asyncio.get_running_loop()
        try:
            self._descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            self.exited.set()
        else:
            self._loop.add_reader(self._descriptor, self._gone)

    async def kill(self) -> None:
        """End it and the relays that it has started, and wait for that."""
        if not self.exited.is_set():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
            await self.exited.wait()
        self.release()

    def release(self) -> None:
        """Stop watching."""
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def _gone(self) -> None:
        # The relays are in its process group; before it is reaped its number is nobody else's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._child is not None:
            self._child.wait()
        self.release()
        self.exited.set()


def orphans(lab: LabPaths) -> list[int]:
    """The processes of this lab's guests, QEMU and relays, that run now: what `lab down` must end after a crash."""
    run = LabPaths(lab.state.absolute()).run
    marks = {os.fsencode(run / "x")[:-1], os.fsencode(f"-lp{run}")}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            argv = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if os.path.basename(argv[0]) not in (b"qemu-system-x86_64", b"socat"):
            continue
        if any(argument.startswith(mark) for argument in argv for mark in marks):
            found.append(int(folder.name))
    return found


def _pid_of(file: Path, lab: LabPaths) -> int | None:
    """The running process that a pid file names, if it is a guest of this lab and no stranger with its number."""
    try:
        pid = int(file.read_text())
    except (OSError, ValueError):
        return None
    return pid if pid in orphans(lab) else None
