# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all action plugins of this collection share: options, connection, errors, censoring, check mode and diff.

They run in Ansible's own worker process: no module is sent anywhere, so a task costs milliseconds. The imports stand at
the top of the files, because Ansible loads an action plugin once before it forks.
"""

from __future__ import annotations

import abc
import os
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.module_utils.basic import env_fallback
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.parameters import remove_values
from ansible.plugins.action import ActionBase
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.client import USABLE, Client, Endpoint
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.config import Identity
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.errors import PveError, SettingsError

CONNECTION_SPEC: dict[str, dict[str, Any]] = {
    "api_host": {"type": "str", "required": True, "fallback": (env_fallback, ["PROXMOX_HOST"])},
    "api_port": {"type": "int", "default": 8006, "fallback": (env_fallback, ["PROXMOX_PORT"])},
    "api_user": {"type": "str", "required": True, "fallback": (env_fallback, ["PROXMOX_USER"])},
    "api_token_id": {"type": "str", "fallback": (env_fallback, ["PROXMOX_TOKEN_ID"])},
    "api_token_secret": {"type": "str", "no_log": True, "fallback": (env_fallback, ["PROXMOX_TOKEN_SECRET"])},
    "api_token_secret_file": {
        "type": "path",
        "no_log": False,
        "fallback": (env_fallback, ["PROXMOX_TOKEN_SECRET_FILE"]),
    },
    "api_password": {"type": "str", "no_log": True, "fallback": (env_fallback, ["PROXMOX_PASSWORD"])},
    "validate_certs": {"type": "bool", "default": True, "fallback": (env_fallback, ["PROXMOX_VALIDATE_CERTS"])},
    "ca_path": {"type": "path", "fallback": (env_fallback, ["PROXMOX_CA_PATH"])},
    "node": {"type": "str", "fallback": (env_fallback, ["PROXMOX_NODE"])},
    "timeout": {"type": "int", "default": 600},
}

IDENTITY_SPEC: dict[str, Any] = {
    "type": "dict",
    "options": {
        "installation": {"type": "str"},
        "machine": {"type": "str"},
        "operation": {"type": "str"},
        "type": {"type": "str"},
    },
}


class PveAction(ActionBase, abc.ABC):
    """A plugin gives its argument spec and `work`, which returns the task's result."""

    _supports_check_mode = True
    _supports_async = False
    _requires_connection = False

    SPEC: dict[str, dict[str, Any]] = {}
    CONSTRAINTS: dict[str, Any] = {}

    @abc.abstractmethod
    def work(self, client: Client, options: dict[str, Any], check: bool) -> dict[str, Any]:
        """Does the task; `changed` and the facts are returned, errors are raised as PveError."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        if not USABLE:
            raise AnsibleActionFail(
                "The Python packages proxmoxer and requests are missing; install them where ansible-playbook runs: "
                "pip install proxmoxer requests"
            )
        options, hidden = self._options()
        client = None
        try:
            client = self._connect(options, hidden)
            result.update(self.work(client, options, self._task.check_mode))
        except PveError as error:
            result.update(failed=True, msg=error.message, task_log=error.log, error_class=type(error).__name__)
        finally:
            if client is not None:
                client.close()
        if not (self._task.diff or result.get("failed")):
            result.pop("diff", None)
        return remove_values(result, hidden)

    def _options(self) -> tuple[dict[str, Any], set[str]]:
        """The checked options, and the values that must not be shown."""
        validator = ArgumentSpecValidator({**CONNECTION_SPEC, **self.SPEC}, **self.CONSTRAINTS)
        checked = validator.validate(self._task.args)
        hidden = set(checked._no_log_values)
        if checked.error_messages:
            raise AnsibleActionFail(remove_values("; ".join(checked.error_messages), hidden))
        return checked.validated_parameters, hidden

    def _connect(self, options: dict[str, Any], hidden: set[str]) -> Client:
        secret = options["api_token_secret"] or self._secret(options["api_token_secret_file"])
        if secret:
            hidden.add(secret)
        ca_path = options["ca_path"]
        if ca_path and not os.path.exists(ca_path):
            ca_path = self._loader.path_dwim(ca_path)  # as the secret's file, beside the playbook
        if ca_path and options["validate_certs"] and not os.path.exists(ca_path):
            raise SettingsError(f"ca_path: there is no file {ca_path}; copy the node's /etc/pve/pve-root-ca.pem there.")
        return Client(
            Endpoint(
                host=options["api_host"],
                port=options["api_port"],
                user=options["api_user"],
                token_id=options["api_token_id"],
                token_secret=secret,
                password=options["api_password"],
                verify=options["validate_certs"],
                ca_path=ca_path,
            )
        )

    def _secret(self, path: str | None) -> str | None:
        return self.read_file(path, "api_token_secret_file").decode().strip() if path else None

    def read_file(self, path: str, option: str) -> bytes:
        """A file where ansible-playbook runs; relative paths are found as Ansible finds them."""
        found = self._loader.path_dwim(path)
        try:
            with open(found, "rb") as file:
                return file.read()
        except OSError as error:
            raise SettingsError(
                f"{option}: {found}: {error.strerror}; write this file first, or name another one."
            ) from error


def identity(options: dict[str, Any]) -> Identity | None:
    return identity_of(options.get("identity"), "identity")


def identity_of(values: dict[str, str] | None, option: str) -> Identity | None:
    given = Identity.of(**(values or {}))
    if broken := [name for name, value in given.fields if value.split() != [value]]:
        raise SettingsError(f"{option}: {', '.join(broken)} has a space in it; an identity is words of one line.")
    if given.fields and not (given.get("installation") or given.get("machine")):
        raise SettingsError(f"{option}: give machine or installation; an operation alone says of no VM whose it is.")
    return given if given.fields else None


def diff(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {"before": before, "after": after}
