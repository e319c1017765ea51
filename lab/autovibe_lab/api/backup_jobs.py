"""/cluster/backup: planned backups, and which guests none of them covers."""

from __future__ import annotations

import re
import time
import uuid

from autovibe_lab.api.routes import Call, route
from autovibe_lab.config import Drive, drives
from autovibe_lab.errors import ApiError, invalid
from autovibe_lab.formats import split_list
from autovibe_lab.jobs import Job
from autovibe_lab.node import Machine

#: Parameters that are no options of a job.
CONTROL = ("id", "delete", "starttime", "dow")
ONE = "/cluster/backup/{id}"


def _shown(job: Job) -> dict:
    found = job.shown()
    if found["enabled"] and (when := job.next_run(time.time())):
        found["next-run"] = when
    return found


@route("GET", "/cluster/backup")
async def listing(call: Call) -> object:
    return [_shown(job) for job in call.node.cluster.jobs.all.values()]


def _options(call: Call) -> dict[str, str]:
    found = {name: value for name, value in call.params.items() if name not in CONTROL}
    options = {name: str(int(value)) if isinstance(value, bool) else str(value) for name, value in found.items()}
    if start := call.get("starttime"):
        options["schedule"] = f"{call.get('dow', '')} {start}".strip()
    return options


@route("POST", "/cluster/backup")
async def create(call: Call) -> None:
    jobs, options = call.node.cluster.jobs, _options(call)
    if not {"vmid", "all", "pool"} & set(options):
        raise invalid(vmid="property is missing")
    if "schedule" not in options:
        raise invalid(schedule="property is missing")
    name = str(call.get("id") or uuid.uuid4())
    if name in jobs.all:
        raise ApiError(500, f"Job '{name}' already exists")
    if "storage" in options:
        call.node.storages.check(options["storage"])
    jobs.all[name] = Job(name, options)
    jobs.save()


def _job(call: Call) -> Job:
    name = str(call.params["id"])
    if name not in call.node.cluster.jobs.all:
        raise invalid(id=f"No such job '{name}'")
    return call.node.cluster.jobs.all[name]


@route("GET", ONE)
async def show(call: Call) -> object:
    return _job(call).shown()


@route("PUT", ONE)
async def change(call: Call) -> None:
    job = _job(call)
    for name in re.findall(r"[^,; ]+", str(call.get("delete", ""))):
        job.options.pop(name, None)
    options = _options(call)
    # A job says in one way which guests it is for.
    for name in {"vmid", "all", "pool"} - set(options) if {"vmid", "all", "pool"} & set(options) else ():
        job.options.pop(name, None)
    job.options |= options
    call.node.cluster.jobs.save()


@route("DELETE", ONE)
async def delete(call: Call) -> None:
    del call.node.cluster.jobs.all[_job(call).id]
    call.node.cluster.jobs.save()


def _covers(call: Call, job: Job, machine: Machine) -> bool:
    options = job.options
    if "vmid" in options:
        return str(machine.vmid) in split_list(options["vmid"])
    if "pool" in options:
        return call.node.pools.of(machine.vmid) == options["pool"]
    return str(machine.vmid) not in split_list(options.get("exclude", ""))


@route("GET", ONE + "/included_volumes")
async def included(call: Call) -> object:
    job, children = _job(call), []
    for _, machine in call.node.cluster.guests():
        if _covers(call, job, machine):
            volumes = [_volume(machine, drive) for drive in drives(machine.config.current)]
            entry = {"id": machine.vmid, "name": machine.name, "type": "qemu", "children": volumes}
            children.append(entry)
    return {"children": children}


def _volume(machine: Machine, drive: Drive) -> dict:
    if drive.is_cdrom:
        reason, taken = "CD-ROM", 0
    else:
        taken = int(drive.properties.get("backup", "1") != "0")
        reason = "enabled" if taken else "disabled"
    return {"id": f"{machine.vmid}:{drive.key}", "name": drive.volid, "included": taken, "reason": reason}


@route("GET", "/cluster/backup-info")
async def index(call: Call) -> object:
    return [{"subdir": "not-backed-up"}]


@route("GET", "/cluster/backup-info/not-backed-up")
async def uncovered(call: Call) -> object:
    jobs = call.node.cluster.jobs.all.values()
    left = [
        machine for _, machine in call.node.cluster.guests() if not any(_covers(call, job, machine) for job in jobs)
    ]
    return [{"vmid": machine.vmid, "name": machine.name, "type": "qemu"} for machine in left]
