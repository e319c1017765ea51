"""/nodes/N/tasks: list, status, log, abort."""

from __future__ import annotations

import re

from autovibe_lab.api.routes import Answer, Call, route
from autovibe_lab.errors import invalid
from autovibe_lab.tasks import UPID, Task
from autovibe_lab.usercfg import split_token

#: An active list shows at most what runs; the archive's default is 50.
LIMIT = 50


def _status_filter(text: str) -> None:
    for status in re.split(r"[,; ]+", text):
        if status not in ("ok", "error", "warning", "unknown"):
            raise ValueError(f"invalid status '{status}'")


def _kind(task: Task) -> str:
    if task.status == "OK":
        return "ok"
    if task.status is None or task.status == "unexpected status":
        return "unknown"
    return "warning" if task.status.startswith("WARNINGS:") else "error"


def is_own(call: Call, owner: str) -> bool:
    """A user sees its own tasks and those of its tokens, a token only its own."""
    return call.user in (owner, split_token(owner)[0])


def _own_or(call: Call, privilege: str) -> None:
    """The 403 of a task of somebody else's."""
    match = UPID.fullmatch(call.params["upid"])
    if match and not is_own(call, match["user"]):
        call.check(f"/nodes/{call.node.name}", privilege)


def _total(found: list) -> dict[str, object]:
    """Of nothing no number is said."""
    return {"total": len(found)} if found else {}


@route("GET", "/nodes/{node}/tasks")
async def listing(call: Call) -> object:
    source = call.get("source", "archive")
    kinds = re.split(r"[,; ]+", call.get("statusfilter", "")) if "statusfilter" in call.params else None

    audit = call.can(f"/nodes/{call.node.name}", "Sys.Audit")

    def wanted(task: Task) -> bool:
        return (
            (audit or is_own(call, task.user))
            and (source == "all" or (task.status is None) == (source == "active"))
            and ("vmid" not in call.params or task.id == str(call.params["vmid"]))
            and ("typefilter" not in call.params or task.type == call.params["typefilter"])
            and ("userfilter" not in call.params or call.params["userfilter"] in task.user)
            and task.starttime >= call.get("since", 0)
            and ("until" not in call.params or task.starttime <= call.params["until"])
            and (not call.get("errors") or task.status not in (None, "OK"))
            and (kinds is None or _kind(task) in kinds)
        )

    found = [task for task in call.node.tasks.newest_first() if wanted(task)]
    start, limit = call.get("start", 0), call.get("limit", LIMIT)
    page = found[start : start + limit] if limit else found[start:]
    # No total of nothing: so does Proxmox.
    return Answer([task.list_entry() for task in page], {"total": len(found)} if found else {})


@route("GET", "/nodes/{node}/tasks/{upid}")
async def index(call: Call) -> object:
    call.node.tasks.get(call.params["upid"])
    return [{"name": "log"}, {"name": "status"}]


@route("GET", "/nodes/{node}/tasks/{upid}/status")
async def status(call: Call) -> object:
    task = call.node.tasks.get(call.params["upid"])
    _own_or(call, "Sys.Audit")
    return task.status_entry()


@route("GET", "/nodes/{node}/tasks/{upid}/log")
async def log(call: Call) -> object:
    upid = call.params["upid"]
    if not UPID.fullmatch(upid):
        raise invalid(upid="unable to parse worker upid")
    _own_or(call, "Sys.Audit")
    if upid not in call.node.tasks.all:
        # So does Proxmox: 200, and the data is an object.
        return Answer({"n": 1, "t": "unable to open file - No such file or directory"}, {"total": 1})
    lines = call.node.tasks.get(upid).read_log() or ["no content"]
    start, limit = call.get("start", 0), call.get("limit", LIMIT)
    end = start + limit if limit else len(lines)
    data = [{"n": number, "t": line} for number, line in enumerate(lines, 1)][start:end]
    return Answer(data, _total(lines))


@route("DELETE", "/nodes/{node}/tasks/{upid}")
async def abort(call: Call) -> None:
    task = call.node.tasks.get(call.params["upid"])
    _own_or(call, "Sys.Modify")
    await call.node.tasks.abort(task)
