# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of one machine on its way to its state, or out: each may be broken off anywhere and begun again."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .config import PASSWORD, Identity, Wanted, as_call, desired, differences
from .devices import disk_size, parse_net, properties
from .errors import ApiError, Forbidden, IdentityError, IdTaken, NotFound, PveError, TaskFailed
from .node import FromWhere, Image, Seen, Source

if TYPE_CHECKING:
    from .machines import Machines


class Raced(PveError):
    """Somebody else took the VM id first."""

    retryable = True


@dataclass
class Run:
    """One machine on its way; `step` may be repeated."""

    machines: Machines
    vmid: int | None
    wanted: Wanted
    source: FromWhere | None
    target: str | None
    shutdown_timeout: int | None
    #: How it was found just now: the first pass does not look again.
    first: Seen | None = None
    passes: int = 0
    refused: int = 0
    started: bool = False
    created: bool = False
    given: bool = field(init=False)
    sent: set[str] = field(default_factory=set)
    #: The source, once it turned out to be on another node.
    other: Source | None = None

    def __post_init__(self) -> None:
        self.given = self.vmid is not None

    def step(self) -> Seen:
        self.passes += 1
        machines, wanted = self.machines, self.wanted
        seen = self._existing()
        fresh = seen is None
        if seen is None:
            seen = self._cloned()
        seen = self._woken(seen)
        values = differences(desired(wanted, seen.config, self.created), seen.config)
        if PASSWORD in self.sent:
            values.pop(PASSWORD, None)
        if self.created and wanted.description() is None and Identity.parse(seen.config.get("description")):
            values["description"] = ""  # inherited from the source: this VM is not the one it names
        if values:
            machines.set_config(seen.vmid, as_call(values))
            self.sent.update(values)
            # A NIC without a given MAC gets one from Proxmox VE: only then is there something new to read.
            known = "net0" not in values or parse_net(values["net0"]).get("mac")
            seen = replace(seen, config={**seen.config, **values} if known else machines.config(seen.vmid) or {})
        seen = self._resized(seen)
        return self._powered(self._pooled(seen, fresh), fresh)

    def _existing(self) -> Seen | None:
        if self.vmid is None:
            return None
        if self.passes == 1:
            return self.first
        machines = self.machines
        if self.other:  # until it is made, it is on the source's node, where only the clone's task shows it
            machines.at(self.other.node).tasks.settle(vmid=self.other.vmid)
        try:
            seen = machines.usable(self.vmid, self.wanted, self.source)
            if seen is not None and machines.tasks.settle(vmid=self.vmid):
                seen = machines.usable(self.vmid, self.wanted, self.source)
        except IdentityError:
            if self.given:
                raise
            self.vmid = seen = None
        if seen is not None and not self.given and not self._is_ours(seen):
            self.vmid = seen = None  # the answer to our clone was lost, and somebody else has this id
        self.created = self.created or (seen is not None and self.first is None)
        return seen

    def _is_ours(self, seen: Seen) -> bool:
        """Whether a VM has the name and the description that our call has given it."""
        text = self.wanted.description()
        named = self.wanted.name in (None, seen.config.get("name"))
        return named and (text is None or str(seen.config.get("description") or "").rstrip() == text.rstrip())

    def _cloned(self) -> Seen:
        machines = self.machines
        if self.source is None:
            raise NotFound(f"VM {self.vmid} is gone from node {machines.node}.")
        origin = self.other or self.source()
        if isinstance(origin, Source) and origin.node:
            self.other = origin
        shared = machines.tasks.shared(self.other.node if self.other else machines.node)
        with shared.turn():
            if self.given:
                upid = self._begin(origin, self.vmid or 0)
            else:
                # One at a time between the free id and the VM that has it.
                with shared.alone("nextid"):
                    self.vmid = int(machines.client.get("/cluster/nextid"))
                    upid = self._begin(origin, self.vmid)
            try:
                machines.task(upid)
            except TaskFailed as error:
                if not error.id_taken:
                    raise
                raise self._taken(self.vmid or 0) from error
        self.created = True
        config = machines.config(self.vmid or 0)
        if config is None:
            raise NotFound(f"VM {self.vmid} was made and is gone again.")
        return Seen(self.vmid or 0, config, "stopped")

    def _is_missing(self, origin: Source, error: ApiError) -> bool:
        """Whether the refusal means that there is no such VM; who may not see all gets a 403 for it."""
        return error.no_such_vm or (isinstance(error, Forbidden) and self.machines.is_free(origin.vmid))

    def _begin_elsewhere(self, other: Source, vmid: int) -> str:
        """The clone, begun on the source's node; what an earlier run has begun there may be this VM."""
        self.other = other
        if self.machines.at(other.node).tasks.settle_earlier(vmid=other.vmid, kind="qmclone"):
            if not self.given and (self.wanted.identity or self.wanted.name):
                self.vmid = self.machines.find(identity=self.wanted.identity, name=self.wanted.name)
            raise Raced("A clone of this source had been begun before.")
        return self._begin(other, vmid)

    def _begin(self, origin: Source | Image, vmid: int) -> str:
        # The id is remembered before the call: when its answer is lost, the next pass looks at this id.
        machines, wanted = self.machines, self.wanted
        try:
            if isinstance(origin, Image):
                values = {**origin.config(), **desired(wanted, {}, created=True), "pool": wanted.pool}
                return machines.client.post(f"/nodes/{machines.node}/qemu", vmid=vmid, **as_call(values))
            return machines.begin_clone(
                origin, vmid, name=wanted.name, description=wanted.description(), pool=wanted.pool
            )
        except ApiError as error:
            if isinstance(origin, Source) and self._is_missing(origin, error):
                if origin.node is None and (other := machines.elsewhere(origin)):
                    return self._begin_elsewhere(other, vmid)
                raise NotFound(f"The source, VM {origin.vmid}, does not exist on node {machines.node}.") from error
            if not error.id_taken:
                raise
            raise self._taken(vmid) from error

    def _taken(self, vmid: int) -> PveError:
        """What to raise when somebody else has the id: another pass looks whose it is, or takes another id."""
        self.refused += 1
        if self.given and self.refused > 2:
            return IdTaken(f"VM id {vmid}, by a VM of another node or a container; take another one.")
        self.vmid = vmid if self.given else None
        return Raced(f"VM id {vmid}.")

    def _woken(self, seen: Seen) -> Seen:
        """A hibernated VM goes on before anything of it is changed: Proxmox VE refuses that until then."""
        if not seen.hibernated or self.target in (None, "stopped"):
            return seen
        seen = self._powered(seen, fresh=False)
        self.started = False  # it goes on with what it had: a change still waits for a restart
        return replace(seen, config={key: value for key, value in seen.config.items() if key != "lock"})

    def _resized(self, seen: Seen) -> Seen:
        grown = self.machines.grown(self.wanted, seen.config)
        if not grown or disk_size({**seen.config, **grown}) == disk_size(seen.config):
            return seen
        disk, value = next(iter(grown.items()))
        size = properties(value, "file")["size"]
        path = self.machines.path(seen.vmid, "resize")
        self.machines.task(lambda: self.machines.client.put(path, disk=disk, size=size))
        return replace(seen, config={**seen.config, **grown})

    def _pooled(self, seen: Seen, fresh: bool) -> Seen:
        pool, machines = self.wanted.pool, self.machines
        if pool is None:
            return seen
        if not fresh:  # a VM that was just made is in it
            known = seen.config["pool"] if "pool" in seen.config else machines.pool_of(seen.vmid, pool)
            if known != pool:
                machines.move_to_pool(seen.vmid, pool)
        return replace(seen, config={**seen.config, "pool": pool})

    def _powered(self, seen: Seen, fresh: bool) -> Seen:
        if self.target in (None, seen.status):
            return seen
        machines = self.machines
        if not fresh and self.passes == 1 and machines.tasks.settle(vmid=seen.vmid):
            now = machines.settled(seen.vmid)  # somebody else was at it: a start that was broken off here, say
            seen = replace(seen, status=now.status if now else seen.status)
        if self.target == "stopped":
            if seen.running:
                machines.stop(seen.vmid, self.shutdown_timeout)
        else:
            if seen.status == "stopped":
                self._command(seen, "start")
                self.started = True
            if self.target == "paused":
                self._command(seen, "suspend")
            elif seen.status == "paused":
                self._command(seen, "resume")
        return replace(seen, status=self.target, pending=[] if self.started else seen.pending)

    def _command(self, seen: Seen, verb: str) -> None:
        path = self.machines.path(seen.vmid, "status", verb)
        self.machines.task(lambda: self.machines.client.post(path))


@dataclass
class Removal:
    """A VM on its way out; may be repeated. The first pass works on what was seen just now."""

    machines: Machines
    first: Seen
    wanted: Wanted
    again: bool = False

    def step(self) -> None:
        machines, vmid = self.machines, self.first.vmid
        seen: Seen | None = self.first
        if machines.tasks.settle(vmid=vmid) or self.again:
            seen = machines.settled(vmid)
        self.again = True
        if seen is None:
            return
        machines.check_identity(seen, self.wanted.identity)
        if seen.running:
            machines.stop(vmid, None)
        # What broken-off tasks have left of a VM of ours goes, too. Of any other VM, a volume with its id that its
        # configuration does not name may be one that somebody keeps.
        ours = self.wanted.identity is not None
        # In the query: a DELETE with a body is a 501.
        values = {"purge": True, "destroy-unreferenced-disks": ours or None}
        machines.task(lambda: machines.client.delete(machines.path(vmid), **values))
