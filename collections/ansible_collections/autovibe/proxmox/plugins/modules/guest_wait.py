#!/usr/bin/python
# Copyright (c) The autovibe authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_wait
short_description: Wait until a guest is ready
version_added: 0.2.0
author: The autovibe authors (@autovibe)
description:
  - Waits until the guest agent of a running VM answers, and until all else that is asked for has come
    true in the guest.
  - It asks at once and then less and less often, and never longer than O(wait_timeout).
options:
  vm_id:
    description: VM id.
    type: int
    required: true
  cloud_init:
    description: Wait until cloud-init has ended in this boot. If it has ended with errors, this is a failure.
    type: bool
    default: false
  port:
    description: Wait until something in the guest listens on this TCP port.
    type: int
  path:
    description: Wait until this path exists in the guest.
    type: str
  argv:
    description: Wait until this program, run again and again, ends with exit code 0.
    type: list
    elements: str
  shell:
    description: Wait until this script for C(/bin/sh -c), run again and again, ends with exit code 0.
    type: str
  address:
    description: Wait until the guest has an address, other than of its loopback or link-local ones.
    type: str
    choices: [any, ipv4, ipv6]
  wait_timeout:
    description: Seconds after which the wait fails; the message names what is missing.
    type: int
    default: 300
extends_documentation_fragment:
  - autovibe.proxmox.connection
attributes:
  check_mode:
    description: In check mode it looks once and does not fail; RV(guest.ready) and RV(guest.missing) tell.
    support: partial
  diff_mode:
    description: It changes nothing.
    support: none
seealso:
  - module: autovibe.proxmox.guest_exec
"""

EXAMPLES = r"""
- name: Until the web server of a new machine can be used
  autovibe.proxmox.guest_wait:
    vm_id: 101
    cloud_init: true
    port: 443
    wait_timeout: 600

- name: Until it has an address
  autovibe.proxmox.guest_wait:
    vm_id: 101
    address: ipv4
  register: ready
"""

RETURN = r"""
guest:
  description: What the wait ended with.
  returned: success
  type: dict
  contains:
    ready:
      description: Whether all is there; false only in check mode.
      type: bool
      sample: true
    missing:
      description: What is not there yet.
      type: list
      elements: str
    addresses:
      description: The guest's addresses, if O(address) is asked for.
      type: list
      elements: str
      sample: [192.168.100.17]
    seconds:
      description: How long it took.
      type: float
      sample: 1.7
error_class:
  description: What kind of error it was, such as V(NotReady) or V(AgentNotAnswering).
  returned: failure
  type: str
task_log:
  description: The last lines of the failed Proxmox VE task's log; empty when no task failed.
  returned: failure
  type: list
  elements: str
"""
