#!/usr/bin/python
# Copyright (c) The autovibe authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: checkpoint_info
short_description: The tree of a virtual machine's checkpoints
version_added: 0.2.0
author: The autovibe authors (@autovibe)
description:
  - Lists the snapshots of a VM, the templates that were promoted from them, and what was cloned from those - the tree,
    as a flat list in which each checkpoint names its parent and its children. A parent always stands before its
    children.
  - Of a template, itself and what was cloned from it.
options:
  vm_id:
    description: VM id of the machine, or of a template.
    type: int
  machine_name:
    description: Name of the machine, when neither O(vm_id) nor O(identity) finds it.
    type: str
  name:
    description: Only the checkpoints with this name.
    type: str
  below:
    description:
      - Look for templates and linked clones, too. Only a VM's configuration tells what it is a clone of, so that of
        every VM is read, four at a time.
      - On LVM-thin it does not tell either, as a clone stands by itself there; such clones are missing.
    type: bool
    default: true
  sizes:
    description: Ask for sizes, too. One more call for each template and storage.
    type: bool
    default: false
extends_documentation_fragment:
  - autovibe.proxmox.connection
  - autovibe.proxmox.connection.identity
attributes:
  check_mode:
    description: Changes nothing.
    support: full
  diff_mode:
    description: Changes nothing.
    support: N/A
seealso:
  - module: autovibe.proxmox.checkpoint
"""

EXAMPLES = r"""
- name: The tree
  autovibe.proxmox.checkpoint_info:
    machine_name: web1
  register: tree

- name: What the machine's present state goes on from
  ansible.builtin.debug:
    msg: "{{ tree.checkpoints | selectattr('current') | map(attribute='name') | first | default('nothing') }}"
"""

RETURN = r"""
machine:
  description: The VM. Of the templates C(bases), it is a linked clone.
  returned: success
  type: dict
  sample: {vm_id: 101, node: pve1, name: web1, template: false, bases: [100]}
checkpoints:
  description: The checkpoints, parents first, older before newer.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: Its id in this tree, C(<vm_id>@<name>) for a snapshot and the VM id for a template.
      type: str
      sample: 101@before-upgrade
    parent:
      description: Id of what it goes on from or was made of; null at the root.
      type: str
    children:
      description: Ids of what goes on from it or was made of it.
      type: list
      elements: str
    name:
      description: Its name.
      type: str
      sample: before-upgrade
    vm_id:
      description: VM id of its carrier.
      type: int
      sample: 101
    node:
      description: Name of the node.
      type: str
    carrier:
      description: V(snapshot) or V(template).
      type: str
    created_at:
      description: When it was made, UTC; null when it is not known.
      type: str
      sample: "2026-01-31T12:00:00+00:00"
    ram:
      description: Whether the RAM was saved.
      type: bool
    description:
      description: Its description.
      type: str
    current:
      description: Whether the VM's present state goes on from it.
      type: bool
    whole:
      description: False for a snapshot that is being made or removed, or was broken off.
      type: bool
    size_bytes:
      description:
        - With O(sizes), what a template's own disks occupy, and the saved RAM of a snapshot; null when it is not known.
          Proxmox VE does not tell what a snapshot's disks occupy.
      type: int
clones:
  description:
    - The linked clones that are no templates. They depend on the template with the id C(of), which cannot be removed
      before them.
  returned: success
  type: list
  elements: dict
  sample: [{vm_id: 106, node: pve1, name: branch, status: running, of: "105"}]
error_class:
  description: What kind of error it was, such as V(Forbidden) or V(NotFound).
  returned: failure
  type: str
task_log:
  description: The last lines of the failed Proxmox VE task's log; empty when no task failed.
  returned: failure
  type: list
  elements: str
"""
