# Copyright (c) The autovibe authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

# ruff: noqa: E402 (Ansible wants the documentation before the imports)

DOCUMENTATION = r"""
name: machines
short_description: Virtual machines of Proxmox VE as an inventory
version_added: 0.2.0
author: The autovibe authors (@autovibe)
description:
  - Lists the VMs that the user may see, on all nodes, in one call of the API. What the list does not have (O(config),
    O(addresses)) costs one more call for each VM, O(at_once) at a time.
  - The file's name ends with C(autovibe.yml) or C(autovibe.yaml).
  - Every VM's variables begin with C(proxmox_) - C(vm_id), C(node), C(name), C(status), C(template), C(tags), C(lock),
    C(pool), C(project), C(machine_type), C(cores), C(memory) (MiB), C(disk_bytes), C(uptime), and C(config),
    C(identity) and C(addresses) where they are asked for.
  - A VM's project and type are its tags C(project-<name>) and C(type-<type>).
options:
  plugin:
    description: The name of this plugin.
    type: str
    required: true
    choices: [autovibe.proxmox.machines]
  api_host:
    description: Host name or address of the Proxmox VE API.
    type: str
    required: true
    env:
      - name: PROXMOX_HOST
  api_port:
    description: Port of the Proxmox VE API.
    type: int
    default: 8006
    env:
      - name: PROXMOX_PORT
  api_user:
    description: User, with its realm, such as V(root@pam).
    type: str
    required: true
    env:
      - name: PROXMOX_USER
  api_token_id:
    description: Name of the API token, alone or as V(user@realm!name).
    type: str
    env:
      - name: PROXMOX_TOKEN_ID
  api_token_secret:
    description: Secret of the API token. May be a template.
    type: str
    env:
      - name: PROXMOX_TOKEN_SECRET
  api_token_secret_file:
    description: File that holds the secret of the API token.
    type: path
    env:
      - name: PROXMOX_TOKEN_SECRET_FILE
  api_password:
    description: Password of the user, when there is no token. May be a template.
    type: str
    env:
      - name: PROXMOX_PASSWORD
  validate_certs:
    description: Whether to verify the TLS certificate.
    type: bool
    default: true
    env:
      - name: PROXMOX_VALIDATE_CERTS
  ca_path:
    description: File with the CA certificate to verify with, such as a copy of the node's C(/etc/pve/pve-root-ca.pem).
    type: path
    env:
      - name: PROXMOX_CA_PATH
  node:
    description: Only VMs on this node.
    type: str
  pool:
    description: Only VMs of this resource pool.
    type: str
  project:
    description: Only VMs of this project.
    type: str
  machine_type:
    description: Only VMs of this type.
    type: str
  tags:
    description: Only VMs with all of these tags.
    type: list
    elements: str
    default: []
  status:
    description: Only VMs with this status.
    type: str
    choices: [running, stopped]
  templates:
    description: Templates, too; they are in the group C(templates).
    type: bool
    default: false
  filters:
    description: Jinja2 conditions; only VMs for which all of them are true are hosts.
    type: list
    elements: str
    default: []
  config:
    description: The configuration and identity of each VM, too; one more call for each.
    type: bool
    default: false
  addresses:
    description:
      - The addresses of each running VM as its guest agent tells them, too; one more call for each.
      - None where no agent answers, or where the user may not ask it (VM.Monitor, from Proxmox VE 9 on
        VM.GuestAgent.Audit).
    type: bool
    default: false
  at_once:
    description: How many of these calls are made at the same time.
    type: int
    default: 4
  default_groups:
    description:
      - Make the groups C(project_<name>), C(type_<type>), C(status_<status>), C(node_<name>), C(pool_<name>) and
        C(templates).
    type: bool
    default: true
  group_prefix:
    description: Put this before the names of these groups.
    type: str
    default: ""
extends_documentation_fragment:
  - ansible.builtin.constructed
  - ansible.builtin.inventory_cache
notes:
  - A VM whose name another one has, too, is a host by the name of C(<name>-<vm_id>); one without a name, C(vm-<vm_id>).
requirements:
  - proxmoxer >= 2.0
  - requests
"""

EXAMPLES = r"""
# lab.autovibe.yml: all that runs, in groups by project, type, node, pool
plugin: autovibe.proxmox.machines
api_host: pve.example.net
api_user: me@pve
api_token_id: ansible
api_token_secret_file: ~/.pve-token
ca_path: pve-root-ca.pem
status: running

---
# shop.autovibe.yml: one project, reached by the addresses that their agents tell, with a cache
plugin: autovibe.proxmox.machines
api_host: pve.example.net
api_user: me@pve
api_token_id: ansible
api_token_secret_file: ~/.pve-token
project: shop
addresses: true
compose:
  ansible_host: proxmox_addresses | first | default(omit)
keyed_groups:
  - key: proxmox_tags
    prefix: tag
groups:
  big: proxmox_memory >= 8192
cache: true
cache_plugin: ansible.builtin.jsonfile
cache_connection: ~/.cache/inventory
"""

