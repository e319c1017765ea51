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
  - Takes a snapshot of a VM, rolls the VM back to it, removes it, makes a template of it, or thins out old ones.
  - May be broken off anywhere and run again. A snapshot of that name is success; nothing is done twice.
  - What a storage cannot do (a snapshot of a raw disk on a directory, a copy of a ZFS snapshot, a rollback past a newer
    ZFS snapshot) is refused before anything is done.
options:
  state:
    description:
      - V(present) - the checkpoint exists on its O(carrier), with this O(description) if one is given.
      - V(restored) - the VM's disks, configuration and (if it was saved) RAM are as they were. The VM is stopped
        after it, unless its RAM was saved or O(start) is set. With an operation in O(identity), the same operation
        rolls back once only; without one, each run rolls back.
      - V(absent) - the snapshot is gone; Proxmox VE makes its children those of its parent, and they are named. With
        O(carrier=template), the template that is this checkpoint is gone; that is refused while linked clones of it
        exist. (On LVM-thin they stand by themselves, and it is not refused.)
      - V(promoted) - a template exists that is a full clone of the snapshot.
      - V(retained) - only those snapshots are left that O(keep) keeps. Check mode shows which ones.
    type: str
    choices: [present, restored, absent, promoted, retained]
    default: present
  vm_id:
    description: VM id of the machine.
    type: int
  machine_name:
    description: Name of the machine, when neither O(vm_id) nor O(identity) finds it.
    type: str
  expected_uuid:
    description: SMBIOS uuid of the machine. A VM that has another one is not touched.
    type: str
  name:
    description:
      - Name of the checkpoint. 2 to 40 characters, a letter first, then letters, digits, C(_) and C(-).
      - Required but for O(state=retained).
    type: str
  description:
    description: Kept with the checkpoint. Not changed if not given.
    type: str
  ram:
    description: Save the RAM of a running VM, too.
    type: bool
    default: false
  freeze:
    description:
      - Warn when the guest's filesystems were not frozen, because its agent did not answer. Proxmox VE freezes them by
        itself whenever the agent answers and the RAM is not saved.
    type: bool
    default: true
  freeze_timeout:
    description:
      - Seconds within which a running guest's filesystems must be frozen. A snapshot that is held up longer is called
        off, and the task fails. Proxmox VE itself would wait for an hour.
    type: int
    default: 60
  carrier:
    description:
      - What the checkpoint is. A V(template) is the stopped VM itself, converted; it must have no snapshots.
      - V(auto) is a template when the VM has no snapshots, else a snapshot.
    type: str
    choices: [snapshot, template, auto]
    default: snapshot
  start:
    description: For O(state=restored), start the VM after it.
    type: bool
    default: false
  promote_vm_id:
    description: For O(state=promoted), VM id of the template. The next free one if not given.
    type: int
  pool:
    description: For O(state=promoted), resource pool of the template.
    type: str
  storage:
    description: For O(state=promoted), storage of the template's disks.
    type: str
  tags:
    description: For O(state=promoted), tags of the template. The checkpoint's name is added to them.
    type: list
    elements: str
  keep:
    description:
      - For O(state=retained), which snapshots are kept. The counts work as Proxmox VE's C(prune-backups) - each rule
        goes through the snapshots, newest first, and keeps the newest of each of its periods (UTC); a period in which
        an earlier rule has kept one does not count.
      - Always kept are the snapshot that the VM's present state goes on from, one that several others go on from, one
        that a template was promoted from, and one that is not whole.
      - At least one of the counts must be more than 0.
    type: dict
    suboptions:
      last:
        description: How many of the newest.
        type: int
        default: 0
      hourly:
        description: How many hours.
        type: int
        default: 0
      daily:
        description: How many days.
        type: int
        default: 0
      weekly:
        description: How many weeks (ISO weeks, from Monday).
        type: int
        default: 0
      monthly:
        description: How many months.
        type: int
        default: 0
      yearly:
        description: How many years.
        type: int
        default: 0
      milestones:
        description:
          - Shell patterns. A snapshot whose name or any word of whose description matches one is kept, and not counted.
        type: list
        elements: str
        default: []
      among:
        description: Shell patterns of names. Other snapshots are left alone.
        type: list
        elements: str
        default: ["*"]
      parents:
        description: Keep every snapshot that another one goes on from, too. Then only the tips of the tree go.
        type: bool
        default: false
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
    description: "milestone: the last good one"

- name: It went wrong
  autovibe.proxmox.checkpoint:
    machine_name: web1
    name: before-upgrade
    state: restored
    start: true

- name: A template of it, to make linked clones of
  autovibe.proxmox.checkpoint:
    machine_name: web1
    name: before-upgrade
    state: promoted

- name: Thin out the automatic ones
  autovibe.proxmox.checkpoint:
    machine_name: web1
    state: retained
    keep:
      last: 3
      daily: 7
      weekly: 4
      milestones: ["milestone:"]
"""

RETURN = r"""
checkpoint:
  description: The checkpoint; in check mode, as it would be.
  returned: success, but for O(state=retained)
  type: dict
  contains:
    name:
      description: Its name.
      type: str
      sample: before-upgrade
    vm_id:
      description: VM id of its carrier; null in check mode when a new one would be taken.
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
      description: What it occupies; null, as Proxmox VE does not tell.
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
    description:
      description: Its description.
      type: str
      returned: for snapshots
    parent:
      description: The snapshot that it goes on from, or null. For O(state=absent), whose children its own now are.
      type: str
      returned: for snapshots
    children:
      description: The snapshots that go on from it. For O(state=absent), those that did.
      type: list
      elements: str
      returned: for snapshots
    current:
      description: Whether the VM's present state goes on from it.
      type: bool
      returned: for snapshots
    frozen:
      description: Whether the guest agent answered, so that the filesystems were frozen.
      type: bool
      returned: when the snapshot was taken
    status:
      description: Whether the VM is V(running) or V(stopped) now.
      type: str
      returned: for O(state=restored)
retention:
  description: What was kept and what was removed; in check mode, what would be.
  returned: for O(state=retained)
  type: dict
  contains:
    vm_id:
      description: VM id of the machine.
      type: int
    node:
      description: Name of the node.
      type: str
    kept:
      description:
        - Each snapshot that is kept, oldest first, with its C(name) and the C(reason) - the rule (such as V(daily)), or
          V(milestone), V(current), V(fork), V(parent), V(promoted), V(not among these) or V(not whole).
      type: list
      elements: dict
      sample: [{name: monday, reason: weekly}]
    removed:
      description: Names of those that are not, oldest first.
      type: list
      elements: str
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
