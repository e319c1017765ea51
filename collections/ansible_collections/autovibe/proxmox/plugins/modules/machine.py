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
  - Brings one VM to a state - made from its O(source) when it is missing, configured where it differs, then started,
    paused or stopped.
  - All that differs in the configuration is one write call. A larger disk and another pool are calls of their own.
  - May be broken off anywhere and run again. It waits for what is still under way for the VM, then does what is
    missing.
  - The VM is known by O(vm_id), or else by its O(identity), or else by its O(name).
options:
  state:
    description:
      - V(present) leaves the power state as it is; a new VM stays stopped.
      - V(started) also lets a paused or hibernated VM go on.
      - A hibernated VM is a stopped one. Of its configuration nothing can be changed until it goes on.
      - V(paused) keeps the VM in memory, with its processors stopped. A stopped VM is started first.
      - V(absent) removes the VM and its disks; a running one only with O(force), a protected one never.
      - With O(identity), V(absent) also removes volumes with the VM's id that its configuration does not name, as
        broken-off tasks leave them. Without, they stay.
    type: str
    choices: [present, started, stopped, paused, absent]
    default: present
  vm_id:
    description:
      - VM id. A new VM without one takes the next free id.
      - A VM that has this id and another name is renamed; with O(identity) it is not touched unless it is the same.
      - With O(state=absent), one that has another name than O(name) is not touched.
    type: int
  name:
    description: Name of the VM, a DNS name. Where two VMs have it, say which by O(vm_id).
    type: str
  expected_uuid:
    description:
      - SMBIOS uuid that proves which VM is meant. A VM that has another one is not touched.
      - A VM that has it and carries no identity yet gets O(identity), and is known by that from then on. One that
        carries another identity is not touched.
    type: str
  source:
    description:
      - What a missing VM is made from. Needed only then, and not compared later.
      - It may be on another node than O(node), where its disks are on storage that the nodes share.
    type: dict
    suboptions:
      vm_id:
        description: VM id of a template, or of any VM for a full clone.
        type: int
      name:
        description:
          - Name of a template; the newest one of that name is taken.
          - With O(source.snapshot), name of the VM that has it.
        type: str
      snapshot:
        description:
          - Snapshot (checkpoint) of the source. Such a clone is always full. Not every storage can do it - ZFS cannot.
        type: str
      image:
        description:
          - Disk image to import, a volume such as V(local:import/debian.qcow2); a path on the node only as root@pam.
          - V(STORAGE:GIB) is a new, empty disk.
          - The VM gets the disk as scsi0, a cloud-init drive, and what cloud images expect (virtio-scsi-single, agent,
            a serial console); O(options) overrides this.
        type: str
  full:
    description: Copy the disks. A clone of a template is a linked clone otherwise.
    type: bool
    default: false
  storage:
    description: Storage of the new VM's disks. Makes a clone a full one; needed with O(source.image).
    type: str
  pool:
    description: Resource pool. A VM of another pool is moved, which needs Pool.Allocate on both.
    type: str
  description:
    description: Text of the description, after the identity where there is one. Not changed if not given.
    type: str
    aliases: [notes]
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
  disk_size:
    description:
      - Size of the disk that the VM boots from, such as V(20G) or V(512M).
      - A disk only grows; less than it has is an error. The guest grows its file system itself.
    type: str
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
        description: Its VLAN; V(0) for none.
        type: int
      firewall:
        description: Whether the VM's firewall applies to it.
        type: bool
      rate:
        description: Its limit in MB/s; V(0) for none.
        type: float
  ip:
    description: Address in CIDR notation or V(dhcp), for cloud-init.
    type: str
  gateway:
    description: Default gateway, for cloud-init.
    type: str
  ciuser:
    description: User, for cloud-init.
    type: str
  cipassword:
    description:
      - Password of the user, for cloud-init; better use O(sshkeys).
      - Proxmox VE never shows it, so it cannot be compared. See O(update_password).
    type: str
  update_password:
    description:
      - V(on_create) sets the password of a new VM, and of one that has none.
      - V(always) sets it at each run, which always is a change.
    type: str
    choices: [on_create, always]
    default: on_create
  sshkeys:
    description: SSH public keys, one a line, for cloud-init.
    type: str
  nameservers:
    description: Addresses of the DNS servers, for cloud-init.
    type: list
    elements: str
  searchdomain:
    description: DNS search domain, for cloud-init.
    type: str
  smbios:
    description: What the VM's firmware says of it (SMBIOS type 1). What is not given stays, the UUID too.
    type: dict
    suboptions:
      manufacturer:
        description: Manufacturer.
        type: str
      product:
        description: Product.
        type: str
      version:
        description: Version.
        type: str
      serial:
        description: Serial number. A clone inherits its source's.
        type: str
      sku:
        description: SKU.
        type: str
      family:
        description: Family.
        type: str
      uuid:
        description: UUID of the VM.
        type: str
  protection:
    description: Whether the VM and its disks are protected from removal.
    type: bool
  onboot:
    description: Whether the VM is started when the node boots.
    type: bool
  options:
    description:
      - Other options of the VM, named and written as Proxmox VE does, such as C(cpu) or C(balloon). An empty string
        takes one away.
      - Not for new disks; they are refused.
    type: dict
    default: {}
  wait_agent:
    description: Seconds to wait for the guest agent of a started VM. V(0) does not wait, unless there are O(files).
    type: int
    default: 0
  files:
    description:
      - Files to put into the running guest through its agent. Their content is never shown.
      - They are left out, with a warning, where the VM is not running after this.
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
    description: For O(state=stopped), seconds that the guest has to shut down before it is stopped, beside O(timeout).
      V(0) stops at once.
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

- name: A VM made of a cloud image, with a larger disk
  autovibe.proxmox.machine:
    name: db1
    source:
      image: local:import/debian-12.qcow2
    storage: local
    disk_size: 20G
    cores: 4
    memory: 4096
    net:
      bridge: vmbr1
      tag: 20
      rate: 50
    ciuser: admin
    sshkeys: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGnkWVwLx6EGauHikBinrv/HntxNn+s3udanHuNR8yD6 admin@example.net
    ip: 192.168.100.12/24
    gateway: 192.168.100.1
    nameservers: [192.168.100.2]
    onboot: true
    tags: [database]

- name: A copy of a checkpoint, to look into
  autovibe.proxmox.machine:
    name: db1-before-upgrade
    source:
      name: db1
      snapshot: before-upgrade

- name: Take over a VM that was made by hand, known by what its guest reads in /sys/class/dmi/id/product_uuid
  autovibe.proxmox.machine:
    vm_id: 120
    expected_uuid: 4c4c4544-0042-3510-8052-b4c04f443232
    identity:
      installation: 0f8fad5b-d9cb-469f-a165-70867728950e
      machine: 7c9e6679-7425-40de-944b-e07fc1f90ae7
      type: hub

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
      description: V(running), V(paused), V(stopped), or V(absent).
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
      description:
        - Keys whose new value waits for a restart, as Proxmox VE names them; empty when none does.
        - Of a running VM that was changed, also what cloud-init reads when the guest boots.
      type: list
      elements: str
      sample: [memory]
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
