#!/usr/bin/python
# Copyright (c) The autovibe authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: machine_info
short_description: Virtual machines, of one node or of all
version_added: 0.1.0
author: The autovibe authors (@autovibe)
description:
  - Lists the VMs that the user may see, in one call for all nodes.
  - Proxmox VE writes this list about every ten seconds - name and status may be that old, but with O(config) the name
    is as of now. Tags, lock and pool always are.
  - What the list does not have costs one more call for each VM, four at a time.
options:
  identity:
    description:
      - Only the VM with this identity, or those whose identity has these fields. It is in the description, so the
        configuration is read - of one VM where its tag C(id-<machine>) tells which one, else of all that fit.
    type: dict
    suboptions:
      installation:
        description: UUID of the installation.
        type: str
      machine:
        description: UUID of the machine.
        type: str
      operation:
        description: Not looked at.
        type: str
      type:
        description: Not looked at.
        type: str
  config:
    description: The configuration and identity of each, too; one more call for each VM.
    type: bool
    default: false
  snapshots:
    description: The snapshots of each, too, and its configuration; two more calls for each VM.
    type: bool
    default: false
  addresses:
    description:
      - The addresses of each running VM as its guest agent tells them, too; one more call for each.
      - None where no agent answers, or where the user may not ask it (VM.Monitor, from Proxmox VE 9 on
        VM.GuestAgent.Audit).
    type: bool
    default: false
extends_documentation_fragment:
  - autovibe.proxmox.connection
  - autovibe.proxmox.fleet
seealso:
  - module: autovibe.proxmox.checkpoint_info
  - module: autovibe.proxmox.usage_info
"""

EXAMPLES = r"""
- name: What there is
  autovibe.proxmox.machine_info:
    tag: autovibe
  register: everything

- name: A project's running machines, with their addresses
  autovibe.proxmox.machine_info:
    project: shop
    status: running
    addresses: true
  register: fleet
"""

RETURN = r"""
machines:
  description: The VMs, by id.
  returned: success
  type: list
  elements: dict
  contains:
    vm_id:
      description: VM id.
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
      description: V(running), V(stopped), or V(unknown) for a VM of the last seconds.
      type: str
      sample: running
    template:
      description: Whether it is a template.
      type: bool
    tags:
      description: Its tags.
      type: list
      elements: str
      sample: [autovibe, project-shop, type-claude_code]
    pool:
      description: Its resource pool, or null.
      type: str
    project:
      description: What follows C(project-) in its tags, or null.
      type: str
      sample: shop
    machine_type:
      description: What follows C(type-) in its tags, or null.
      type: str
      sample: claude_code
    lock:
      description: The lock that stands on it, or null.
      type: str
    cores:
      description: Cores of all its sockets.
      type: int
    memory:
      description: Memory in MiB.
      type: int
    disk_bytes:
      description: Size of its boot disk in bytes.
      type: int
    uptime:
      description: Seconds since it was started; 0 when it does not run.
      type: int
    config:
      description: Its configuration.
      type: dict
      returned: with O(config) or O(snapshots)
    identity:
      description: Its identity, or null.
      type: dict
      returned: with O(config), O(snapshots) or O(identity)
    snapshots:
      description: Its snapshots as Proxmox VE lists them.
      type: list
      elements: dict
      returned: with O(snapshots)
    addresses:
      description: Its addresses, IPv4 first, without loopback and link-local ones; empty when no agent answers.
      type: list
      elements: str
      returned: with O(addresses)
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
