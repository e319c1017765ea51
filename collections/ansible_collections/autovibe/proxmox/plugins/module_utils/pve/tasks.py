# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks: the one place that waits for them.

Asking for one task's status goes through pvedaemon, which twenty pollers can saturate. The node's task list does not:
it takes about 10 ms and shows every own task at once, so this is what is polled; and what one process of a play has
found serves all the others that wait at that moment.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from .client import Client, waits
from .errors import PveError, TaskFailed, TaskTimeout
from .shared import WAITERS_SECONDS, Shared

LOG_LINES = 20
#: How long another process's look at the list is waited for: one that was stopped meanwhile must not stop us, too.
POLL_PATIENCE = 2.0
#: When this run began: Ansible imports this in the process that then forks one for each host and task.
RUN_BEGAN = time.time()


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

    def __init__(self, client: Client, node: str | None, timeout: float = 600):
        self.client, self.node, self.timeout = client, node, timeout
        self._shared: dict[str, Shared] = {}

    def shared(self, node: str | None = None) -> Shared:
        """What the processes of this play share about a node."""
        node, end = node or self.node or "", self.client.endpoint
        if node not in self._shared:
            self._shared[node] = Shared(end.url, end.who(), node)
        return self._shared[node]

    def wait(self, upid: str, grace: float = 0) -> None:
        """Returns when the task has ended well (warnings are well); raises TaskFailed or TaskTimeout.

        `grace`: seconds that the task itself waits for something, beside its work.
        """
        task, looked = Upid.parse(upid), time.monotonic()
        for _left in waits(self.timeout + grace):
            exitstatus = self._exitstatus(task, looked)
            if exitstatus is not None:
                if exitstatus != "OK" and not exitstatus.startswith("WARNINGS"):
                    raise TaskFailed(upid, exitstatus, self._last_lines(upid))
                return
            looked = time.monotonic()
        raise TaskTimeout(
            f"{task.kind} of VM {task.vmid} runs for more than {self.timeout + grace:g} s: {upid}; wait for its end "
            "and run this again, or give a longer timeout.",
            log=self._last_lines(upid),
        )

    def active(self, *, vmid: int | None, kind: str | None = None) -> list[str]:
        """UPIDs of the tasks under way for a VM, or for any. (A clone runs under the id of its *source*.)"""
        listed = self.client.get(f"/nodes/{self.node}/tasks", source="active", limit=500)
        return [
            task["upid"]
            for task in listed
            if (vmid is None or task.get("id") == str(vmid))
            and not task.get("endtime")
            and kind in (None, task.get("type"))
        ]

    def settle(self, *, vmid: int) -> bool:
        """Waits for whatever is under way for a VM, however it ends; True when there was something."""
        return self._settled(self.active(vmid=vmid))

    def settle_earlier(self, *, vmid: int | None = None, kind: str) -> bool:
        """Waits for what an earlier run has left under way for a VM, or by us for any; True when there was something.

        Of a run that was broken off, nobody else knows: what is being made shows neither its name nor its identity.
        """
        active = self.active(vmid=vmid, kind=kind)
        # A UPID has whole seconds: one of the second in which this run began may be of another host of this play, for
        # which we wait in vain, or of the run before, without which a second VM would be made.
        before = RUN_BEGAN + self.client.clock_ahead()
        earlier = [upid for upid in active if Upid.parse(upid).starttime < before]
        return self._settled([upid for upid in earlier if vmid is not None or self.is_mine(upid)])

    def settle_own(self, *, kind: str) -> bool:
        """Waits for our tasks of a kind, whichever process has begun them; True when there was one."""
        return self._settled([upid for upid in self.active(vmid=None, kind=kind) if self.is_mine(upid)])

    def is_mine(self, upid: str) -> bool:
        """Whether these credentials have begun the task."""
        return upid.split(":")[7:8] == [self.client.endpoint.who()]

    def _settled(self, upids: list[str]) -> bool:
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
        return self.whole_log(upid)[-LOG_LINES:]

    def whole_log(self, upid: str) -> list[str]:
        lines = self.client.get(f"/nodes/{Upid.parse(upid).node}/tasks/{upid}/log", limit=0)
        if isinstance(lines, dict):  # the log of a task that is not known
            lines = [lines]
        return [str(line.get("t", "")) for line in lines or []]

    def _last_lines(self, upid: str) -> list[str]:
        """The log for a failure's message: that it cannot be read is no other failure."""
        try:
            return self.log(upid)
        except PveError as error:
            return [f"(the log cannot be read: {error.message})"]

    def _exitstatus(self, task: Upid, not_before: float) -> str | None:
        """The task's exit status by a look at the list that has begun after `not_before`; None while it runs."""
        shared, impatient = self.shared(task.node), time.monotonic() + POLL_PATIENCE
        for _left in waits(self.timeout, first=0.005, longest=0.05):
            found = shared.polled()
            if task.text in found["ended"]:
                return found["ended"][task.text]
            covered = found["since"] is not None and found["since"] <= task.starttime
            if covered and found["began"] >= not_before:
                return None
            with shared.polling() as mine:
                if mine or time.monotonic() >= impatient:
                    return self._poll(task, shared)
        return None

    def _poll(self, task: Upid, shared: Shared) -> str | None:
        """One look at the list, as far back as those who wait need it."""
        began = time.monotonic()
        waiters = shared.polled().get("waiters", {})
        waiters = {start: at for start, at in waiters.items() if 0 <= began - at < WAITERS_SECONDS}
        waiters[str(task.starttime)] = began
        since = min(int(start) for start in waiters)
        listed = self.client.get(f"/nodes/{task.node}/tasks", source="all", limit=500, since=since)
        ended = {entry["upid"]: entry.get("status") or "OK" for entry in listed if entry.get("endtime")}
        if len(listed) >= 500:  # the oldest may be missing: only our own may be told from this look
            since = None
        shared.keep({"began": began, "since": since, "ended": ended, "waiters": waiters})
        if task.text in ended or any(entry["upid"] == task.text for entry in listed):
            return ended.get(task.text)
        # Not in the list: more than 500 newer ones, or not written yet.
        status = self.client.get(f"/nodes/{task.node}/tasks/{task.text}/status")
        return status.get("exitstatus") if status.get("status") == "stopped" else None
