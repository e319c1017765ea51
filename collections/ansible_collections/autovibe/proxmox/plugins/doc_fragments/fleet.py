# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that say which of all VMs are meant."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  node:
    description: Only VMs on this node.
    type: str
  vm_id:
    description: Only the VM with this id.
    type: int
  name:
    description: Only VMs with this name.
    type: str
  tag:
    description: Only VMs with this tag.
    type: str
  tags:
    description: Only VMs with all of these tags.
    type: list
    elements: str
    default: []
  pool:
    description: Only VMs of this resource pool.
    type: str
  project:
    description: Only VMs of this project; it is their tag C(project-<name>).
    type: str
  machine_type:
    description: Only VMs of this type; it is their tag C(type-<type>).
    type: str
  status:
    description: Only VMs with this status.
    type: str
    choices: [running, stopped]
  templates:
    description: Only templates, or only what is no template.
    type: bool
attributes:
  check_mode:
    description: Changes nothing.
    support: full
  diff_mode:
    description: Changes nothing.
    support: N/A
"""
