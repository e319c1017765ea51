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
    C(failed_when), or O(creates) and O(removes).
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
    description: Standard input, at most 64 KiB. With a secret, set C(no_log) for the task.
    type: str
  env:
    description: Environment variables, over those of the guest agent. The guest's C(env) sets them.
    type: dict
    default: {}
  chdir:
    description: Folder in the guest where the program runs.
    type: str
  creates:
    description: A path in the guest. If it exists, nothing is run.
    type: str
  removes:
    description: A path in the guest. If it does not exist, nothing is run.
    type: str
  large_output:
    description:
      - Send the output through files in the guest's C(/tmp), which are removed again.
      - The agent alone loses an output of a few megabytes; with this, up to 16 MiB of each arrive.
    type: bool
    default: false
  exec_timeout:
    description: Seconds after which the program is killed, with all that it has started.
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
    description:
      - Nothing is run in check mode, nobody can tell what a program would do. The task is skipped.
      - With O(creates) or O(removes) it tells whether the program would have been run.
    support: partial
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

- name: Make the database once
  autovibe.proxmox.guest_exec:
    vm_id: 101
    shell: ./setup --database "$NAME"
    chdir: /opt/app
    env:
      NAME: production
    creates: /var/lib/app/production.db
    exec_timeout: 600

- name: A program that reads its input
  autovibe.proxmox.guest_exec:
    vm_id: 101
    argv: [wc, -l]
    stdin: |
      one
      two
  register: counted
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
  description: Whether a part of the output is missing; O(large_output) lets more of it through.
  returned: when the program was run
  type: bool
timed_out:
  description: Whether the program was killed after O(exec_timeout). What it had written until then is returned.
  returned: when the program was run
  type: bool
argv:
  description: What was run, or would have been.
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
