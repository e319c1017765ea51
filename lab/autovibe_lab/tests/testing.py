"""A client that waits for the lab's tasks, for the lab's own tests."""

from __future__ import annotations

import time

from autovibe_lab.testing import LabInThread
from proxmoxer.core import ResourceException

__all__ = ["Client", "LabInThread"]


class Client:
    """Calls and waits for their tasks."""

    def __init__(self, lab: LabInThread) -> None:
        self.lab, self.api = lab, lab.api()
        self.node = self.api.nodes("pve1")

    def wait(self, upid: str) -> str:
        """The exit status of a task."""
        for attempt in range(2000):
            status = self.node.tasks(upid).status.get()
            if status["status"] == "stopped":
                return status["exitstatus"]
            time.sleep(min(0.005 * attempt, 0.1))
        raise AssertionError(f"{upid} does not end")

    def ok(self, upid: str) -> None:
        assert self.wait(upid) == "OK", self.node.tasks(upid).log.get()

    def refused(self, call: object, **params: object) -> ResourceException:
        """The error that a call ends with."""
        try:
            answer = call(**params)
        except ResourceException as error:
            return error
        raise AssertionError(f"not refused: {answer}")

    def create(self, vmid: int = 100, **params: object) -> object:
        base = {"name": "base", "memory": 256, "cores": 1, "scsi0": "null:1", "agent": "enabled=1"}
        base |= {"net0": "virtio,bridge=vmbr1", "ide2": "null:cloudinit"}
        self.ok(self.node.qemu.post(vmid=vmid, **(base | params)))
        return self.node.qemu(vmid)

    def template(self, vmid: int = 100, **params: object) -> object:
        machine = self.create(vmid, **params)
        self.ok(machine.template.post())
        return machine

    def clone(self, source: int, newid: int, **params: object) -> object:
        self.ok(self.node.qemu(source).clone.post(newid=newid, **params))
        return self.node.qemu(newid)
