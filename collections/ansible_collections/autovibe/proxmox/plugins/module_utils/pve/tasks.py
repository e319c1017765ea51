# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks: the one place that waits for them.

Asking for one task's status goes through pvedaemon, which twenty pollers can saturate. The node's task list does not:
it takes about 10 ms and shows every own task at once, so this is what is polled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .client import Client, waits
from .errors import TaskFailed, TaskTimeout

LOG_LINES = 20


@dataclass(frozen=True)
class Upid:
    """A task's name, `UPID:node:pid:pstart:starttime:type:id:user:`, taken apart."""

    text: str
    node: str
    starttime: int
    kind: str
    vmid: str

    @classmethod
    def parse(cls, text: str) -> Upid:
        _upid, node, _pid, _pstart, starttime, kind, vmid = text.split(":")[:7]
        return cls(text, node, int(starttime, 16), kind, vmid)


class Tasks:
    """The tasks of one node. `timeout` bounds each wait, in seconds."""

    def __init__(self, client: Client, node: str, timeout: float = 600):
        self.client, self.node, self.timeout = client, node, timeout

    def wait(self, upid: str) -> None:
        """Returns when the task has ended well (warnings are well); raises TaskFailed or TaskTimeout."""
        task = Upid.parse(upid)
        for _left in waits(self.timeout):
            exitstatus = self._exitstatus(task)
            if exitstatus is not None:
                if exitstatus != "OK" and not exitstatus.startswith("WARNINGS"):
                    raise TaskFailed(upid, exitstatus, self.log(upid))
                return
        raise TaskTimeout(
            f"{task.kind} of VM {task.vmid} runs for more than {self.timeout:g} s: {upid}", log=self.log(upid)
        )

    def active(self, *, vmid: int, kind: str | None = None) -> list[str]:
        """UPIDs of the tasks under way for a VM. (A clone runs under the id of its *source*.)"""
        listed = self.client.get(f"/nodes/{self.node}/tasks", source="active", limit=500)
        return [
            task["upid"]
            for task in listed
            if task.get("id") == str(vmid) and not task.get("endtime") and kind in (None, task.get("type"))
        ]

    def settle(self, *, vmid: int) -> bool:
        """Waits for whatever is under way for a VM, however it ends; True when there was something."""
        upids = self.active(vmid=vmid)
        for upid in upids:
            try:
                self.wait(upid)
            except TaskFailed:
                continue  # not ours to judge: the caller reads the VM's state next
        return bool(upids)

    def newest(self, *, vmid: int) -> dict[str, Any] | None:
        """The VM's most recent task that this user may see, as the task list has it."""
        listed = self.client.get(f"/nodes/{self.node}/tasks", source="all", vmid=vmid, limit=50)
        return max(listed, key=lambda task: (task["starttime"], task.get("pstart", 0)), default=None)

    def log(self, upid: str) -> list[str]:
        """The last lines of a task's log."""
        lines = self.client.get(f"/nodes/{self.node}/tasks/{upid}/log", limit=0)
        if isinstance(lines, dict):  # the log of a task that is not known
            lines = [lines]
        return [str(line.get("t", "")) for line in lines][-LOG_LINES:]

    def _exitstatus(self, task: Upid) -> str | None:
        listed = self.client.get(f"/nodes/{self.node}/tasks", source="all", limit=500, since=task.starttime)
        for entry in listed:
            if entry["upid"] == task.text:
                return entry.get("status", "OK") if entry.get("endtime") else None
        # Not in the list: more than 500 newer ones, or not written yet.
        status = self.client.get(f"/nodes/{self.node}/tasks/{task.text}/status")
        return status.get("exitstatus") if status.get("status") == "stopped" else None
