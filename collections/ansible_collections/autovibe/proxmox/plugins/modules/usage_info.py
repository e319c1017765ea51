#!/usr/bin/python
# Copyright (c) The autovibe authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: usage_info
short_description: What virtual machines have used
version_added: 0.2.0
author: The autovibe authors (@autovibe)
description:
  - Says for each VM what is allocated to it, times how long (that is what one bills), and beside it what was measured.
  - One call of the API for all VMs of all nodes. Proxmox VE writes what it returns about every ten seconds.
  - All of C(billed) are whole numbers. For GiB hours, divide MiB seconds by 1024 and by 3600.
options:
  since:
    description:
      - Count from this time - ISO 8601, in UTC when it names no zone, or seconds since 1970. Give the time of the last
        reading, or of the VM's creation if that was later.
      - Cores and memory count while the VM runs; a VM that was restarted since then counts from its last start. The
        disk counts all of the time.
      - Without it, all count from the VM's last start, and nothing counts for one that does not run.
    type: str
  group_by:
    description: What to sum up by. With V(tag), a VM counts in each of its tags.
    type: list
    elements: str
    choices: [pool, project, machine_type, node, status, tag]
    default: [pool, project]
extends_documentation_fragment:
  - autovibe.proxmox.connection
  - autovibe.proxmox.fleet
seealso:
  - module: autovibe.proxmox.machine_info
"""

EXAMPLES = r"""
- name: Since their start
  autovibe.proxmox.usage_info:
    tag: autovibe
  register: usage

- name: This month's, by project
  autovibe.proxmox.usage_info:
    since: "{{ now(utc=true).strftime('%Y-%m-01T00:00:00Z') }}"
    group_by: [project]
  register: month
"""

RETURN = r"""
measured_at:
  description: When it was read, UTC.
  returned: success
  type: str
  sample: "2026-01-31T12:00:00+00:00"
since:
  description: O(since) in UTC, or null.
  returned: success
  type: str
usage:
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
    allocated:
      description: What it has.
      type: dict
      contains:
        cores:
          description: Cores of all its sockets.
          type: int
        memory_mib:
          description: Memory in MiB.
          type: int
        disk_mib:
          description: Size of its boot disk in MiB; the list has no other disks.
          type: int
    billed:
      description: What it has, times how long.
      type: dict
      contains:
        running_seconds:
          description: How long it ran.
          type: int
        core_seconds:
          description: Cores times seconds.
          type: int
        memory_mib_seconds:
          description: MiB of memory times seconds.
          type: int
        disk_mib_seconds:
          description: MiB of the boot disk times seconds.
          type: int
    measured:
      description: What it does and has done, whatever was allocated. The four counters begin with its last start.
      type: dict
      contains:
        cpu:
          description: How busy its cores are now, from 0 to 1.
          type: float
        memory_bytes:
          description: Memory that it occupies now, in bytes.
          type: int
        disk_read_bytes:
          description: Bytes read from its disks.
          type: int
        disk_write_bytes:
          description: Bytes written to its disks.
          type: int
        net_in_bytes:
          description: Bytes received.
          type: int
        net_out_bytes:
          description: Bytes sent.
          type: int
total:
  description: Number of C(machines), and the sums of all that is C(billed).
  returned: success
  type: dict
  sample: {machines: 2, running_seconds: 600, core_seconds: 1200, memory_mib_seconds: 614400, disk_mib_seconds: 1228800}
groups:
  description: For each of O(group_by), the same sums for each value; V("") where a VM has none.
  returned: success
  type: dict
  sample: {project: {shop: {machines: 1, running_seconds: 300, core_seconds: 600, memory_mib_seconds: 307200}}}
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
