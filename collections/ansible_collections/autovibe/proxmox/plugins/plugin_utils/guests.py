# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules that go into a guest share."""

from __future__ import annotations

from typing import Any

from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.guest import Guest
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.machines import Machines

from .action import Client


def guest_of(client: Client, options: dict[str, Any]) -> Guest:
    """The guest of `vm_id`, on the node that is given or, without one, where it is."""
    machines = Machines(client, options["node"], options["timeout"])
    return Guest(client, machines.node_of(options["vm_id"]), options["vm_id"])
