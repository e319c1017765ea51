"""/nodes/N/qemu/ID/agent: what Proxmox makes of the guest agent's commands.

Text travels as latin-1: every character of a parameter, of `content` and of `out-data` is one byte. So a path in UTF-8
comes as that many characters (`path.encode().decode("latin-1")`), and the agent gets the bytes that they stand for.
"""

from __future__ import annotations

import asyncio
import base64

from autovibe_lab.api.routes import Call, route
from autovibe_lab.errors import ApiError
from autovibe_lab.guest import AgentError, Guest, GuestError
from autovibe_lab.options import agent_enabled

AGENT = "/nodes/{node}/qemu/{vmid}/agent"

#: What file-read gives at most, in bytes, and how much of it at a time.
READ_LIMIT = 16 << 20
READ_CHUNK = 1 << 20
#: A program's output of this many bytes, in base64, does not come through Proxmox's channel in time.
OUTPUT_LIMIT = 3 << 20

#: Of our own guests' start: the agent was not there yet.
NOT_RUNNING = "QEMU guest agent is not running"


def _guest(call: Call) -> Guest:
    machine = call.machine
    if not agent_enabled(machine.config.current):
        raise ApiError(500, "No QEMU guest agent configured")
    if not machine.running():
        raise ApiError(500, f"VM {machine.vmid} is not running")
    return call.node.guest(machine)


async def _ask(call: Call, command: str, arguments: dict | None = None, timeout: float = 5) -> object:
    """The agent's answer. Silence is one 500, the agent's own refusal another."""
    try:
        return await _guest(call).agent(command, arguments, timeout * call.node.time_scale)
    except AgentError as error:
        message = str(error)
        silent = message == NOT_RUNNING or "timeout" in message or "not running" in message
        raise ApiError(500, NOT_RUNNING if silent else f"Agent error: {message}") from None
    except GuestError as error:
        raise ApiError(500, str(error)) from None


GETS = [
    "get-fsinfo",
    "get-host-name",
    "get-memory-block-info",
    "get-memory-blocks",
    "get-osinfo",
    "get-time",
    "get-timezone",
    "get-users",
    "get-vcpus",
    "info",
    "network-get-interfaces",
]
POSTS = ["fsfreeze-freeze", "fsfreeze-status", "fsfreeze-thaw", "fstrim", "ping"]
#: These have no answer when they succeed.
GOODBYES = ["shutdown", "suspend-disk", "suspend-hybrid", "suspend-ram"]
OTHERS = ["exec", "exec-status", "file-read", "file-write", "set-user-password"]


def _plain(method: str, name: str) -> None:
    @route(method, f"{AGENT}/{name}")
    async def command(call: Call) -> object:
        timeout = 60 if name.startswith("fs") else 5
        return {"result": await _ask(call, f"guest-{name}", timeout=timeout)}


def _goodbye(name: str) -> None:
    @route("POST", f"{AGENT}/{name}")
    async def command(call: Call) -> object:
        guest = _guest(call)
        await _ask(call, "guest-ping")
        if name == "shutdown":
            await guest.shutdown(5 * call.node.time_scale)
        else:
            await _ask(call, f"guest-{name}")
        return {"result": None}


for _name in GETS:
    _plain("GET", _name)
for _name in POSTS:
    _plain("POST", _name)
for _name in GOODBYES:
    _goodbye(_name)


@route("GET", AGENT)
async def index(call: Call) -> object:
    return [{"name": name} for name in sorted([*GETS, *POSTS, *GOODBYES, *OTHERS])]


@route("POST", AGENT)
async def any_command(call: Call) -> object:
    """The old way: the command as a parameter."""
    return {"result": await _ask(call, f"guest-{call.params['command']}")}


@route("POST", f"{AGENT}/exec")
async def execute(call: Call) -> object:
    path, *arguments = map(_text, call.params["command"])
    request: dict[str, object] = {"path": path, "arg": arguments, "capture-output": True}
    if "input-data" in call.params:
        request["input-data"] = base64.b64encode(_bytes(call.params["input-data"])).decode()
    try:
        answer = await _ask(call, "guest-exec", request)
    except ApiError as error:
        if "No such file" in error.message or "Failed to execute" in error.message:
            # Proxmox's worker dies of it.
            await asyncio.sleep(call.node.hang_delay)
            raise ApiError(596, "Broken pipe", body=False) from None
        raise
    return {"pid": answer["pid"]}


@route("GET", f"{AGENT}/exec-status")
async def exec_status(call: Call) -> object:
    answer = dict(await _ask(call, "guest-exec-status", {"pid": call.params["pid"]}))
    if sum(len(answer.get(f"{name}-data", "")) for name in ("out", "err")) > OUTPUT_LIMIT:
        raise ApiError(500, f"VM {call.params['vmid']} qmp command 'guest-exec-status' failed - got timeout")
    found: dict[str, object] = {"exited": int(answer["exited"])}
    found |= {name: answer[name] for name in ("exitcode", "signal") if name in answer}
    for name in ("out", "err"):
        if f"{name}-data" in answer:
            found[f"{name}-data"] = base64.b64decode(answer[f"{name}-data"]).decode("latin-1")
            found[f"{name}-truncated"] = int(answer.get(f"{name}-truncated", False))
    return found


@route("GET", f"{AGENT}/file-read")
async def file_read(call: Call) -> object:
    handle = await _ask(call, "guest-file-open", {"path": _text(call.params["file"]), "mode": "r"})
    content, end = b"", False
    try:
        while not end and len(content) < READ_LIMIT:
            answer = await _ask(call, "guest-file-read", {"handle": handle, "count": READ_CHUNK}, 10)
            content += base64.b64decode(answer["buf-b64"])
            end = answer["eof"]
    finally:
        await _ask(call, "guest-file-close", {"handle": handle})
    found: dict[str, object] = {"content": content[:READ_LIMIT].decode("latin-1")}
    found["bytes-read"] = len(content[:READ_LIMIT])
    return found | ({} if end else {"truncated": 1})


@route("POST", f"{AGENT}/file-write")
async def file_write(call: Call) -> None:
    content = call.params["content"]
    data = base64.b64encode(_bytes(content)).decode() if call.get("encode", True) else content
    handle = await _ask(call, "guest-file-open", {"path": _text(call.params["file"]), "mode": "wb"})
    try:
        await _ask(call, "guest-file-write", {"handle": handle, "buf-b64": data}, 10)
    finally:
        await _ask(call, "guest-file-close", {"handle": handle})


def _bytes(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        # Proxmox dies of a wide character.
        raise ApiError(500, "Wide character in subroutine entry") from None


def _text(text: str) -> str:
    """What the agent reads where Proxmox wrote each character as one byte into its JSON, which is UTF-8."""
    try:
        return _bytes(text).decode()
    except UnicodeDecodeError:
        raise ApiError(500, "Agent error: JSON parse error, invalid UTF-8 sequence in string") from None


@route("POST", f"{AGENT}/set-user-password")
async def set_user_password(call: Call) -> object:
    password = base64.b64encode(_bytes(call.params["password"])).decode()
    request = {"username": _text(call.params["username"]), "password": password}
    return {"result": await _ask(call, "guest-set-user-password", request | {"crypted": bool(call.get("crypted"))})}
