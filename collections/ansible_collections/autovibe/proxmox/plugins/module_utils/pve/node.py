# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looking at a node's VMs: what is there, whose it is, and whether something is under way for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self

from .client import Client, waits
from .config import Identity, split_tags
from .devices import parse_smbios
from .errors import (
    Ambiguous,
    ApiError,
    Forbidden,
    HalfMadeClone,
    IdentityError,
    IdTaken,
    Locked,
    NotFound,
    SettingsError,
    TaskTimeout,
)
from .tasks import Tasks

#: Locks of a VM that is being made; without a task that makes it, it was broken off.
HALF_MADE = ("clone", "create")


@dataclass
class Seen:
    """A VM as it was found."""

    vmid: int
    config: dict[str, Any]
    #: running, paused or stopped
    status: str
    #: Keys whose new value waits for a restart.
    pending: list[str] = field(default_factory=list)

    @property
    def running(self) -> bool:
        """Whether it has a process: a paused VM, too."""
        return self.status in ("running", "paused")

    @property
    def template(self) -> bool:
        return bool(int(self.config.get("template") or 0))

    @property
    def hibernated(self) -> bool:
        """Whether it is stopped with its RAM saved: a start goes on from there."""
        return self.config.get("lock") == "suspended"


@dataclass(frozen=True)
class Source:
    """What a VM is cloned from: a template (linked unless `full`) or a snapshot of a VM (always full).

    `node` is where it is known to be, when that is another node than the new VM's.
    """

    vmid: int
    snapshot: str | None = None
    full: bool = False
    storage: str | None = None
    node: str | None = None


#: What a VM made of an image gets when it is not said: what cloud images expect.
IMAGE_CONFIG = {
    "ostype": "l26",
    "scsihw": "virtio-scsi-single",
    "agent": "enabled=1",
    "serial0": "socket",
    "boot": "order=scsi0",
}


@dataclass(frozen=True)
class Image:
    """What a VM is made of without a template: a volume or file that is imported, or a new disk, `storage:GiB`."""

    image: str
    storage: str

    def config(self) -> dict[str, Any]:
        is_new = self.image.rpartition(":")[2].isdigit()
        disk = self.image if is_new else f"{self.storage}:0,import-from={self.image}"
        return {**IMAGE_CONFIG, "scsi0": disk, "ide2": f"{self.storage}:cloudinit"}


#: What a missing VM is made from; asked only when it is missing.
FromWhere = Callable[[], "Source | Image"]


