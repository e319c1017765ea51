# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong with Proxmox VE, as classes.

The docstring of a class is the first sentence of its message; what happened, to which object, and what to do follow.
"""

from __future__ import annotations

import re

from .privileges import advice

ID_TAKEN = re.compile(r"(VM|CT) \d+ already exists|unable to create VM \d+.* already exists")


class PveError(Exception):
    """Proxmox VE did not do what was asked."""

    #: The same call may be repeated once the state has been read again: it was not executed, or it may have been.
    retryable = False

    def __init__(self, detail: str = "", *, log: list[str] | None = None):
        self.detail = detail
        self.log = list(log or [])
        super().__init__(self.message)

    @property
    def message(self) -> str:
        first = (type(self).__doc__ or "").strip().splitlines()[0]
        return f"{first} {self.detail}".strip()


class SettingsError(PveError):
    """An option cannot be used as it is given."""


class Unreachable(PveError):
    """Proxmox VE cannot be reached."""


class TlsNotVerified(PveError):
    """The TLS certificate of Proxmox VE could not be verified."""


class NotAuthenticated(PveError):
    """Proxmox VE refused the credentials."""


class NoAnswer(PveError):
    """Proxmox VE did not answer a call; it may have been executed."""

    retryable = True


class ApiError(PveError):
    """Proxmox VE refused a call."""

    def __init__(self, method: str, path: str, status: int, reason: str, errors: dict[str, str] | None = None):
        self.method, self.path, self.status, self.reason = method, path, status, reason
        self.errors = {name: "; ".join(str(text).split("\n")).strip("; ") for name, text in (errors or {}).items()}
        super().__init__(f"{method} {path}: {status} {self._why()}")

    def _why(self) -> str:
        if self.errors:
            return "; ".join(f"{name}: {text}" for name, text in sorted(self.errors.items()))
        return self.reason

    @property
    def retryable(self) -> bool:
        """Only what is known not to have been executed: blocked workers (596), a lock not got in time, no worker."""
        if self.status == 596:
            return not self.path.endswith("/agent/exec")
        return self.status == 500 and is_transient(self.reason)

    @property
    def no_such_vm(self) -> bool:
        """Its wording differs between reading a VM and cloning it."""
        missing = "Configuration file" in self.reason and "does not exist" in self.reason
        return self.status == 500 and (missing or "unable to find configuration file for VM" in self.reason)

    @property
    def id_taken(self) -> bool:
        """The VM id of a create or clone is in use (its wording differs between the two, and for another node)."""
        return self.status == 500 and ID_TAKEN.search(self.reason) is not None


class Forbidden(ApiError):
    """The credentials lack a privilege."""

    def _why(self) -> str:
        todo = advice(self.method, self.path, self.reason)
        return f"{self.reason}; {todo}." if todo else self.reason


class TaskFailed(PveError):
    """A Proxmox VE task failed."""

    def __init__(self, upid: str, exitstatus: str, log: list[str]):
        self.upid, self.exitstatus = upid, exitstatus
        kind, vmid = (upid.split(":") + [""] * 7)[5:7]
        super().__init__(f"{kind} of VM {vmid}: {exitstatus}", log=log)

    @property
    def retryable(self) -> bool:
        return is_transient(self.exitstatus)

    @property
    def id_taken(self) -> bool:
        """The VM id of a clone was free when it was asked for, and is in use when it is made: nothing was."""
        return ID_TAKEN.search(self.exitstatus) is not None

    @property
    def was_locked(self) -> bool:
        """Another task had the VM; nothing was executed."""
        return "is locked" in self.exitstatus


class Overtaken(PveError):
    """Somebody else was at the VM at the same moment."""

    retryable = True


class TaskTimeout(PveError):
    """A Proxmox VE task is still running; the wait for it has ended."""


class NotFound(PveError):
    """What was asked for is not there."""


class IdentityError(PveError):
    """The VM id belongs to another VM, nothing was touched."""


class Ambiguous(PveError):
    """More than one VM fits."""


class Locked(PveError):
    """The VM is locked, and no task that this user may see holds the lock."""


class HalfMadeClone(PveError):
    """A clone was broken off; only root on the node can remove what is left of it."""

    def __init__(self, detail: str, *, vmid: int = 0, config: dict[str, object] | None = None):
        self.vmid, self.config = vmid, config or {}
        super().__init__(detail)


class IdTaken(PveError):
    """The VM id is in use."""


class NotPossible(PveError):
    """The VM cannot be brought to the state that was asked for."""


class FreezeHung(PveError):
    """The guest did not freeze its filesystems in time."""


class AgentError(PveError):
    """The guest agent refused a request."""


class AgentNotAnswering(PveError):
    """The guest agent does not answer."""


def is_transient(reason: str) -> bool:
    """Proxmox VE's wordings for "could not begin": nothing was executed."""
    return ("can't lock file" in reason and "got timeout" in reason) or "start worker failed" in reason
