"""/nodes/N/qemu/ID/status: what runs, and start, stop, shutdown, reboot, suspend, resume."""

from __future__ import annotations

import time

from autovibe_lab import edit
from autovibe_lab.api.routes import Call, route
from autovibe_lab.api.show import status
from autovibe_lab.cloudinit import write_drive
from autovibe_lab.config import drives
from autovibe_lab.errors import ApiError, TaskError
from autovibe_lab.guest import GuestError
from autovibe_lab.node import Machine, Node
from autovibe_lab.options import agent_enabled
from autovibe_lab.schema import BOOLEAN, NATURAL, STRING, opt
from autovibe_lab.tasks import Task

STATUS = "/nodes/{node}/qemu/{vmid}/status"
COMMON = {"skiplock": opt(BOOLEAN)}

#: How long a shutdown waits without `timeout`: a minute for ACPI, three with an agent, as Proxmox.
SHUTDOWN_TIMEOUT = 60


async def start_guest(node: Node, machine: Machine, log: edit.Log, vmstate: str | None = None) -> None:
    """Start it, inside a task that holds its lock. `vmstate` names a snapshot with RAM to go on from."""
    if machine.is_template:
        raise TaskError("you can't start a vm if it's a template")
    if machine.running():
        raise TaskError(f"VM {machine.vmid} already running")
    if machine.config.pending:
        await edit.apply_pending(node, machine, log)
        node.save(machine)
    current = machine.config.current
    if bridge := edit.missing_bridge(current):
        log(f"bridge '{bridge}' does not exist")
        raise TaskError("start failed: QEMU exited with code 1")
    for drive in drives(current):
        if drive.is_cloudinit and "/" in drive.volid:
            log("generating cloud-init ISO")
            if not machine.is_null:
                await write_drive(current, machine.vmid, node.storages.path(drive.volid))
        elif not machine.is_null and "/" in drive.volid and not node.storages.exists(drive.volid):
            raise TaskError(f"volume '{drive.volid}' does not exist")
    guest = node.guest(machine)
    await node.spend(machine, "start")
    await guest.start(current | ({"vmstate": vmstate} if vmstate else {}))
    machine.started, machine.paused = time.time(), False


async def stop_guest(machine: Machine) -> None:
    if machine.guest is not None:
        await machine.guest.stop()
    machine.paused = False


async def _shutdown(node: Node, machine: Machine, call: Call, task: Task) -> None:
    if not machine.running():
        return
    timeout = call.get("timeout", SHUTDOWN_TIMEOUT * (3 if agent_enabled(machine.config.current) else 1))
    if agent_enabled(machine.config.current):
        try:
            await node.guest(machine).agent("guest-ping", timeout=3)
        except GuestError:
            task.log(
                f"QEMU Guest Agent is not running - VM {machine.vmid} qmp command 'guest-ping' failed - got timeout"
            )
    await node.spend(machine, "shutdown")
    if await node.guest(machine).shutdown(timeout):
        machine.paused = False
    elif call.get("forceStop"):
        task.log("VM still running - terminating now with SIGTERM")
        await stop_guest(machine)
    else:
        raise TaskError("VM quit/powerdown failed - got timeout")


@route("GET", STATUS)
async def index(call: Call) -> object:
    commands = ("current", "start", "stop", "reset", "shutdown", "suspend", "resume", "reboot")
    return [{"subdir": name} for name in commands]


@route("GET", f"{STATUS}/current")
async def current(call: Call) -> object:
    return status(call.machine)


@route(
    "POST",
    f"{STATUS}/start",
    **COMMON,
    timeout=opt(NATURAL),
    machine=opt(STRING),
    **{"force-cpu": opt(STRING)},
)
async def start(call: Call) -> object:
    call.root_only("skiplock")
    node, vmid = call.node, call.params["vmid"]

    async def work(task: Task) -> None:
        machine = node.for_task(vmid)
        async with machine.lock.hold(node.lock_timeout, log=task.log):
            if not call.get("skiplock"):
                node.unlocked(vmid)
            await start_guest(node, machine, task.log)

    return call.task("qmstart", work)


@route(
    "POST",
    f"{STATUS}/stop",
    **COMMON,
    timeout=opt(NATURAL),
    keepActive=opt(BOOLEAN),
    **{"overrule-shutdown": opt(BOOLEAN)},
)
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
                await node.spend(machine, "stop")
            await stop_guest(machine)

    return call.task("qmstop", work)


@route(
    "POST",
    f"{STATUS}/shutdown",
    **COMMON,
    timeout=opt(NATURAL),
    forceStop=opt(BOOLEAN),
    keepActive=opt(BOOLEAN),
)
async def shutdown(call: Call) -> object:
    call.root_only("skiplock")
    node, vmid = call.node, call.params["vmid"]

    async def work(task: Task) -> None:
        machine = node.for_task(vmid)
        async with machine.lock.hold(node.lock_timeout, log=task.log):
            await _shutdown(node, machine, call, task)

    return call.task("qmshutdown", work)


def _running(call: Call) -> Machine:
    if not call.machine.running():
        raise ApiError(500, f"VM {call.machine.vmid} not running")
    return call.machine


@route("POST", f"{STATUS}/reboot", timeout=opt(NATURAL))
async def reboot(call: Call) -> object:
    machine, node = _running(call), call.node

    async def work(task: Task) -> None:
        async with machine.lock.hold(node.lock_timeout, log=task.log):
            node.unlocked(machine.vmid)
            await _shutdown(node, machine, call, task)
            await start_guest(node, machine, task.log)

    return call.task("qmreboot", work)


@route("POST", f"{STATUS}/reset", **COMMON)
async def reset(call: Call) -> object:
    machine, node = _running(call), call.node

    async def work(task: Task) -> None:
        async with machine.lock.hold(node.lock_timeout, log=task.log):
            node.unlocked(machine.vmid)
            await node.spend(machine, "reset")
            await stop_guest(machine)
            await start_guest(node, machine, task.log)

    return call.task("qmreset", work)


@route("POST", f"{STATUS}/suspend", **COMMON, todisk=opt(BOOLEAN), statestorage=opt(STRING))
async def suspend(call: Call) -> object:
    machine, node = _running(call), call.node
    if call.get("todisk"):
        raise ApiError(501, "the lab does not hibernate: suspend without todisk")

    async def work(task: Task) -> None:
        async with machine.lock.hold(node.lock_timeout, log=task.log):
            node.unlocked(machine.vmid)
            await node.spend(machine, "suspend")
            await node.guest(machine).pause()
            machine.paused = True

    return call.task("qmpause", work)


@route("POST", f"{STATUS}/resume", **COMMON, nocheck=opt(BOOLEAN))
async def resume(call: Call) -> object:
    machine, node = _running(call), call.node

    async def work(task: Task) -> None:
        async with machine.lock.hold(node.lock_timeout, log=task.log):
            await node.spend(machine, "resume")
            await node.guest(machine).resume()
            machine.paused = False

    return call.task("qmresume", work)
