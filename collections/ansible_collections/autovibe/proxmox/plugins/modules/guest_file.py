#!/usr/bin/python
# Copyright (c) The autovibe authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_file
short_description: A file in a guest
version_added: 0.1.0
author: The autovibe authors (@autovibe)
description:
  - Puts a file into a running VM through its guest agent, or removes it. Missing folders are made.
  - Changes nothing when the file has the content, mode and owner that are asked for.
  - The file is written beside its place, where only root can read it, and renamed when it is complete. A symbolic link
    at O(path) is replaced.
options:
  state:
    description: Whether the file is to be there.
    type: str
    choices: [present, absent]
    default: present
  vm_id:
    description: VM id.
    type: int
    required: true
  path:
    description: Absolute path in the guest.
    type: str
    required: true
  content:
    description: Content. A diff shows it; with a secret, set C(no_log) for the task.
    type: str
  src:
    description: File where C(ansible-playbook) runs. A diff shows its content, if it is text.
    type: path
  mode:
    description: Mode, octal, in quotes. If not given, that of the file that is there, or V(0600).
    type: str
  owner:
    description: Owner, C(user) or C(user:group), by name or number. If not given, that of the file that is there.
    type: str
  group:
    description: Group, by name or number.
    type: str
  wait_agent:
    description: Seconds to wait for the guest agent first.
    type: int
    default: 0
extends_documentation_fragment:
  - autovibe.proxmox.connection
  - autovibe.proxmox.connection.diff
seealso:
  - module: autovibe.proxmox.guest_exec
"""

EXAMPLES = r"""
- name: A token that only root may read
  autovibe.proxmox.guest_file:
    vm_id: 101
    path: /etc/app/token
    src: secrets/token
    mode: "0600"
  no_log: true

- name: A service's settings
  autovibe.proxmox.guest_file:
    vm_id: 101
    path: /etc/app/app.conf
    content: |
      workers = 4
    owner: root
    group: adm
    mode: "0640"

- name: No settings of old
  autovibe.proxmox.guest_file:
    vm_id: 101
    path: /etc/app/old.conf
    state: absent
"""

RETURN = r"""
file:
  description: The file, without its content.
  returned: success
  type: dict
  contains:
    path:
      description: Path in the guest.
      type: str
      sample: /etc/app/token
    sha256:
      description: Hash of the content; not of a file that is absent.
      type: str
    size:
      description: Length in bytes; not of a file that is absent.
      type: int
    mode:
      description: Mode, octal, if it was asked for.
      type: str
      sample: "600"
    owner:
      description: Owner, if it was asked for.
      type: str
    group:
      description: Group, if it was asked for.
      type: str
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
