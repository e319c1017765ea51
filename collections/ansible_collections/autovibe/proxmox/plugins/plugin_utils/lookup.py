# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the plugins that work on one existing VM find it: by id, name or identity."""

from __future__ import annotations

from typing import Any

from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.errors import NotFound

from .action import IDENTITY_SPEC, identity

MACHINE_SPEC: dict[str, dict[str, Any]] = {
    "vm_id": {"type": "int"},
    "machine_name": {"type": "str"},
    "identity": IDENTITY_SPEC,
}
MACHINE_CONSTRAINT = ("vm_id", "machine_name", "identity")


def machine_id(machines: Any, options: dict[str, Any]) -> int:
    """The VM id that the options name; NotFound when there is none."""
    vmid = options["vm_id"]
    if vmid is None:
        vmid = machines.find(identity=identity(options), name=options["machine_name"], templates=True)
    if vmid is None:
        what = f"'{options['machine_name']}'" if options["machine_name"] else "with this identity"
        where = f"on node {options['node']}" if options["node"] else "in the cluster"
        raise NotFound(f"There is no machine {what} {where}.")
    return vmid
