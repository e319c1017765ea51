"""A guest's RAM on disk: hibernation, and where its state file is."""

from __future__ import annotations

import time

from autovibe_lab import wording
from autovibe_lab.config import drives, split_properties
from autovibe_lab.edit import Log
from autovibe_lab.node import Machine, Node

#: Beside the state file: what a saved RAM can only go on with. Removed with it.
OF_STATE = ("vmstate", "runningmachine", "runningcpu")
RUNNING_MACHINE = "pc-i440fx-7.2+pve0"
RUNNING_CPU = "host,-arch-capabilities"


def memory(machine: Machine) -> int:
    """Bytes of RAM."""
    return int(split_properties(machine.config.current.get("memory", "512"), "current")["current"]) << 20


def state_volume(machine: Machine, name: str, log: Log, storage: str | None = None) -> dict[str, str]:
    """The options that say where the RAM is saved: on the first disk's storage, if none is named."""
    if storage is None:
        disk = next((drive for drive in drives(machine.config.current) if drive.is_disk), None)
        default = disk.volid.partition(":")[0] if disk else "local"
        storage = machine.config.current.get("vmstatestorage", default)
    volid = f"{storage}:{machine.vmid}/vm-{machine.vmid}-state-{name}.raw"
    log(wording.formatting(volid, wording.state_size(memory(machine))))
    return {"vmstate": volid, "runningmachine": RUNNING_MACHINE, "runningcpu": RUNNING_CPU}


async def suspend_to_disk(node: Node, machine: Machine, log: Log, storage: str | None = None) -> None:
    """Save the RAM and end the process; the machine is locked until it is resumed."""
    name, current = f"suspend-{time.strftime('%Y-%m-%d')}", machine.config.current
    current |= {"lock": "suspending"} | state_volume(machine, name, log, storage)
    node.save(machine)
    guest = node.guest(machine)
    try:
        await node.spend(machine, "suspend", copy=memory(machine))
        await guest.snapshot(name, True)
    except BaseException:
        for key in ("lock", *OF_STATE):
            current.pop(key, None)
        node.save(machine)
        raise
    log("State saved, quitting")
    current["lock"] = "suspended"
    node.save(machine)
    await guest.stop()
    machine.paused = False


def saved_name(machine: Machine) -> str | None:
    """The name under which a hibernated guest's RAM is saved, else None."""
    volid = machine.config.current.get("vmstate", "")
    return volid.partition("-state-")[2].removesuffix(".raw") or None


async def drop_state(node: Node, machine: Machine) -> None:
    """Forget the RAM of a guest that was hibernated and runs again."""
    name = saved_name(machine)
    for key in ("lock", *OF_STATE):
        machine.config.current.pop(key, None)
    node.save(machine)
    if name:
        await node.guest(machine).delete_snapshot(name)
