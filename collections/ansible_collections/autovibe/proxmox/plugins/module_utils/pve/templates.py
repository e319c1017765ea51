# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Templates: a disk image made into a VM that others are cloned from, one version for each set of inputs."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from typing import Any

from .checkpoints import Checkpoints
from .config import Identity, Wanted
from .errors import ApiError, IdentityError, NotFound, NotPossible, PveError
from .guest import Guest
from .images import Image
from .machines import Change, Machines, Raced, persist
from .seed import Seed

DISK = re.compile(r"(scsi|virtio|sata|ide|efidisk|tpmstate)\d+")
#: Stands in the description of a VM that is built, sealed and stopped: all that is left is to convert it.
SEALED = "sealed"
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
        inputs = replace(inputs, fingerprint=inputs.image.fingerprint(self.machines))
        if inputs.seed:
            inputs = replace(inputs, seed=replace(inputs.seed, version=inputs.version()))
        identity = Identity.of(installation=installation, template=inputs.name, inputs=inputs.version())
        found = self._find(identity, inputs.name, vmid)
        wanted = {"name": inputs.name, "inputs": inputs.version(), "template": True}
        done = bool(found and self._is_template(found))
        made = found
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
        """One process of ours at a time builds a version; the others find it when it is done."""
        machines = self.machines
        with machines.tasks.shared(machines.node).alone(f"template-{inputs.version()}", machines.tasks.timeout):
            found = self._find(identity, inputs.name, vmid)
            if found is not None and self._is_template(found):
                return found
            disk = inputs.image.obtain(machines, inputs.fingerprint)
            new = vmid or found or self._free(first_vmid)
            return self._build(inputs, {**inputs.config(disk), **values}, identity, found, new)

    def _build(
        self, inputs: Inputs, values: dict[str, Any], identity: Identity, found: int | None, vmid: int | None
    ) -> int:
        if found is not None and inputs.steps and not self._is_sealed(found):
            self._discard(found, identity)
            found = None
        if found is None and inputs.steps and inputs.seed:
            inputs.seed.bring(self.machines)
        made = persist(lambda: self._create(found, vmid, identity, {**values, **inputs.temporary()}))
        if inputs.disk_size and not self._is_sealed(made):
            self.machines.ensure(made, Wanted(disk_size=inputs.disk_size))
        if inputs.steps and not self._is_sealed(made):
            self._customise(made, inputs, identity, values)
        if inputs.steps and inputs.seed:
            inputs.seed.remove(self.machines)
        persist(lambda: self.checkpoints.convert(made))
        return made

    def _customise(self, vmid: int, inputs: Inputs, identity: Identity, values: dict[str, Any]) -> None:
        """The first boot: the steps, the seal, the shutdown, and with the final configuration the mark that says so."""
        machines = self.machines
        machines.ensure(vmid, Wanted(), state="started")
        guest = Guest(self.client, machines.node, vmid)
        guest.wait(BOOT_SECONDS)
        for step in inputs.steps:
            step.run(guest)
        Step(("/bin/sh", "-c", SEAL)).run(guest)
        machines.ensure(vmid, Wanted(), state="stopped", shutdown_timeout=SHUTDOWN_SECONDS)
        final = {key: values[key] for key in inputs.temporary() if key in values}
        if gone := sorted(set(inputs.temporary()) - set(final)):
            final["delete"] = ",".join(gone)
        final["description"] = f"{_line(identity, vmid)}\n{SEALED}"
        persist(lambda: machines.set_config(vmid, final))

    def _is_sealed(self, vmid: int) -> bool:
        seen = self.machines.settled(vmid)
        return bool(seen and not seen.running and SEALED in str(seen.config.get("description", "")).split())

    def _discard(self, vmid: int, identity: Identity) -> None:
        self.machines.remove(vmid, Wanted(identity=identity), force=True)

    def convert(self, vmid: int, *, check: bool = False) -> Change:
        """A VM that is there, stopped and without snapshots, as a template."""
        seen = self.machines.settled(vmid)
        if seen is None:
            raise NotFound(f"VM {vmid} does not exist on node {self.machines.node}.")
        facts = {"name": seen.config.get("name"), "vm_id": vmid, "node": self.machines.node, "inputs": None}
        if seen.running:
            raise NotPossible(f"VM {vmid} is running; only a stopped VM can become a template.")
        if not seen.template and not check:
            persist(lambda: self.checkpoints.convert(vmid))
        return Change({"template": seen.template}, {"template": True}, facts)

    def _find(self, identity: Identity, name: str, vmid: int | None) -> int | None:
        if vmid is not None:
            seen = self.machines.settled(vmid)
            if seen is not None:
                self.machines.check_identity(seen, identity)
                if not _is_version(seen.config, vmid, identity):
                    raise IdentityError(f"VM {vmid} is a clone of template '{name}', or another installation's.")
                self._refuse_other_version(seen.config, identity, vmid)
            return vmid if seen else None
        for vm in self.machines.list():
            if vm.get("name") == name:
                config = self.machines.config(vm["vmid"]) or {}
                if _is_version(config, int(vm["vmid"]), identity) and _version(config) == identity.get("inputs"):
                    return int(vm["vmid"])
        return None

    def _refuse_other_version(self, config: dict[str, Any], identity: Identity, vmid: int) -> None:
        if _version(config) != identity.get("inputs"):
            raise NotPossible(
                f"VM {vmid} is another version of template '{identity.get('template')}' (inputs {_version(config)}, "
                f"wanted {identity.get('inputs')}); give the new version another VM id."
            )

    def _is_template(self, vmid: int) -> bool:
        seen = self.machines.settled(vmid)
        return bool(seen and seen.template)

    def _create(self, found: int | None, vmid: int | None, identity: Identity, values: dict[str, Any]) -> int:
        if found is not None:
            return found
        # Looked for again: a pass whose answer was lost may have made it, or a run that was broken off.
        if vmid is None:
            self.machines.tasks.node = self.machines.node
            self.machines.tasks.settle_earlier(kind="qmcreate")
        again = self._find(identity, values["name"], vmid)
        if again is not None:
            return again
        new = vmid or int(self.client.get("/cluster/nextid"))
        values = {**values, "description": _line(identity, new)}
        try:
            path = f"/nodes/{self.machines.node}/qemu"
            self.machines.task(lambda: self.client.post(path, vmid=new, **values))
        except ApiError as error:
            if error.id_taken:
                raise Raced(f"VM id {new}.") from error
            raise
        return new

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


