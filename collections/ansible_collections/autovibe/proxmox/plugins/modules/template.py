#!/usr/bin/python
# Copyright (c) The autovibe authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: template
short_description: A template that machines are cloned from
version_added: 0.1.0
author: The autovibe authors (@autovibe)
description:
  - Makes a VM of a disk image and turns it into a template; or turns a VM that is there into one.
  - A template of a disk image has a version, the hash of everything that it is made of. The same inputs change
    nothing; other inputs make a new template of the same name beside the old one.
options:
  name:
    description: Name of the template, a DNS name.
    type: str
  vm_id:
    description: VM id of a new version. The next free one if not given.
    type: int
  first_vm_id:
    description: VM id of a new version if it is free, as it is for the first one; else the next free one is taken.
    type: int
  disk_source:
    description:
      - Volume that is imported as the disk, such as V(local:import/debian.qcow2).
      - Or a new, empty disk, such as V(local:8), of so many GiB.
    type: str
  image_file:
    description:
      - Disk image where C(ansible-playbook) runs. It is uploaded once, under a name that carries its hash.
      - Needs the privilege C(Datastore.AllocateTemplate) on O(image_storage).
    type: path
  image_url:
    description:
      - URL of a disk image that the node downloads once. Needs O(checksum).
      - Needs the privileges C(Datastore.AllocateTemplate) on O(image_storage) and C(Sys.AccessNetwork) on the node.
    type: str
  image_storage:
    description: Storage where images of O(image_file) and O(image_url) are kept; with the content type C(import).
    type: str
    default: local
  checksum:
    description:
      - Checksum of the image, as V(ALGORITHM:HASH), with sha256 for instance.
      - It is part of the version. If not given, that of O(image_file) is taken, and of O(disk_source) size and time.
    type: str
  customize:
    description:
      - What is done in the guest, through its agent, when it boots for the first time. Part of the version.
      - Then machine id, ssh host keys, logs and cloud-init's state are removed, and the guest is shut down.
      - If a step fails, the next run begins anew.
    type: list
    elements: dict
    suboptions:
      argv:
        description: Program and arguments.
        type: list
        elements: str
      shell:
        description: A script for C(/bin/sh -c).
        type: str
      path:
        description: Path of a file that is put into the guest.
        type: str
      content:
        description: Content of the file.
        type: str
      src:
        description: The file's content, from where C(ansible-playbook) runs.
        type: path
      mode:
        description: Mode of the file, octal; V(0600) if not given.
        type: str
      owner:
        description: Owner of the file, C(user) or C(user:group).
        type: str
      exec_timeout:
        description: Seconds after which the program is killed and the step has failed.
        type: int
        default: 600
  build:
    description:
      - Configuration of the VM until it is sealed, by Proxmox VE's own names, such as a V(net0) on a bridge from which
        packages can be fetched. No part of the version.
    type: dict
    default: {}
  seed:
    description:
      - What cloud-init is told at the first boot, on a CD in place of Proxmox VE's cloud-init drive until the template
        is sealed. A cloud image comes without the guest agent; here it can be installed. No part of the version.
      - The CD is uploaded to O(image_storage), which needs the content type C(iso), and deleted again.
      - Needs the privileges C(VM.Config.CDROM) and C(Datastore.AllocateTemplate), and Python's pycdlib.
    type: dict
    suboptions:
      user_data:
        description: The file C(user-data) of cloud-init's NoCloud.
        type: str
        required: true
      network_config:
        description: The file C(network-config); DHCP on the first NIC if not given.
        type: str
  disk_size:
    description: Size of the boot disk, such as V(20G). It cannot be smaller than the image.
    type: str
  keep:
    description:
      - How many versions of the template are kept, the present one among them; all if not given.
      - One that linked clones are based on always stays. Not so on LVM-thin, where a clone stands by itself.
    type: int
  from_vm_id:
    description: A stopped VM without snapshots that becomes the template.
    type: int
  storage:
    description: Storage of the template's disks.
    type: str
  cloudinit_storage:
    description: Storage of the cloud-init drive. Uses O(storage) if not given.
    type: str
  cores:
    description: Number of cores.
    type: int
    default: 1
  memory:
    description: Memory in MiB.
    type: int
    default: 512
  bridge:
    description: Bridge of the NIC.
    type: str
    default: vmbr1
  options:
    description: More of the VM's configuration, by Proxmox VE's own names. They win over what this module sets.
    type: dict
    default: {}
  inputs:
    description: What else decides the version, such as the checksum of the image.
    type: dict
    default: {}
  installation:
    description: UUID of the installation that owns the template; it stands in its description.
    type: str
  pool:
    description: Resource pool of the template.
    type: str
  tags:
    description: Tags of the template.
    type: list
    elements: str
    default: [autovibe]
extends_documentation_fragment:
  - autovibe.proxmox.connection
  - autovibe.proxmox.connection.diff
seealso:
  - module: autovibe.proxmox.machine
"""

EXAMPLES = r"""
- name: A template of a cloud image in storage local
  autovibe.proxmox.template:
    name: debian
    disk_source: local:import/debian.qcow2
    storage: local
    inputs:
      sha256: "{{ debian_image_sha256 }}"

- name: A cloud image from the web, with two packages more, and the last two versions
  autovibe.proxmox.template:
    name: web
    image_url: https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-genericcloud-amd64.qcow2
    checksum: "sha512:{{ debian_sha512 }}"
    storage: local-lvm
    bridge: vmbr0
    customize:
      - shell: apt-get update && apt-get install --yes nginx git
      - path: /etc/motd
        content: Made by Ansible
        mode: "0644"
    keep: 2

- name: A template of a VM
  autovibe.proxmox.template:
    from_vm_id: 101
"""

RETURN = r"""
template:
  description: The template.
  returned: success
  type: dict
  contains:
    name:
      description: Its name.
      type: str
      sample: debian
    vm_id:
      description: Its VM id; null in check mode when a new one would be taken.
      type: int
      sample: 9000
    node:
      description: Name of the node.
      type: str
      sample: pve1
    inputs:
      description: Its version; null for a template of a VM that is none.
      type: str
      sample: 0a1b2c3d4e5f6071
    removed:
      description: VM ids of the older versions that were removed.
      returned: when O(keep) is given
      type: list
      elements: int
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
