# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The versions of a template: which VMs are one, and what becomes of the older ones."""

from __future__ import annotations

import re
import time
from typing import Any

from .building import Version
from .config import Identity, Wanted
from .machines import Machines

#: No build takes longer: one that was begun before was broken off.
BUILD_SECONDS = 6 * 3600
DISK = re.compile(r"(scsi|virtio|sata|ide|efidisk|tpmstate)\d+")


class Versions:
    """The older versions of a template, and what becomes of them."""

    def __init__(self, machines: Machines, identity: Identity, current: int | None):
        self.machines, self.identity, self.current = machines, identity, current

    def listed(self) -> list[int]:
        """Their VM ids, newest first; a build that was given up counts as a version, one that is under way does not."""
        name, found = self.identity.get("template"), []
        for vm in self.machines.list():
            if vm.get("name") != name or int(vm["vmid"]) == self.current:
                continue
            config = self.machines.config(int(vm["vmid"])) or {}
            if is_version(config, int(vm["vmid"]), self.identity) and not self._is_under_way(config):
                found.append((_ctime(config), int(vm["vmid"])))
        return [vmid for _ctime, vmid in sorted(found, reverse=True)]

    def _is_under_way(self, config: dict[str, Any]) -> bool:
        """Whether another controller builds this one; of the same version it takes it away by itself."""
        young = time.time() - _ctime(config) < BUILD_SECONDS
        return version_of(config) == self.identity.get("inputs") or (Version(0, config).building and young)

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


def identity_line(identity: Identity, vmid: int) -> str:
    """The identity with the VM id: a clone inherits the text, and is none of the template's versions."""
    return Identity.of(**dict(identity.fields), vm=str(vmid)).line()


def is_version(config: dict[str, Any], vmid: int, identity: Identity) -> bool:
    """Whether a VM is a version of this template, or is becoming one."""
    found = Identity.parse(config.get("description"))
    if found is None or any(found.get(name) != identity.get(name) for name in ("installation", "template")):
        return False
    # Templates of version 0.1 do not say their id.
    return found.get("vm") == str(vmid) or (found.get("vm") is None and bool(int(config.get("template") or 0)))


def _ctime(config: dict[str, Any]) -> int:
    found = re.search(r"ctime=(\d+)", str(config.get("meta", "")))
    return int(found[1]) if found else 0


def own_version(config: dict[str, Any], vmid: int) -> str | None:
    """The version that a VM is itself; a clone of it has the same text."""
    identity = Identity.parse(config.get("description"))
    return identity.get("inputs") if identity and identity.get("vm") == str(vmid) else None


def version_of(config: dict[str, Any]) -> str | None:
    identity = Identity.parse(config.get("description"))
    return identity.get("inputs") if identity else None
