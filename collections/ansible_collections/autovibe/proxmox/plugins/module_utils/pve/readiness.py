# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be waited for in a guest: one loop, and a predicate for each condition."""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .client import waits
from .errors import AgentError, AgentNotAnswering, NoAnswer, PveError
from .guest import Guest

#: cloud-init writes it when it has ended; on a tmpfs, so it is of this boot.
CLOUD_INIT_RESULT = "/run/cloud-init/result.json"
LISTENING = "0A"
#: How long one trial of a command may take.
TRIAL_SECONDS = 30


class NotReady(PveError):
    """The guest is not ready."""


@dataclass
class Readiness:
    """What a guest is to have before the wait ends; `wait` returns what it looks like then."""

    guest: Guest
    cloud_init: bool = False
    port: int | None = None
    path: str | None = None
    command: list[str] | None = None
    address: str | None = None
    addresses: list[str] = field(default_factory=list)

    def conditions(self) -> dict[str, Callable[[], bool]]:
        """Each with the words in which a failure names it, in the order in which they come true."""
        found: dict[str, Callable[[], bool]] = {"the guest agent": self.guest.ping}
        if self.address:
            found[f"an address ({self.address})"] = self._has_address
        if self.cloud_init:
            found["the end of cloud-init"] = self._is_initialised
        if self.path:
            found[f"the path {self.path}"] = lambda: self.guest.exists(self.path)
        if self.port:
            found[f"a listener on port {self.port}"] = self._listens
        if self.command:
            found[f"success of '{' '.join(self.command)}'"] = self._succeeds
        return found

    def wait(self, timeout: float) -> dict[str, Any]:
        """The facts once all is there; NotReady names what is missing after `timeout` seconds (0: one look)."""
        began = time.monotonic()
        missing = self.conditions()
        for left in waits(timeout):
            missing = self._still_missing(missing)
            if not missing or left <= 0:
                break
        seconds = round(time.monotonic() - began, 1)
        facts = {"ready": not missing, "missing": list(missing), "addresses": self.addresses, "seconds": seconds}
        if missing and timeout > 0:
            raise NotReady(f"VM {self.guest.vmid} has not, after {timeout:g} s: {'; '.join(missing)}.")
        return facts

    def _still_missing(self, conditions: dict[str, Callable[[], bool]]) -> dict[str, Callable[[], bool]]:
        """In order: what comes later is not asked while the agent does not answer."""
        left = dict(conditions)
        for name, met in conditions.items():
            try:
                if not met():
                    break
            except AgentNotAnswering:
                if name == "the guest agent":
                    raise  # no agent is configured, or the VM does not run: waiting would not help
                break
            except (AgentError, NoAnswer):
                break
            del left[name]
        return left

    def _has_address(self) -> bool:
        self.addresses = addresses(self.guest.interfaces())
        version = {"ipv4": 4, "ipv6": 6}.get(self.address or "")
        return any(version in (None, ipaddress.ip_address(found).version) for found in self.addresses)

    def _is_initialised(self) -> bool:
        content = self.guest.read(CLOUD_INIT_RESULT)
        try:
            result = json.loads(content or b"")
        except ValueError:
            return False  # not there, or being written
        found = result.get("v1") if isinstance(result, dict) else None
        errors = (found.get("errors") if isinstance(found, dict) else None) or []
        if errors:
            raise NotReady(f"cloud-init in VM {self.guest.vmid} has ended with errors: {'; '.join(map(str, errors))}")
        return True

    def _listens(self) -> bool:
        wanted = f":{self.port:04X}"
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            for line in (self.guest.read(table) or b"").decode(errors="replace").splitlines()[1:]:
                words = line.split()
                if len(words) > 3 and words[1].endswith(wanted) and words[3] == LISTENING:
                    return True
        return False

    def _succeeds(self) -> bool:
        return self.guest.run(self.command or [], timeout=TRIAL_SECONDS).rc == 0


def addresses(interfaces: list[dict[str, Any]]) -> list[str]:
    """The addresses by which a guest can be reached, of what its agent says: not loopback, not link-local."""
    found = []
    for interface in interfaces:
        for entry in interface.get("ip-addresses") or []:
            try:
                address = ipaddress.ip_address(str(entry.get("ip-address")).partition("%")[0])
            except ValueError:
                continue  # the guest says what it likes
            if not (address.is_loopback or address.is_link_local):
                found.append(str(address))
    return found
