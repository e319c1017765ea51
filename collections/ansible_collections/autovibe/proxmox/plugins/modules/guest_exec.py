#!/usr/bin/python
# Copyright (c) The autovibe authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_exec
short_description: Run a program in a guest
version_added: 0.1.0
author: The autovibe authors (@autovibe)
description:
  - Runs a program in a running VM through its guest agent, as root, and waits for its end.
  - Each run is a change, and a program that does not end with exit code 0 is a failure; use C(changed_when) and
    C(failed_when).
options:
  vm_id:
    description: VM id.
    type: int
    required: true
  argv:
    description: Program and arguments. They arrive unchanged, no shell sees them.
    type: list
    elements: str
  shell:
    description: A script for C(/bin/sh -c).
    type: str
  stdin:
    description: Standard input, at most 64 KiB. It is never shown.
    type: str
  exec_timeout:
    description: Seconds after which the program is killed.
    type: int
    default: 60
  wait_agent:
    description: Seconds to wait for the guest agent first.
    type: int
    default: 0
extends_documentation_fragment:
  - autovibe.proxmox.connection
attributes:
  check_mode:
    description: The program is not run in check mode; nobody can tell what it would do.
    support: none
  diff_mode:
    description: There is no diff of a program's run.
    support: none
seealso:
  - module: autovibe.proxmox.guest_file
"""

EXAMPLES = r"""
- name: What is mounted
  autovibe.proxmox.guest_exec:
    vm_id: 101
    argv: [findmnt, --json]
  changed_when: false
"""

RETURN = r"""
rc:
  description: Exit code; null when a signal ended the program.
  returned: when the program was run
  type: int
  sample: 0
signal:
  description: Signal that ended the program; null when it ended by itself.
  returned: when the program was run
  type: int
stdout:
  description: Standard output.
  returned: when the program was run
  type: str
stderr:
  description: Standard error.
  returned: when the program was run
  type: str
truncated:
  description: Whether the agent has left out a part of the output. Large output belongs into a file.
  returned: when the program was run
  type: bool
argv:
  description: What was run.
  returned: always
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
