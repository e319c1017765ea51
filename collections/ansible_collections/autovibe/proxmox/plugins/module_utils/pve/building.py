# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who builds a version of a template, when several controllers want it at the same time: one of them.

Each makes a VM, and then looks at the VMs of the version that are there. Whoever makes a VM later sees those that were
made before. Of those that see each other the lowest VM id builds; one that builds already, or is done, goes first. The
others take their VM away and wait. A builder says that it lives by a word of its VM's description that changes.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .client import Client, waits
from .config import Identity
from .errors import ApiError, Forbidden, Overtaken, PveError
from .machines import Machines, persist

#: Words of the description: it is being built, its building has failed, all that is left is to convert it.
BUILDING, FAILED, SEALED = "building", "failed", "sealed"
#: Seconds between two signs of life, and how long none may come until a builder is taken for dead.
BEAT, LEASE = 15.0, 60.0


@dataclass(frozen=True)
class Version:
    """A VM that is a version of a template, or is becoming one."""

    vmid: int
    config: dict[str, Any]

    @property
    def text(self) -> str:
        return str(self.config.get("description") or "")

    @property
    def by(self) -> str | None:
        """Who began it."""
        identity = Identity.parse(self.text)
        return identity.get("by") if identity else None

    @property
    def done(self) -> bool:
        return bool(int(self.config.get("template") or 0))

    @property
    def sealed(self) -> bool:
        return SEALED in self._words()

    @property
    def failed(self) -> bool:
        return FAILED in self._words()

    @property
    def decided(self) -> bool:
        """Whether its builder has looked at the others, and builds this one."""
        return self.done or self.sealed or self.building

    @property
    def building(self) -> bool:
        return any(word.startswith(f"{BUILDING}=") for word in self._words())

    def _words(self) -> list[str]:
        return self.text.partition("\n")[2].split()


class Race:
    """One builder among others. `by` is its name, `listed` gives the VMs of the version."""

    def __init__(self, machines: Machines, by: str | None, listed: Callable[[], list[Version]]):
        self.machines, self.listed = machines, listed
        #: A name that is given is that of all builders of a place where only one builds at a time: the others are dead.
        self.by = by or uuid.uuid4().hex[:12]
        self._dead: set[tuple[int, str]] = set()

    def left(self) -> list[Version]:
        """What is there once no other builder is at it: the finished one, or what builders that are gone have left."""
        while True:
            listed = sorted(self.listed(), key=lambda one: (not one.done, not one.sealed, one.vmid))
            if listed and listed[0].done:
                return listed[:1]
            alive = next((one for one in listed if self._lives(one)), None)
            if alive is None:
                return listed
            self._watch(alive, lambda now: now.done or now.sealed or now.failed)

    def wins(self, mine: int) -> bool:
        """Whether our VM, which was just made, is the one that is built."""
        while True:
            others = [one for one in self.listed() if one.vmid != mine and (one.done or one.sealed or self._lives(one))]
            if any(one.decided or one.vmid < mine for one in others):
                return False
            if not others:
                return True
            # A higher one may have looked before ours was there: it decides, or goes.
            self._watch(others[0], lambda now: now.decided or now.failed)

    def _lives(self, one: Version) -> bool:
        return not (one.sealed or one.failed or one.by == self.by or (one.vmid, one.text) in self._dead)

    def _watch(self, one: Version, enough: Callable[[Version], bool]) -> None:
        """Returns when `enough` holds, when the VM is gone, or when it has not changed for the lease."""
        since = time.monotonic()
        for _left in waits(float("inf"), longest=2.0):
            config = self.machines.config(one.vmid)
            now = Version(one.vmid, config or {})
            if config is None or enough(now):
                return
            if now.text != one.text:
                one, since = now, time.monotonic()
            elif time.monotonic() - since > LEASE:
                self._dead.add((one.vmid, one.text))
                return


class Building:
    """Around the building of a VM: what says that it is under way, that it goes on, and that it has failed."""

    def __init__(self, machines: Machines, vmid: int, line: str):
        self.machines, self.vmid, self.line = machines, vmid, line
        self._over, self._lost = threading.Event(), False
        self._sure = time.monotonic()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Building:
        persist(lambda: self._say(self.machines.client, f"{BUILDING}=0"))
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        self._over.set()
        self._thread.join()
        if not isinstance(error, PveError):
            return
        with contextlib.suppress(PveError):
            self._look(self.machines.client)
        if self._lost:  # no wonder that it failed
            raise Overtaken(f"VM {self.vmid} is built by somebody else now.") from error
        with contextlib.suppress(PveError):
            self._say(self.machines.client, FAILED)

    def check(self) -> None:
        """Raises Overtaken when this process slept for so long that another builder has taken over; mostly no call."""
        if time.monotonic() - self._sure > LEASE / 2:
            self._look(self.machines.client)
        if self._lost:
            raise Overtaken(f"VM {self.vmid} is built by somebody else now.")

    def _look(self, client: Client) -> None:
        try:
            text = str(client.get(self.machines.path(self.vmid, "config")).get("description") or "")
        except ApiError as error:
            if not (error.no_such_vm or isinstance(error, Forbidden)):
                raise
            text = ""  # gone
        self._lost = self._lost or text.partition("\n")[0] != self.line
        self._sure = time.monotonic()

    def _say(self, client: Client, word: str) -> None:
        client.put(self.machines.path(self.vmid, "config"), description=f"{self.line}\n{word}")

    def _beat(self) -> None:
        client = Client(self.machines.client.endpoint)
        for number in itertools.count(1):
            if self._over.wait(BEAT) or self._lost:
                break
            with contextlib.suppress(PveError):  # locked for a moment, say: the next one will do
                self._look(client)
                if not self._lost:
                    self._say(client, f"{BUILDING}={number}")
        client.close()