class Node:
    """One node and the tasks on it; `timeout` bounds each wait for a task, in seconds.

    Without `node` it is found: the only node of a cluster of one, or the one where the VM that is asked for is.
    """

    def __init__(self, client: Client, node: str | None = None, timeout: float = 600):
        self.client, self._node = client, node
        self.tasks = Tasks(client, node, timeout)

    @property
    def node(self) -> str:
        if self._node is None:
            names = self.nodes()
            if len(names) != 1:
                raise SettingsError(f"The cluster has the nodes {', '.join(names)}; say which by node.")
            self._use(names[0])
        return self._node or ""

    def at(self, node: str | None) -> Self:
        """The same on another node of the cluster; None is this one."""
        return self if node in (None, self._node) else type(self)(self.client, node, self.tasks.timeout)

    def elsewhere(self, source: Source) -> Source | None:
        """The source with its node, when it is on another one than this; one call."""
        listed = self.client.get("/cluster/resources", type="vm")
        nodes = [entry["node"] for entry in listed if int(entry.get("vmid") or 0) == source.vmid]
        return replace(source, node=nodes[0]) if nodes and nodes[0] != self.node else None

    def nodes(self) -> list[str]:
        """The names of the cluster's nodes that are online, or the one that is given."""
        if self._node is not None:
            return [self._node]
        return sorted(entry["node"] for entry in self.client.get("/nodes") if entry.get("status") != "offline")

    def locate(self, vmid: int) -> str | None:
        """The node to ask for a VM, which is this object's node from then on; None when the VM is nowhere."""
        if self._node is None:
            names = self.nodes()
            if len(names) > 1:
                listed = self.client.get("/cluster/resources", type="vm")
                names = [entry["node"] for entry in listed if int(entry.get("vmid") or 0) == int(vmid)]
            if names:
                self._use(names[0])
            elif not self.is_free(vmid):
                raise IdTaken(f"VM {vmid} exists, but these credentials do not see on which node; give node.")
        return self._node

    def node_of(self, vmid: int) -> str:
        """The node of a VM that has to be there (a given node is taken at its word)."""
        found = self.locate(vmid)
        if found is None:
            raise NotFound(f"There is no VM {vmid} in the cluster.")
        return found

    def path(self, vmid: int, *rest: str) -> str:
        return "/".join([f"/nodes/{self._node or self.node_of(vmid)}/qemu/{vmid}", *rest])

    def list(self) -> list[dict[str, Any]]:
        """The VMs that this user may see, with their `node`; name, tags and status are as of now.

        (In cluster/resources name and status lag by some seconds.)
        """
        return [{**vm, "node": node} for node in self.nodes() for vm in self.client.get(f"/nodes/{node}/qemu")]

    def storage_types(self) -> dict[str, str]:
        """The type of each storage that this user may see: `{"local": "dir"}`."""
        return {entry["storage"]: entry["type"] for entry in self.client.get(f"/nodes/{self.node}/storage")}

    def local_storages(self) -> set[str]:
        """Those of this node that no other node sees (and that this user may see)."""
        listed = self.client.get(f"/nodes/{self.node}/storage")
        return {entry["storage"] for entry in listed if not int(entry.get("shared") or 0)}

    def config(self, vmid: int, snapshot: str | None = None) -> dict[str, Any] | None:
        """The VM's configuration (or a snapshot's), None when there is no such VM."""
        return self._unless_missing(vmid, lambda: self.client.get(self.path(vmid, "config"), snapshot=snapshot))

    def look(self, vmid: int) -> Seen | None:
        """The VM as it is now: its configuration with what waits for a restart, and its power state; two calls."""
        if self.locate(vmid) is None:
            return None
        entries = self._unless_missing(vmid, lambda: self.client.get(self.path(vmid, "pending")))
        if entries is None:
            return None
        config, pending = _merged(entries)
        if config.get("lock") in HALF_MADE or config.get("template"):
            return Seen(vmid, config, "stopped", pending)
        status = self.power(vmid)
        return None if status is None else Seen(vmid, config, status, pending)

    def power(self, vmid: int) -> str | None:
        """running, paused or stopped; None when there is no such VM."""
        found = self._unless_missing(vmid, lambda: self.client.get(self.path(vmid, "status", "current")))
        if found is None:
            return None
        paused = found["status"] == "running" and found.get("qmpstatus") == "paused"
        return "paused" if paused else found["status"]

    def pending(self, vmid: int) -> list[str]:
        """The keys whose new value waits for a restart."""
        return _merged(self.client.get(self.path(vmid, "pending")))[1]

    def _unless_missing(self, vmid: int, call: Callable[[], Any]) -> Any:
        """What the call answers; None when there is no such VM."""
        try:
            return call()
        except Forbidden:
            # A token without rights on everything gets 403 for a VM that is not there, too.
            if self.is_free(vmid):
                return None
            raise
        except ApiError as error:
            if error.no_such_vm:
                return None
            raise

    def _use(self, node: str) -> None:
        self._node = self.tasks.node = node

    def is_free(self, vmid: int) -> bool:
        try:
            self.client.get("/cluster/nextid", vmid=vmid)
        except ApiError as error:
            if error.status == 400 and "already exists" in error.errors.get("vmid", ""):
                return False
            raise
        return True

    def settled(self, vmid: int) -> Seen | None:
        """The VM once no lock stands on it; an error when nobody is left to take the lock off."""
        idle = 0
        makers: set[str] | None = None
        for left in waits(self.tasks.timeout):
            try:
                seen = self.look(vmid)
            except Forbidden as error:
                seen, lock, hidden = None, "clone", error
            else:
                # A VM that is hibernated is a stopped one that goes on where it was: no task holds its lock.
                if seen is None or seen.config.get("lock") in (None, "suspended"):
                    return seen
                lock, hidden = seen.config["lock"], None
            if lock == "clone":
                # A clone's task does not say what it makes. The one that makes this had begun when we saw the lock.
                clones = set(self.tasks.active(vmid=None, kind="qmclone"))
                makers = clones if makers is None else makers & clones
                if makers and left <= 0:
                    raise TaskTimeout(
                        f"VM {vmid} is locked (clone), and a clone that may be making it is under way for more than "
                        f"{self.tasks.timeout:g} s: {', '.join(sorted(makers))}; wait for its end and run this again."
                    )
            busy = bool(makers) if lock == "clone" else self.tasks.settle(vmid=vmid)
            idle = 0 if busy else idle + 1
            if idle > 2 or left <= 0:  # twice more after the task was gone: the lock goes with it, but not at once
                self._refuse_locked(vmid, lock, hidden, seen.config if seen else {})
        return None

    def find(
        self,
        *,
        identity: Identity | None = None,
        name: str | None = None,
        templates: bool = False,
        only_one: bool = False,
    ) -> int | None:
        """The VM id of the machine with this identity or, without one, this name; its node is this object's then.

        A machine that ended may have become a template: asked for, it is found too, but one that is not a template
        comes first. Of several templates the last one is taken, unless there may be `only_one`.
        """
        tag = identity.tag() if identity else None
        found = []
        for vm in self.list():
            fits = (name and vm.get("name") == name) or (tag and tag in split_tags(vm.get("tags")))
            if not fits or (vm.get("template") and not templates):
                continue
            if identity is None or identity.owns((self._config_of(vm) or {}).get("description")):
                found.append(vm)
        alive = [vm for vm in found if not vm.get("template")] or (found if only_one else found[-1:])
        if len(alive) > 1:
            ids = ", ".join(f"{vm['vmid']} ({vm['node']})" for vm in sorted(alive, key=lambda vm: vm["vmid"]))
            raise Ambiguous(f"'{name or tag}' is the name of the VMs {ids}; say which by vm_id.")
        return self._found(alive[0]) if alive else None

    def template(self, name: str) -> int:
        """The VM id of the newest template of a name; its node is this object's then."""
        listed = [vm for vm in self.list() if vm.get("template")]
        fits = [vm for vm in listed if vm.get("name") == name]
        if not fits:
            names = ", ".join(sorted({str(vm.get("name")) for vm in listed})) or "none at all"
            where = f"on node {self._node}" if self._node else "in the cluster"
            raise NotFound(f"No template '{name}' {where}; there are: {names}.")
        if len(fits) == 1:
            return self._found(fits[0])
        return self._found(max(fits, key=lambda vm: (_ctime(self._config_of(vm) or {}), int(vm["vmid"]))))

    def refuse_elsewhere(self, vmid: int | None, identity: Identity | None) -> None:
        """NotFound when a VM that this node has not is on another one, say after a migration: it is not gone."""
        tag = identity.tag() if identity else None
        for vm in self.client.get("/cluster/resources", type="vm") if vmid or tag else ():
            if vm.get("type") != "qemu" or vm["node"] == self._node:
                continue
            has_id, has_tag = int(vm["vmid"]) == vmid, tag in split_tags(vm.get("tags"))
            there = has_id and (identity is None or has_tag)
            # A clone inherits its source's tags, and an id that is free again may be another VM's by now.
            if identity and has_id != has_tag:
                there = identity.owns((self._config_of(vm) or {}).get("description"))
            if there:
                raise NotFound(f"VM {vm['vmid']} is on node {vm['node']}, not {self._node}; give that node, or none.")

    def _found(self, vm: dict[str, Any]) -> int:
        self._use(vm["node"])
        return int(vm["vmid"])

    def _config_of(self, vm: dict[str, Any]) -> dict[str, Any] | None:
        path = f"/nodes/{vm['node']}/qemu/{vm['vmid']}/config"
        return self._unless_missing(int(vm["vmid"]), lambda: self.client.get(path))

    def check_identity(self, seen: Seen, identity: Identity | None) -> None:
        if identity is not None and not identity.owns(seen.config.get("description")):
            raise IdentityError(
                f"VM {seen.vmid} on node {self.node} is '{seen.config.get('name', '')}', without the identity "
                f"'{identity.line()}'; take another VM id."
            )

    def check_uuid(self, vmid: int, config: dict[str, Any], expected: str | None) -> None:
        """IdentityError unless the VM has this SMBIOS uuid, which its guest sees as its product's; None: any."""
        found = parse_smbios(config.get("smbios1")).get("uuid", "")
        if expected is not None and found.lower() != expected.strip().lower():
            raise IdentityError(
                f"VM {vmid} ('{config.get('name', '')}') has the SMBIOS uuid {found or '(none)'}, not "
                f"{expected.strip()}: it is another VM than the one that is meant; check vm_id."
            )

    def _refuse_locked(self, vmid: int, lock: str, hidden: Forbidden | None, config: dict[str, Any]) -> None:
        command = f"qm unlock {vmid} && qm destroy {vmid} --purge --destroy-unreferenced-disks 1"
        if hidden is not None:
            raise IdentityError(
                f"VM {vmid} exists, but these credentials may not see it ({hidden.reason}). Take another VM id; "
                f"if a clone was broken off here, root on node {self.node} removes what is left with: {command}"
            )
        if lock in HALF_MADE:
            raise HalfMadeClone(
                f"On node {self.node}: {command} - or take another VM id than {vmid}.", vmid=vmid, config=config
            )
        raise Locked(
            f"VM {vmid} is locked ({lock}); when nothing works on it, root on node {self.node}: qm unlock {vmid}"
        )


def _merged(entries: list[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """The configuration as it will be, and the keys whose change waits for a restart, of `…/pending`."""
    config: dict[str, Any] = {}
    pending = []
    for entry in entries:
        if "pending" in entry or entry.get("delete"):
            pending.append(entry["key"])
        if not entry.get("delete"):
            config[entry["key"]] = entry.get("pending", entry.get("value"))
    return config, sorted(pending)


def _ctime(config: dict[str, Any]) -> int:
    for part in str(config.get("meta", "")).split(","):
        if part.startswith("ctime="):
            return int(part[6:])
    return 0
