"""/nodes/N/qemu/ID/status: what runs, and start, stop, shutdown, reboot, suspend, resume."""

from __future__ import annotations

import asyncio
import contextlib
import time

from autovibe_lab import edit, hibernate
from autovibe_lab.api.routes import Call, route
from autovibe_lab.api.show import status
from autovibe_lab.cloudinit import write_drive
from autovibe_lab.config import drives
from autovibe_lab.errors import ApiError, TaskError
from autovibe_lab.firewall import enforce
from autovibe_lab.guest import GuestError
from autovibe_lab.locks import LockTimeout
from autovibe_lab.node import Machine, Node
from autovibe_lab.options import agent_enabled
from autovibe_lab.tasks import Task

STATUS = "/nodes/{node}/qemu/{vmid}/status"

#: How long a shutdown waits without `timeout`: a minute for ACPI, three with an agent, as Proxmox.
SHUTDOWN_TIMEOUT = 60
#: Seconds between the end of a reboot's task and the guest's new start.
REBOOT_GAP = 2


async def start_guest(node: Node, machine: Machine, log: edit.Log, vmstate: str | None = None) -> None:
    """Start it, inside a task that holds its lock. `vmstate` names a snapshot with RAM to go on from."""
    if machine.is_template:
        raise TaskError("you can't start a vm if it's a template")
    if machine.running():
        raise TaskError(f"VM {machine.vmid} already running")
    saved = hibernate.saved_name(machine)
    if saved:
        log("Resuming suspended VM")
        log(f"activating and using '{machine.config.current['vmstate']}' as vmstate")
    elif machine.config.pending:
        await edit.apply_pending(node, machine, log)
        node.save(machine)
    current = {key: value for key, value in machine.config.current.items() if key != "vmstate"}
    if not (saved or vmstate):
        await _prepare_drives(node, machine, log)
    _check_bridges(machine, log)
    guest = node.guest(machine)
    enforce.close_or_open(node, machine)
    await node.spend(machine, "start")
    state = vmstate or saved
    await guest.start(current | ({"vmstate": state} if state else {}))
    machine.started, machine.paused = time.time(), False
    if saved:
        log("Resumed VM, removing state")
        await hibernate.drop_state(node, machine)


async def _prepare_drives(node: Node, machine: Machine, log: edit.Log) -> None:
    for drive in drives(machine.config.current):
        if drive.is_cloudinit and drive.has_volume:
            log("generating cloud-init ISO")
            if not machine.is_null:
                await write_drive(machine.config.current, machine.vmid, node.storages.path(drive.volid))
        elif not machine.is_null and drive.has_volume and not node.storages.exists(drive.volid):
            raise TaskError(f"volume '{drive.volid}' does not exist")


def _check_bridges(machine: Machine, log: edit.Log) -> None:
    """QEMU's script for a network device fails where its bridge is missing."""
    if found := edit.missing_bridge(machine.config.current):
        key, bridge = found
        tap, scripts = f"tap{machine.vmid}i{key.removeprefix('net')}", "/usr/libexec/qemu-server/pve-bridge"
        log(f"bridge '{bridge}' does not exist")
        log(
            f"kvm: -netdev type=tap,id={key},ifname={tap},script={scripts},downscript={scripts}down: "
            f"network script {scripts} failed with status 512"
        )
        raise TaskError("start failed: QEMU exited with code 1")


async def stop_guest(machine: Machine) -> None:
    if machine.guest is not None:
        await machine.guest.stop()
    machine.paused = False


def _check_running_lock(machine: Machine, call: Call) -> None:
    """Who stops a guest that runs asks first whether another operation has locked it."""
    if not call.get("skiplock") and (message := machine.locked()):
        raise TaskError(message)


async def _shutdown(node: Node, machine: Machine, call: Call, task: Task) -> None:
    if not machine.running():
        return
    _check_running_lock(machine, call)
    agent = agent_enabled(machine.config.current)
    timeout = call.get("timeout", SHUTDOWN_TIMEOUT * (3 if agent else 1)) * node.time_scale
    if agent:
        await _try_agent(node, machine, task)
    await node.spend(machine, "shutdown")
    if await node.guest(machine).shutdown(timeout):
        machine.paused = False
    elif call.get("forceStop"):
        task.log("VM still running - terminating now with SIGTERM")
        await stop_guest(machine)
    else:
        raise TaskError("VM quit/powerdown failed - got timeout")


async def _try_agent(node: Node, machine: Machine, task: Task) -> None:
    """Is the agent there? One that is not costs three seconds; an abort meanwhile is taken for its silence."""
    try:
        await node.guest(machine).agent("guest-ping", timeout=3 * node.time_scale)
    except GuestError:
        task.log(f"QEMU Guest Agent is not running - VM {machine.vmid} qmp command 'guest-ping' failed - got timeout")
    except asyncio.CancelledError:
        task.log("QEMU Guest Agent is not running - received interrupt")
        task.killed = True
        raise


@route("GET", STATUS)
async def index(call: Call) -> object:
    commands = ("current", "start", "stop", "reset", "shutdown", "suspend", "reboot")
    return [{"subdir": name} for name in commands]


