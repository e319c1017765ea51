"""/nodes/N/qemu/ID: keys, the monitor, consoles."""

from __future__ import annotations

import asyncio
import secrets
import time

from autovibe_lab.api.routes import Call, route
from autovibe_lab.errors import ApiError
from autovibe_lab.tasks import Task

QEMU = "/nodes/{node}/qemu/{vmid}"

#: Seconds that a console waits for its viewer.
VIEWER_TIMEOUT = 10
VNC_PORT = 5900


def _running(call: Call) -> None:
    if not call.machine.running():
        raise ApiError(500, f"VM {call.params['vmid']} not running")


@route("PUT", f"{QEMU}/sendkey")
async def sendkey(call: Call) -> None:
    call.root_only("skiplock")
    _running(call)


@route("POST", f"{QEMU}/monitor")
async def monitor(call: Call) -> object:
    """The human monitor; of its many commands those that a client may ask for."""
    _running(call)
    command, machine = call.params["command"].split(), call.machine
    match command:
        case ["info", "status"]:
            return f"VM status: {'paused' if machine.paused else 'running'}\r\n"
        case ["info", "version"]:
            return "7.2.0pve\r\n"
        case ["info", "name"]:
            return f"{machine.name}\r\n"
    return f"unknown command: '{command[0] if command else ''}'\r\n"


def _viewer(call: Call, type: str) -> str:
    """The task that waits for somebody to look."""

    async def work(task: Task) -> None:
        await asyncio.sleep(VIEWER_TIMEOUT * call.node.time_scale)

    return call.task(type, work)


@route("POST", f"{QEMU}/vncproxy")
async def vncproxy(call: Call) -> object:
    assert call.machine
    certificate = (call.node.paths.state / "ca.pem").read_text()
    ticket = f"PVEVNC:{int(time.time()):08X}::{secrets.token_urlsafe(64)}"
    found = {"user": call.user, "ticket": ticket, "cert": certificate, "port": str(VNC_PORT)}
    if call.get("generate-password") or call.get("websocket"):
        found["password"] = secrets.token_urlsafe(6)
    return found | {"upid": _viewer(call, "vncproxy")}


@route("POST", f"{QEMU}/termproxy")
async def termproxy(call: Call) -> object:
    """Nobody listens at the other end in a lab."""
    assert call.machine
    await asyncio.sleep(VIEWER_TIMEOUT * call.node.time_scale)
    raise ApiError(500, f"Timeout while waiting for port '{VNC_PORT + 1}' to get ready!")