class Versions:
    """The older versions of a template, and what becomes of them."""

    def __init__(self, machines: Machines, identity: Identity, current: int | None):
        self.machines, self.identity, self.current = machines, identity, current

    def listed(self) -> list[int]:
        """Their VM ids, newest first; a build that was given up counts as a version."""
        name, found = self.identity.get("template"), []
        for vm in self.machines.list():
            if vm.get("name") != name or int(vm["vmid"]) == self.current:
                continue
            config = self.machines.config(int(vm["vmid"])) or {}
            if _is_version(config, int(vm["vmid"]), self.identity):
                found.append((_ctime(config), int(vm["vmid"])))
        return [vmid for _ctime, vmid in sorted(found, reverse=True)]

    def prune(self, keep: int, *, check: bool = False) -> list[int]:
        """Removes all but the `keep` newest, the current one among them; never one that has linked clones."""
        gone = [vmid for vmid in self.listed()[max(keep - 1, 0) :] if not self._has_clones(vmid)]
        for vmid in [] if check else gone:
            self.machines.remove(vmid, Wanted(identity=_without_version(self.identity)), force=True)
        return gone

    def _has_clones(self, vmid: int) -> bool:
        """A linked clone's volume names the one that it is based on: `local:100/base-100-disk-0.qcow2/101/vm-101-…`."""
        config = self.machines.config(vmid) or {}
        storages = {str(value).partition(":")[0] for key, value in config.items() if DISK.fullmatch(key)}
        base = re.compile(rf"base-{vmid}-disk-\d+[^/]*/")
        where = f"/nodes/{self.machines.node}/storage"
        listed = [entry for one in storages for entry in self.machines.client.get(f"{where}/{one}/content")]
        return any(base.search(entry["volid"]) for entry in listed)


def _without_version(identity: Identity) -> Identity:
    return Identity.of(installation=identity.get("installation"), template=identity.get("template"))


def _line(identity: Identity, vmid: int) -> str:
    """The identity with the VM id: a clone inherits the text, and is none of the template's versions."""
    return Identity.of(**dict(identity.fields), vm=str(vmid)).line()


def _is_version(config: dict[str, Any], vmid: int, identity: Identity) -> bool:
    """Whether a VM is a version of this template, or is becoming one."""
    found = Identity.parse(config.get("description"))
    if found is None or any(found.get(name) != identity.get(name) for name in ("installation", "template")):
        return False
    # Templates of version 0.1 do not say their id.
    return found.get("vm") == str(vmid) or (found.get("vm") is None and bool(int(config.get("template") or 0)))


def _ctime(config: dict[str, Any]) -> int:
    found = re.search(r"ctime=(\d+)", str(config.get("meta", "")))
    return int(found[1]) if found else 0


def _version(config: dict[str, Any]) -> str | None:
    identity = Identity.parse(config.get("description"))
    return identity.get("inputs") if identity else None
