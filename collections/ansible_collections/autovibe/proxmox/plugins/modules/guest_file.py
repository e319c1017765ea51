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
  - Puts a file into a running VM through its guest agent. Missing folders are made.
  - Changes nothing when the file has the content, mode and owner that are asked for.
options:
  vm_id:
    description: VM id.
    type: int
    required: true
  path:
    description: Path in the guest.
    type: str
    required: true
  content:
    description: Content. It is never shown.
    type: str
  src:
    description: File where C(ansible-playbook) runs. Its content is never shown.
    type: path
  mode:
    description: Mode, octal. It stands before the content comes.
    type: str
  owner:
    description: Owner, C(user) or C(user:group).
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
      description: Hash of the content.
      type: str
    size:
      description: Length in bytes.
      type: int
    mode:
      description: Mode, octal, if it was asked for.
      type: str
      sample: "600"
    owner:
      description: Owner, if it was asked for.
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
