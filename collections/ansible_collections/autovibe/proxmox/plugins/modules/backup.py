#!/usr/bin/python
# Copyright (c) The autovibe authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup
short_description: Backups of a virtual machine
version_added: 0.2.0
author: The autovibe authors (@autovibe)
description:
  - Makes backups of a VM on any storage for backups (archives in a directory, NFS, a Proxmox Backup Server), restores
    one as a VM of its own, says whether one is good, removes them.
  - May be broken off anywhere and run again. A backup that is under way is waited for, and a restore is done once.
  - Proxmox VE tells backups by VM id. One of an earlier VM with the same id is told by the SMBIOS uuid and the identity
    in it, and does not do for O(max_age); for O(keep) it counts.
options:
  state:
    description:
      - V(present) - there is a backup of the VM on O(storage) that is not older than O(max_age), with these O(notes)
        and O(protected) if they are given. Then O(keep) says which others stay.
      - V(absent) - the backup O(volume) is gone. A protected one only with O(force).
      - V(restored) - a VM exists that was restored from O(volume), or from the newest backup on O(storage). Its
        description says so; it does not carry the identity of the VM that was backed up.
      - V(verified) - nothing is changed; fails when the backup is not good. On a Proxmox Backup Server that is what its
        last verify job has found. Elsewhere it is only that the archive opens and holds a configuration.
    type: str
    choices: [present, absent, restored, verified]
    default: present
  vm_id:
    description: VM id of the machine.
    type: int
  machine_name:
    description: Name of the machine, when neither O(vm_id) nor O(identity) finds it.
    type: str
  storage:
    description: The storage. Required for O(state=present).
    type: str
  volume:
    description: A backup, such as V(local:backup/vzdump-qemu-101-2026_01_31-12_00_00.vma.zst). Required for
      O(state=absent).
    type: str
  max_age:
    description: For O(state=present), how many seconds old a backup may be. Any backup of this VM does if
      not given; V(0) makes one now.
    type: int
  notes:
    description:
      - Notes of the backup. In a new one, Proxmox VE replaces C({{guestname}}) and the like; there, write plain
        text if it is to stay unchanged.
    type: str
  protected:
    description: Whether the backup may not be removed.
    type: bool
  mode:
    description: How a running VM is backed up.
    type: str
    choices: [snapshot, suspend, stop]
    default: snapshot
  compress:
    description: Compression of an archive; the node's own default if not given.
    type: str
    choices: ["0", gzip, lzo, zstd]
  keep:
    description:
      - For O(state=present), which backups of the VM on this storage stay, by the rules of C(prune-backups) with
        periods in UTC. Protected ones stay and are not counted. All stay if not given.
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
  force:
    description: For O(state=absent), remove a protected backup, too.
    type: bool
    default: false
  restore_vm_id:
    description: For O(state=restored), VM id of the new VM. The next free one if not given; then O(restore_identity) is
      required.
    type: int
  restore_storage:
    description: For O(state=restored), storage of the new VM's disks.
    type: str
  restore_identity:
    description: For O(state=restored), whose VM the new one is.
    type: dict
    suboptions:
      installation:
        description: UUID of the installation.
        type: str
      machine:
        description: UUID of the machine.
        type: str
      operation:
        description: UUID of what is being done to the machine.
        type: str
      type:
        description: What the machine is, such as C(hub).
        type: str
  pool:
    description: For O(state=restored), resource pool of the new VM.
    type: str
  unique:
    description: For O(state=restored), give the new VM other MAC addresses.
    type: bool
    default: true
  start:
    description: For O(state=restored), start the new VM.
    type: bool
    default: false
extends_documentation_fragment:
  - autovibe.proxmox.connection
  - autovibe.proxmox.connection.identity
  - autovibe.proxmox.connection.diff
seealso:
  - module: autovibe.proxmox.checkpoint
"""

EXAMPLES = r"""
- name: A backup that is at most a day old, and those of the last week
  autovibe.proxmox.backup:
    machine_name: web1
    storage: local
    max_age: 86400
    keep:
      last: 1
      daily: 7
  register: made

- name: Is it good?
  autovibe.proxmox.backup:
    volume: "{{ made.backup.volume }}"
    state: verified
  when: made.backup.exists

- name: Try the newest one, as another VM
  autovibe.proxmox.backup:
    machine_name: web1
    storage: local
    state: restored
    restore_vm_id: 901
"""

RETURN = r"""
backup:
  description: The backup; in check mode, as it would be.
  returned: success, but for O(state=restored)
  type: dict
  contains:
    volume:
      description: Its volume id; null in check mode when one would be made.
      type: str
      sample: local:backup/vzdump-qemu-101-2026_01_31-12_00_00.vma.zst
    storage:
      description: Its storage.
      type: str
    vm_id:
      description: VM id of the machine.
      type: int
    created_at:
      description: When it was made, UTC.
      type: str
      sample: "2026-01-31T12:00:00+00:00"
    size_bytes:
      description: Its size; null when it is not known.
      type: int
    format:
      description: Its format.
      type: str
      sample: vma.zst
    notes:
      description: The first line of its notes, or null.
      type: str
    protected:
      description: Whether it may not be removed.
      type: bool
    encrypted:
      description: Whether it is encrypted; known of a Proxmox Backup Server only.
      type: bool
    verification:
      description: What the last verify job has found, V(ok) or V(failed); null when there was none.
      type: str
    exists:
      description: Whether it exists now.
      type: bool
    removed:
      description: Backups that O(keep) did not keep.
      type: list
      elements: str
      returned: for O(state=present)
machine:
  description: The restored VM; in check mode, as it would be.
  returned: for O(state=restored)
  type: dict
  contains:
    vm_id:
      description: VM id; null in check mode when a new one would be taken.
      type: int
    node:
      description: Name of the node.
      type: str
    name:
      description: Name of the VM.
      type: str
    status:
      description: V(running) or V(stopped).
      type: str
error_class:
  description: What kind of error it was, such as V(NotFound) or V(TaskFailed).
  returned: failure
  type: str
task_log:
  description: The last lines of the failed Proxmox VE task's log; empty when no task failed.
  returned: failure
  type: list
  elements: str
"""
