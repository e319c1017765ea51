#!/usr/bin/python
# Copyright (c) The autovibe authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: machine_info
short_description: Virtual machines of a node
version_added: 0.1.0
author: The autovibe authors (@autovibe)
description:
  - Lists the VMs of a node that the user may see, as they are now.
options:
  vm_id:
    description: Only the VM with this id.
    type: int
  name:
    description: Only VMs with this name.
    type: str
  tag:
    description: Only VMs with this tag.
    type: str
  config:
    description: The configuration and identity of each, too; one more call for each VM.
    type: bool
    default: false
  snapshots:
    description: The snapshots of each, too, and its configuration.
    type: bool
    default: false
extends_documentation_fragment:
  - autovibe.proxmox.connection
attributes:
  check_mode:
    description: Changes nothing.
    support: full
  diff_mode:
    description: Changes nothing.
    support: N/A
"""

EXAMPLES = r"""
- name: What is there
  autovibe.proxmox.machine_info:
    tag: autovibe
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
    name:
      description: Name of the VM.
      type: str
    status:
      description: V(running) or V(stopped).
      type: str
    template:
      description: Whether it is a template.
      type: bool
    tags:
      description: Its tags.
      type: list
      elements: str
    lock:
      description: The lock that stands on it, or null.
      type: str
    config:
      description: Its configuration.
      type: dict
      returned: with O(config) or O(snapshots)
    identity:
      description: Its identity, or null.
      type: dict
      returned: with O(config) or O(snapshots)
    snapshots:
      description: Its snapshots as Proxmox VE lists them.
      type: list
      elements: dict
      returned: with O(snapshots)
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
