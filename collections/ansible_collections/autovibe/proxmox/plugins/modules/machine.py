#!/usr/bin/python
# Copyright (c) The autovibe authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: machine
short_description: A virtual machine, in its state
version_added: 0.1.0
author: The autovibe authors (@autovibe)
description:
  - Brings one VM to a state - cloned when it is missing, configured where it differs, then started or stopped.
  - May be broken off anywhere and run again. It waits for what is still under way for the VM, then does what is
    missing.
  - The VM is known by O(vm_id), or else by its O(identity), or else by its O(name).
options:
  state:
    description:
      - V(present) leaves the power state as it is; a new VM stays stopped.
      - V(absent) removes the VM and its disks; a running one only with O(force).
    type: str
    choices: [present, started, stopped, absent]
    default: present
  vm_id:
    description: VM id. A new VM without one takes the next free id.
    type: int
  name:
    description: Name of the VM, a DNS name.
    type: str
  source:
    description: What a missing VM is cloned from. Needed only then.
    type: dict
    suboptions:
      vm_id:
        description: VM id of a template, or of any VM for a full clone.
        type: int
      name:
        description: Name of a template; the newest one of that name is taken.
        type: str
      snapshot:
        description: Snapshot of the source. Such a clone is always full.
        type: str
  full:
    description: Copy the disks. A clone of a template is a linked clone otherwise.
    type: bool
    default: false
  storage:
    description: Storage of a full clone's disks.
    type: str
  pool:
    description: Resource pool of a new VM.
    type: str
  notes:
    description: Text of the description after the identity. Not changed if not given.
    type: str
  tags:
    description: All tags of the VM.
    type: list
    elements: str
  cores:
    description: Number of cores.
    type: int
  memory:
    description: Memory in MiB.
    type: int
  net:
    description: The first NIC. What is not given stays as it is.
    type: dict
    suboptions:
      model:
        description: Its model; V(virtio) for a new one.
        type: str
        choices: [virtio, e1000, e1000e, rtl8139, vmxnet3]
      bridge:
        description: Its bridge.
        type: str
      mac:
        description: Its MAC address.
        type: str
      tag:
        description: Its VLAN.
        type: int
      firewall:
        description: Whether the VM's firewall applies to it.
        type: bool
  ip:
    description: Address in CIDR notation or V(dhcp), for cloud-init.
    type: str
  gateway:
    description: Default gateway, for cloud-init.
    type: str
  ciuser:
    description: User, for cloud-init.
    type: str
  sshkeys:
    description: SSH public keys, one a line, for cloud-init.
    type: str
  wait_agent:
    description: Seconds to wait for the guest agent of a started VM. V(0) does not wait, unless there are O(files).
    type: int
    default: 0
  files:
    description: Files to put into the running guest through its agent. Their content is never shown.
    type: list
    elements: dict
    suboptions:
      path:
        description: Path in the guest. Missing folders are made.
        type: str
        required: true
      src:
        description: File where C(ansible-playbook) runs.
        type: path
        required: true
      mode:
        description: Mode in the guest, octal.
        type: str
        default: "0600"
      owner:
        description: Owner in the guest, C(user) or C(user:group).
        type: str
  shutdown_timeout:
    description: For O(state=stopped), seconds that the guest has to shut down before it is stopped. V(0) stops at once.
    type: int
    default: 0
  force:
    description: For O(state=absent), remove a running VM, too.
    type: bool
    default: false
extends_documentation_fragment:
  - autovibe.proxmox.connection
  - autovibe.proxmox.connection.identity
  - autovibe.proxmox.connection.diff
seealso:
  - module: autovibe.proxmox.checkpoint
  - module: autovibe.proxmox.template
"""

EXAMPLES = r"""
- name: A linked clone of a template, started
  autovibe.proxmox.machine:
    name: web1
    source:
      name: debian
    cores: 2
    memory: 2048
    ip: 192.168.100.11/24
    state: started

- name: Shut it down within half a minute, or stop it
  autovibe.proxmox.machine:
    name: web1
    state: stopped
    shutdown_timeout: 30

- name: Remove it
  autovibe.proxmox.machine:
    name: web1
    state: absent
"""

RETURN = r"""
machine:
  description: The VM as it is now; in check mode, as it would be.
  returned: success
  type: dict
  contains:
    vm_id:
      description: VM id; null in check mode when a new one would be taken.
      type: int
      sample: 101
    node:
      description: Name of the node.
      type: str
      sample: pve1
    name:
      description: Name of the VM.
      type: str
      sample: web1
    status:
      description: V(running), V(stopped), or V(absent).
      type: str
      sample: running
    mac:
      description: MAC address of the first NIC.
      type: str
      sample: "BC:24:11:00:00:11"
    ip:
      description: Address that cloud-init sets.
      type: str
      sample: 192.168.100.11/24
    created:
      description: Whether this task has made the VM.
      type: bool
    template:
      description: Whether the VM is a template.
      type: bool
    restart_required:
      description: Keys whose new value waits for a restart.
      type: list
      elements: str
      returned: when a running VM was changed
error_class:
  description: What kind of error it was, such as V(IdentityError), V(TaskFailed) or V(HalfMadeClone).
  returned: failure
  type: str
task_log:
  description: The last lines of the failed Proxmox VE task's log; empty when no task failed.
  returned: failure
  type: list
  elements: str
"""