import os
from collections import Counter
from typing import Any

from ansible.errors import AnsibleError, AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve import fleet
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.client import USABLE, Client, Endpoint
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.errors import PveError, SettingsError

#: Group → the variable that names it.
GROUPS = {"project": "project", "type": "machine_type", "status": "status", "node": "node", "pool": "pool"}


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    NAME = "autovibe.proxmox.machines"

    def verify_file(self, path: str) -> bool:
        return super().verify_file(path) and path.endswith(("autovibe.yml", "autovibe.yaml"))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        super().parse(inventory, loader, path, cache)
        if not USABLE:
            raise AnsibleParserError("The Python packages proxmoxer and requests are missing: pip install them.")
        self._read_config_data(path)
        for machine in self._cached(path, cache):
            self._add(machine)

    def _cached(self, path: str, cache: bool) -> list[dict[str, Any]]:
        self.load_cache_plugin()
        key = self.get_cache_key(path)
        use = cache and self.get_option("cache")
        if use and key in self._cache:
            return self._named(self._cache[key])
        try:
            found = self._fetched()
        except PveError as error:
            raise AnsibleParserError(error.message) from error
        if self.get_option("cache"):
            self._cache[key] = found
        return self._named(found)

    def _fetched(self) -> list[dict[str, Any]]:
        """What Proxmox VE has, as plain data."""
        client = Client(self._endpoint())
        try:
            found = fleet.machines(client, self._filter())
            if self.get_option("config"):
                found = fleet.with_config(client, found, self.get_option("at_once"))
            if self.get_option("addresses"):
                running = [machine for machine in found if machine["status"] == "running"]
                told = fleet.each(running, lambda one: fleet.addresses(client, one), self.get_option("at_once"))
                for machine in found:
                    machine["addresses"] = []
                for machine, addresses in zip(running, told, strict=True):
                    machine["addresses"] = addresses
        finally:
            client.close()
        return found

    def _filter(self) -> Any:
        given = {key: self.get_option(key) for key in ("pool", "project", "machine_type", "node", "status")}
        templates = None if self.get_option("templates") else False
        return fleet.Filter(tags=tuple(self.get_option("tags")), templates=templates, **given)

    def _endpoint(self) -> Endpoint:
        verify, ca_path = self.get_option("validate_certs"), self.get_option("ca_path")
        if ca_path and verify and not os.path.exists(ca_path):
            raise SettingsError(f"ca_path: there is no file {ca_path}; copy the node's /etc/pve/pve-root-ca.pem there.")
        return Endpoint(
            host=self._text("api_host"),
            port=self.get_option("api_port"),
            user=self._text("api_user"),
            token_id=self._text("api_token_id"),
            token_secret=self._text("api_token_secret") or self._secret(),
            password=self._text("api_password"),
            verify=verify,
            ca_path=ca_path,
        )

    def _text(self, option: str) -> str | None:
        value = self.get_option(option)
        return None if value is None else str(self.templar.template(value))

    def _secret(self) -> str | None:
        path = self.get_option("api_token_secret_file")
        if not path:
            return None
        found = self.loader.path_dwim(path)
        try:
            with open(found, encoding="utf-8") as file:
                return file.read().strip()
        except OSError as error:
            raise SettingsError(
                f"api_token_secret_file: {found}: {error.strerror}; write this file first, or name another one."
            ) from error

    def _named(self, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same machines with `host`, their unique name here."""
        names = Counter(machine["name"] for machine in found)
        for machine in found:
            name, vmid = machine["name"], machine["vm_id"]
            machine["host"] = f"vm-{vmid}" if not name else f"{name}-{vmid}" if names[name] > 1 else name
        return found

    def _add(self, machine: dict[str, Any]) -> None:
        host = machine["host"]
        variables = {f"proxmox_{key}": value for key, value in machine.items() if key != "host"}
        strict = self.get_option("strict")
        if not all(self._is_true(condition, variables, host, strict) for condition in self.get_option("filters")):
            return
        self.inventory.add_host(host)
        for name, value in variables.items():
            self.inventory.set_variable(host, name, value)
        if self.get_option("default_groups"):
            for group, variable in GROUPS.items():
                if machine[variable]:
                    self._add_to(f"{group}_{machine[variable]}", host)
            if machine["template"]:
                self._add_to("templates", host)
        self._set_composite_vars(self.get_option("compose"), variables, host, strict=strict)
        self._add_host_to_composed_groups(self.get_option("groups"), variables, host, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, host, strict=strict)

    def _is_true(self, condition: str, variables: dict[str, Any], host: str, strict: bool) -> bool:
        try:
            return bool(self._compose(condition, variables))
        except AnsibleError as error:
            if strict:
                raise AnsibleParserError(f"filters: '{condition}' for host {host}: {error}") from error
            return False

    def _add_to(self, group: str, host: str) -> None:
        name = self._sanitize_group_name(self.get_option("group_prefix") + group)
        self.inventory.add_host(host, group=self.inventory.add_group(name))
