# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Templates: a disk image made into a VM that others are cloned from, one version for each set of inputs."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any

from .building import SEALED, Building, Race, Version
from .checkpoints import Checkpoints
from .config import Identity, Wanted
from .errors import ApiError, IdentityError, NotFound, NotPossible, Overtaken, PveError, TaskFailed
from .guest import Guest
from .images import Image
from .machines import Change, Machines, Raced, persist
from .seed import DRIVE, Seed
from .versions import Versions, identity_line, is_version, own_version, version_of

#: How long the guest of a template may take to boot, and to install its agent where it has none.
BOOT_SECONDS = 1200
SHUTDOWN_SECONDS = 120
#: What a machine must not inherit: its identity, keys, logs, and what cloud-init thinks that it has done.
#: The random seed and the journal are written at the shutdown again, unless they are told before.
SEAL = """\
command -v cloud-init > /dev/null && cloud-init clean --logs --seed
command -v systemctl > /dev/null && systemctl stop systemd-random-seed.service 2> /dev/null
rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub /var/lib/dbus/machine-id /var/lib/systemd/random-seed
rm -f /etc/netplan/50-cloud-init.yaml /etc/network/interfaces.d/50-cloud-init /var/lib/dhcp/*.leases
[ -e /etc/machine-id ] && : > /etc/machine-id
command -v journalctl > /dev/null && journalctl --quiet --relinquish-var 2> /dev/null
rm -rf /var/log/journal/*
find /var/log -type f ! -path '*/journal/*' -exec sh -c ': > "$1"' sh {} \\;
find /tmp /var/tmp -mindepth 1 -xdev -delete 2> /dev/null
find /root /home -maxdepth 2 -name '.*_history' -delete 2> /dev/null
rm -rf /root/.ansible_async /root/.cache
command -v fstrim > /dev/null && fstrim -a 2> /dev/null
sync
exit 0
"""


@dataclass(frozen=True)
class Step:
    """One thing that is done in the guest before it becomes a template: a program, or a file."""

    argv: tuple[str, ...] = ()
    path: str | None = None
    content: bytes = b""
    mode: str | None = None
    owner: str | None = None
    timeout: int = 600

    def digest(self) -> list[str]:
        content = hashlib.sha256(self.content).hexdigest() if self.path else ""
        return [*self.argv, self.path or "", content, self.mode or "", self.owner or ""]

    def run(self, guest: Guest) -> None:
        if self.path:
            guest.put(self.path, self.content, mode=self.mode, owner=self.owner)
            return
        ended = guest.run(list(self.argv), timeout=self.timeout)
        if ended.rc != 0:
            how = "took too long" if ended.timed_out else f"ended with {ended.rc}"
            tail = (ended.stderr or ended.stdout).decode(errors="replace").splitlines()[-20:]
            raise CustomizationFailed(f"'{' '.join(self.argv)[:200]}' in VM {guest.vmid} {how}.", log=tail)


class CustomizationFailed(PveError):
    """A step of the template's customisation failed; the next run begins anew."""