@route("GET", f"{STATUS}/current")
async def current(call: Call) -> object:
    return status(call.machine)


@route("POST", f"{STATUS}/start")
async def start(call: Call) -> object:
    call.root_only("skiplock")
    node, vmid = call.node, call.params["vmid"]

    async def work(task: Task) -> None:
        machine = node.for_task(vmid)
        async with machine.lock.hold(node.lock_timeout, log=task.log):
            lock = node.for_task(vmid).config.current.get("lock")
            if lock == "backup" and machine.running():
                # Its backup has started it, paused.
                await node.guest(machine).resume()
                machine.paused = False
                return
            if not call.get("skiplock") and lock != "suspended":
                node.unlocked(vmid)
            await start_guest(node, machine, task.log)

    return call.task("qmstart", work)


@route("POST", f"{STATUS}/stop")
async def stop(call: Call) -> object:
    call.root_only("skiplock")
    node, vmid = call.node, call.params["vmid"]
    if call.get("overrule-shutdown"):
        for task in node.tasks.running("qmshutdown", str(vmid)):
            await node.tasks.abort(task)

    async def work(task: Task) -> None:
        if vmid not in node.machines:
            raise TaskError(f"unable to find configuration file for VM {vmid} on node '{node.name}'")
        machine = node.machines[vmid]
        async with machine.lock.hold(node.lock_timeout, log=task.log):
            if machine.running():
                _check_running_lock(machine, call)
                await node.spend(machine, "stop")
            await stop_guest(machine)

    return call.task("qmstop", work)


@route("POST", f"{STATUS}/shutdown")
async def shutdown(call: Call) -> object:
    call.root_only("skiplock")
    node, vmid = call.node, call.params["vmid"]
    if vmid in node.machines and not call.get("forceStop"):
        _check_not_paused(node.machines[vmid])

    async def work(task: Task) -> None:
        machine = node.for_task(vmid)
        async with machine.lock.hold(node.lock_timeout, log=task.log):
            if machine.running() and machine.paused:
                task.log("VM is paused - stop instead of shutdown")
                await stop_guest(machine)
            await _shutdown(node, machine, call, task)

    return call.task("qmshutdown", work)


def _check_not_paused(machine: Machine) -> None:
    if machine.running() and machine.paused:
        raise ApiError(500, "VM is paused - cannot shutdown")


def _running(call: Call) -> Machine:
    if not call.machine.running():
        raise ApiError(500, f"VM {call.machine.vmid} not running")
    return call.machine


@route("POST", f"{STATUS}/reboot")
async def reboot(call: Call) -> object:
    _check_not_paused(call.machine)
    machine, node = _running(call), call.node

    async def work(task: Task) -> None:
        async with machine.lock.hold(node.lock_timeout, log=task.log):
            node.unlocked(machine.vmid)
            await _shutdown(node, machine, call, task)
        # The task ends here; who starts it again is told by QEMU's end, a moment later.
        node.tasks.beside(_start_again(node, machine))

    return call.task("qmreboot", work)


async def _start_again(node: Node, machine: Machine) -> None:
    await asyncio.sleep(REBOOT_GAP * node.time_scale)
    with contextlib.suppress(TaskError, GuestError, LockTimeout):
        async with machine.lock.hold(node.lock_timeout):
            node.unlocked(machine.vmid)
            await start_guest(node, machine, lambda line: None)


@route("POST", f"{STATUS}/reset")
async def reset(call: Call) -> object:
    call.root_only("skiplock")
    machine, node = _running(call), call.node

    async def work(task: Task) -> None:
        async with machine.lock.hold(node.lock_timeout, log=task.log):
            _check_running_lock(machine, call)
            await node.spend(machine, "reset")
            await node.guest(machine).reset()

    return call.task("qmreset", work)


@route("POST", f"{STATUS}/suspend")
async def suspend(call: Call) -> object:
    call.root_only("skiplock")
    machine, node = _running(call), call.node
    todisk, storage = call.get("todisk"), call.get("statestorage")
    if storage is not None:
        node.storages.check(storage)

    async def work(task: Task) -> None:
        async with machine.lock.hold(node.lock_timeout, log=task.log):
            _check_running_lock(machine, call)
            if todisk:
                await hibernate.suspend_to_disk(node, machine, task.log, storage)
                return
            await node.spend(machine, "suspend")
            await node.guest(machine).pause()
            machine.paused = True

    return call.task("qmsuspend" if todisk else "qmpause", work)


@route("POST", f"{STATUS}/resume")
async def resume(call: Call) -> object:
    call.root_only("skiplock", "nocheck")
    node, machine = call.node, call.machine
    hibernated = machine.config.current.get("lock") == "suspended"
    if not hibernated:
        _running(call)

    async def work(task: Task) -> None:
        async with machine.lock.hold(node.lock_timeout, log=task.log):
            if hibernated:
                await start_guest(node, machine, task.log)
                return
            if machine.config.current.get("lock") != "backup":
                _check_running_lock(machine, call)
            await node.spend(machine, "resume")
            await node.guest(machine).resume()
            machine.paused = False

    return call.task("qmresume", work)
