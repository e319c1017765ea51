# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options and attributes that all modules of this collection have."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  api_host:
    description:
      - Host name or address of the Proxmox VE API.
      - Uses the E(PROXMOX_HOST) environment variable if not specified.
    type: str
    required: true
  api_port:
    description:
      - Port of the Proxmox VE API.
      - Uses the E(PROXMOX_PORT) environment variable if not specified.
    type: int
    default: 8006
  api_user:
    description:
      - User, with its realm, such as V(root@pam).
      - Uses the E(PROXMOX_USER) environment variable if not specified.
    type: str
    required: true
  api_token_id:
    description:
      - Name of the API token, alone or as V(user@realm!name).
      - Uses the E(PROXMOX_TOKEN_ID) environment variable if not specified.
    type: str
  api_token_secret:
    description:
      - Secret of the API token.
      - Uses the E(PROXMOX_TOKEN_SECRET) environment variable if not specified.
    type: str
  api_token_secret_file:
    description:
      - File that holds the secret of the API token, where C(ansible-playbook) runs.
      - Uses the E(PROXMOX_TOKEN_SECRET_FILE) environment variable if not specified.
    type: path
  api_password:
    description:
      - Password of the user, when there is no token.
      - Uses the E(PROXMOX_PASSWORD) environment variable if not specified.
    type: str
  validate_certs:
    description:
      - Whether to verify the TLS certificate.
      - Uses the E(PROXMOX_VALIDATE_CERTS) environment variable if not specified.
    type: bool
    default: true
  ca_path:
    description:
      - File with the CA certificate to verify with, such as a copy of the node's C(/etc/pve/pve-root-ca.pem).
      - Uses the E(PROXMOX_CA_PATH) environment variable if not specified.
    type: path
  node:
    description:
      - Name of the node. If not specified, it is the node where the VM is or, for a new VM, where its source is. In a
        cluster with one node it is never needed.
      - Uses the E(PROXMOX_NODE) environment variable if not specified.
    type: str
  timeout:
    description:
      - Seconds that a task on Proxmox VE may take.
    type: int
    default: 600
requirements:
  - proxmoxer >= 2.0
  - requests
notes:
  - Runs where C(ansible-playbook) runs, whatever the connection of the host is. A task's C(environment) is not seen.
attributes:
  action_group:
    description: Use C(group/autovibe.proxmox.all) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - autovibe.proxmox.all
  action:
    description: Has an action plugin; no module is sent to a host.
    support: full
  async:
    description: Supports being used with the C(async) keyword.
    support: none
"""
    IDENTITY = r"""
options:
  identity:
    description:
      - Whose VM this is. It stands in the first line of the VM's description, as C(autovibe installation=...
        machine=...).
      - A VM with O(vm_id) that carries another identity, or none, is not touched.
    type: dict
    suboptions:
      installation:
        description: UUID of the installation.
        type: str
      machine:
        description: UUID of the machine.
        type: str
      operation:
        description: UUID of what is being done to the machine. It is recorded, and need not match.
        type: str
      type:
        description: What the machine is, such as C(hub). It is recorded, and need not match.
        type: str
"""
    DIFF = r"""
options: {}
attributes:
  check_mode:
    description: Can run in check_mode and return changed status prediction without modifying target.
    support: full
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in check_mode), when in diff mode.
    support: full
"""