@dataclass(frozen=True)
class Inputs:
    """What a template is made of; its version is their hash."""

    name: str
    image: Image
    storage: str
    cores: int = 1
    memory: int = 512
    bridge: str = "vmbr1"
    cloudinit_storage: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    disk_size: str | None = None
    #: How it is made and not what of, so no part of the version: configuration that holds until it is sealed, and a CD.
    build: dict[str, Any] = field(default_factory=dict)
    seed: Seed | None = None
    #: What the image is, as `Image.fingerprint` says.
    fingerprint: str | None = None

    def version(self) -> str:
        made_of = {
            **{key: getattr(self, key) for key in ("name", "storage", "cores", "memory", "bridge", "options", "extra")},
            "cloudinit_storage": self.cloudinit_storage,
            "disk": self.image.volume or "",
            "fingerprint": self.fingerprint,
            "steps": [step.digest() for step in self.steps],
            **({"disk_size": self.disk_size} if self.disk_size else {}),
        }
        text = json.dumps(made_of, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def config(self, disk: str) -> dict[str, Any]:
        """The parameters that create the VM. A `disk` like `null:1` is a new one of that size (GiB)."""
        size = disk.rpartition(":")[2]
        scsi0 = disk if size.isdigit() else f"{self.storage}:0,import-from={disk}"
        return {
            "name": self.name,
            "cores": self.cores,
            "memory": self.memory,
            "ostype": "l26",
            "scsihw": "virtio-scsi-single",
            "scsi0": scsi0,
            "ide2": f"{self.cloudinit_storage or self.storage}:cloudinit",
            "net0": f"virtio,bridge={self.bridge}",
            "agent": "enabled=1",
            "boot": "order=scsi0",
            "serial0": "socket",
            **self.options,
        }

    def temporary(self) -> dict[str, Any]:
        """What holds until the template is sealed."""
        return {**self.build, **(self.seed.config() if self.seed else {})} if self.steps else {}

    def at_first(self) -> dict[str, Any]:
        """What of it the VM is created with: the CD comes when it is known who builds."""
        return {key: None if self.seed and key == DRIVE else value for key, value in self.temporary().items()}


class Templates:
    def __init__(self, machines: Machines):
        self.machines, self.client = machines, machines.client
        self.checkpoints = Checkpoints(machines)

    def ensure(
        self,
        inputs: Inputs,
        *,
        installation: str | None,
        vmid: int | None = None,
        first_vmid: int | None = None,
        pool: str | None = None,
        tags: list[str] | None = None,
        keep: int | None = None,
        check: bool = False,
    ) -> Change:
        """The template's version for these inputs; older versions of the same name stay beside it, or `keep` of all.

        Of a version that was begun and not finished: one that is sealed, or has nothing to be customised, is finished,
        another one is removed and begun anew.
        """
        asked = {key: getattr(inputs, key) for key in ("name", "cores", "memory", "disk_size")}
        Wanted(tags=tags, **asked).validate()
        inputs = replace(inputs, fingerprint=inputs.image.fingerprint(self.machines))
        if inputs.seed:
            inputs = replace(inputs, seed=replace(inputs.seed, version=inputs.version()))
        identity = Identity.of(installation=installation, template=inputs.name, inputs=inputs.version())
        found = self._find(identity, inputs.name, vmid)
        wanted = {"name": inputs.name, "inputs": inputs.version(), "template": True}
        done = bool(found and found.done)
        made = found.vmid if found else None
        if not done and not check:
            values = {"tags": ";".join(tags or ["autovibe"]), "pool": pool}
            made = self._built_alone(inputs, values, identity, vmid, first_vmid)
        facts = self._facts(made or vmid, inputs, identity)
        before, after = (wanted if done else {}), wanted
        if keep is not None:
            versions = Versions(self.machines, identity, made)
            old = versions.listed()
            gone = versions.prune(keep, check=check)
            facts["removed"] = gone
            before = {**before, "older": sorted(old)}
            after = {**wanted, "older": sorted(set(old) - set(gone))}
        return Change(before, after, facts)

    def _built_alone(
        self,
        inputs: Inputs,
        values: dict[str, Any],
        identity: Identity,
        vmid: int | None,
        first_vmid: int | None,
    ) -> int:
        """One builder at a time builds a version; the others find it when it is done (building.py)."""
        machines = self.machines
        shared = machines.tasks.shared(machines.node)
        with shared.alone(f"template-{inputs.version()}", machines.tasks.timeout) as mine:
            race = Race(machines, shared.home if mine else None, lambda: self._versions(identity, inputs.name, vmid))
            identity = Identity.of(**dict(identity.fields), by=race.by)
            while True:
                adopted = self._adopted(inputs, race.left(), identity)
                if adopted and adopted.done:
                    return adopted.vmid
                if adopted is None:
                    disk = inputs.image.obtain(machines, inputs.fingerprint)
                    values = {**inputs.config(disk), **values}
                    first = {**values, **inputs.at_first()}
                    new = vmid or self._free(first_vmid)
                    adopted = persist(lambda new=new, first=first: self._create(new, identity, first))
                    if adopted.by != race.by:
                        continue
                    if not race.wins(adopted.vmid):
                        self._discard(adopted.vmid, identity)
                        continue
                with contextlib.suppress(Overtaken):
                    return self._build(inputs, values, identity, adopted)

    def _adopted(self, inputs: Inputs, left: list[Version], identity: Identity) -> Version | None:
        """Of what is there the one that is finished, or that can be gone on with; the others are removed."""
        if left and left[0].done:
            return left[0]
        usable = next((one for one in left if one.sealed or not inputs.steps), None)
        for one in left:
            if one is not usable:
                self._discard(one.vmid, identity)
        return usable

    def _build(self, inputs: Inputs, values: dict[str, Any], identity: Identity, made: Version) -> int:
        vmid = made.vmid
        if not made.sealed:
            if inputs.steps:
                self._customise(vmid, inputs, identity, values)
            elif inputs.disk_size:
                self.machines.ensure(vmid, Wanted(disk_size=inputs.disk_size))
        if inputs.steps and inputs.seed:
            inputs.seed.remove(self.machines)
        persist(lambda: self.checkpoints.convert(vmid))
        return vmid

    def _customise(self, vmid: int, inputs: Inputs, identity: Identity, values: dict[str, Any]) -> None:
        """The first boot: the steps, the seal, the shutdown, and with the final configuration the mark that says so."""
        machines, line = self.machines, identity_line(identity, vmid)
        with Building(machines, vmid, line) as building:
            if inputs.seed:
                inputs.seed.bring(machines)
                persist(lambda: machines.set_config(vmid, inputs.seed.config()))
            machines.ensure(vmid, Wanted(disk_size=inputs.disk_size), state="started")
            guest = Guest(self.client, machines.node, vmid)
            guest.wait(BOOT_SECONDS)
            for step in inputs.steps:
                building.check()
                step.run(guest)
            building.check()
            Step(("/bin/sh", "-c", SEAL)).run(guest)
            machines.ensure(vmid, Wanted(), state="stopped", shutdown_timeout=SHUTDOWN_SECONDS)
        final = {key: values[key] for key in inputs.temporary() if key in values}
        if gone := sorted(set(inputs.temporary()) - set(final)):
            final["delete"] = ",".join(gone)
        final["description"] = f"{line}\n{SEALED}"
        persist(lambda: machines.set_config(vmid, final))

    def _discard(self, vmid: int, identity: Identity) -> None:
        try:
            self.machines.remove(vmid, Wanted(identity=identity), force=True)
        except (ApiError, TaskFailed):
            if self.machines.look(vmid) is not None:  # else another process was faster
                raise

    def convert(self, vmid: int, *, check: bool = False) -> Change:
        """A VM that is there, stopped and without snapshots, as a template."""
        seen = self.machines.settled(vmid)
        if seen is None:
            raise NotFound(f"VM {vmid} does not exist on node {self.machines.node}.")
        facts = {
            "name": seen.config.get("name"),
            "vm_id": vmid,
            "node": self.machines.node,
            "inputs": own_version(seen.config, vmid),
        }
        if seen.running:
            raise NotPossible(f"VM {vmid} is running; only a stopped VM can become a template.")
        if not seen.template and not check:
            persist(lambda: self.checkpoints.convert(vmid))
        return Change({"template": seen.template}, {"template": True}, facts)

    def _find(self, identity: Identity, name: str, vmid: int | None) -> Version | None:
        return next(iter(self._versions(identity, name, vmid)), None)

    def _versions(self, identity: Identity, name: str, vmid: int | None) -> list[Version]:
        """The VMs of this version, finished ones first; with a `vmid` it is that one, and no other may be there."""
        if vmid is not None:
            seen = self.machines.settled(vmid)
            if seen is None:
                return []
            self.machines.check_identity(seen, identity)
            if not is_version(seen.config, vmid, identity):
                raise IdentityError(f"VM {vmid} is a clone of template '{name}', or another installation's.")
            self._refuse_other_version(seen.config, identity, vmid)
            return [Version(vmid, seen.config)]
        found = []
        for vm in self.machines.list():
            if vm.get("name") == name:
                config = self.machines.config(vm["vmid"]) or {}
                if is_version(config, int(vm["vmid"]), identity) and version_of(config) == identity.get("inputs"):
                    found.append(Version(int(vm["vmid"]), config))
        return sorted(found, key=lambda one: not one.done)

    def _refuse_other_version(self, config: dict[str, Any], identity: Identity, vmid: int) -> None:
        if version_of(config) != identity.get("inputs"):
            raise NotPossible(
                f"VM {vmid} is another version of template '{identity.get('template')}' (inputs {version_of(config)}, "
                f"wanted {identity.get('inputs')}); give the new version another VM id."
            )

    def _create(self, vmid: int | None, identity: Identity, values: dict[str, Any]) -> Version:
        """The VM, made; or the one that is there, which may be another builder's."""
        # A pass whose answer was lost may have made it, or a run that was broken off.
        if vmid is None:
            self.machines.tasks.node = self.machines.node
            self.machines.tasks.settle_earlier(kind="qmcreate")
        new = vmid or int(self.client.get("/cluster/nextid"))
        # In this order: who makes one after this look takes the id that we mean, and makes us look again.
        there = self._find(identity, values["name"], vmid)
        if there is not None:
            return there
        values = {**values, "description": identity_line(identity, new)}
        try:
            path = f"/nodes/{self.machines.node}/qemu"
            self.machines.task(lambda: self.client.post(path, vmid=new, **values))
        except ApiError as error:
            if error.id_taken:
                raise Raced(f"VM id {new}.") from error
            raise
        return Version(new, values)

    def _free(self, vmid: int | None) -> int | None:
        """The VM id if nobody has it. It needs no privilege to ask."""
        if vmid is None:
            return None
        try:
            self.client.get("/cluster/nextid", vmid=vmid)
        except ApiError as error:
            if error.status == 400:
                return None
            raise
        return vmid

    def _facts(self, vmid: int | None, inputs: Inputs, identity: Identity) -> dict[str, Any]:
        return {"name": inputs.name, "vm_id": vmid, "node": self.machines.node, "inputs": identity.get("inputs")}
