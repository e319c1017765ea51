#!/usr/bin/python
# Copyright (c) The autovibe authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: checkpoint
short_description: Checkpoints of a virtual machine - snapshots, and templates made of them
version_added: 0.1.0
author: The autovibe authors (@autovibe)
description:
  - Takes a snapshot of a VM, rolls the VM back to it, removes it, or makes a template of it.
  - May be broken off anywhere and run again. A snapshot of that name is success; nothing is done twice.
options:
  state:
    description:
      - V(present) - the checkpoint exists on its O(carrier).
      - V(restored) - the VM's disks, configuration and (if it was saved) RAM are as they were. The VM is stopped
        after it, unless its RAM was saved. With an operation in O(identity), the same operation rolls back once only.
      - V(absent) - the snapshot is gone.
      - V(promoted) - a template exists that is a full clone of the snapshot.
    type: str
    choices: [present, restored, absent, promoted]
    default: present
  vm_id:
    description: VM id of the machine.
    type: int
  machine_name:
    description: Name of the machine, when neither O(vm_id) nor O(identity) finds it.
    type: str
  name:
    description: Name of the checkpoint. 2 to 40 characters, a letter first, then letters, digits, C(_) and C(-).
    type: str
    required: true
  description:
    description: Kept with the checkpoint.
    type: str
    default: ""
  ram:
    description: Save the RAM of a running VM, too.
    type: bool
    default: false
  freeze:
    description:
      - Ask the guest agent first, and warn when it does not answer. Proxmox VE freezes the guest's filesystems by
        itself whenever the agent answers and the RAM is not saved.
    type: bool
    default: true
  carrier:
    description:
      - What the checkpoint is. A V(template) is the stopped VM itself, converted; it must have no snapshots.
      - V(auto) is a template when the VM has no snapshots, else a snapshot.
    type: str
    choices: [snapshot, template, auto]
    default: snapshot
  promote_vm_id:
    description: For O(state=promoted), VM id of the template. The next free one if not given.
    type: int
  pool:
    description: For O(state=promoted), resource pool of the template.
    type: str
  tags:
    description: For O(state=promoted), tags of the template. The checkpoint's name is added to them.
    type: list
    elements: str
extends_documentation_fragment:
  - autovibe.proxmox.connection
  - autovibe.proxmox.connection.identity
  - autovibe.proxmox.connection.diff
seealso:
  - module: autovibe.proxmox.machine
"""

EXAMPLES = r"""
- name: Before something risky
  autovibe.proxmox.checkpoint:
    machine_name: web1
    name: before-upgrade

- name: It went wrong
  autovibe.proxmox.checkpoint:
    machine_name: web1
    name: before-upgrade
    state: restored

- name: A template of it, to make linked clones of
  autovibe.proxmox.checkpoint:
    machine_name: web1
    name: before-upgrade
    state: promoted
"""

RETURN = r"""
checkpoint:
  description: The checkpoint.
  returned: success
  type: dict
  contains:
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
      sample: pve1
    carrier:
      description: V(snapshot) or V(template).
      type: str
      sample: snapshot
    size_bytes:
      description: What it occupies; null when Proxmox VE does not tell.
      type: int
    created_at:
      description: When it was made, UTC; null when it is not known.
      type: str
      sample: "2026-01-31T12:00:00+00:00"
    exists:
      description: Whether it exists now.
      type: bool
    ram:
      description: Whether the RAM was saved.
      type: bool
      returned: for snapshots
    frozen:
      description: Whether the guest agent answered, so that the filesystems were frozen.
      type: bool
      returned: when the snapshot was taken
error_class:
  description: What kind of error it was, such as V(IdentityError) or V(TaskFailed).
  returned: failure
  type: str
task_log:
  description: The last lines of the failed Proxmox VE task's log; empty when no task failed.
  returned: failure
  type: list
  elements: str
"""
