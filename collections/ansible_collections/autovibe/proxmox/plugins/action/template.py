# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`autovibe.proxmox.template`: what machines are cloned from. Documented in plugins/modules/template.py."""

from __future__ import annotations

from typing import Any

from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.errors import SettingsError
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.images import Image
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.machines import Machines
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.seed import Seed
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.templates import Inputs, Step, Templates
from ansible_collections.autovibe.proxmox.plugins.plugin_utils.action import Client, PveAction, diff

SOURCES = ("disk_source", "image_file", "image_url", "from_vm_id")
STEPS_SPEC = {
    "type": "list",
    "elements": "dict",
    "options": {
        "argv": {"type": "list", "elements": "str"},
        "shell": {"type": "str"},
        "path": {"type": "str"},
        "content": {"type": "str"},
        "src": {"type": "path"},
        "mode": {"type": "str"},
        "owner": {"type": "str"},
        "exec_timeout": {"type": "int", "default": 600},
    },
    "mutually_exclusive": [("argv", "shell", "path"), ("content", "src")],
    "required_one_of": [("argv", "shell", "path")],
    "required_by": {"content": ("path",), "src": ("path",)},
}


class ActionModule(PveAction):
    SPEC = {
        "name": {"type": "str"},
        "vm_id": {"type": "int"},
        "first_vm_id": {"type": "int"},
        "disk_source": {"type": "str"},
        "image_file": {"type": "path"},
        "image_url": {"type": "str"},
        "image_storage": {"type": "str", "default": "local"},
        "checksum": {"type": "str"},
        "customize": STEPS_SPEC,
        "build": {"type": "dict", "default": {}},
        "seed": {
            "type": "dict",
            "options": {"user_data": {"type": "str", "required": True}, "network_config": {"type": "str"}},
        },
        "disk_size": {"type": "str"},
        "keep": {"type": "int"},
        "from_vm_id": {"type": "int"},
        "storage": {"type": "str"},
        "cloudinit_storage": {"type": "str"},
        "cores": {"type": "int", "default": 1},
        "memory": {"type": "int", "default": 512},
        "bridge": {"type": "str", "default": "vmbr1"},
        "options": {"type": "dict", "default": {}},
        "inputs": {"type": "dict", "default": {}},
        "installation": {"type": "str"},
        "pool": {"type": "str"},
        "tags": {"type": "list", "elements": "str", "default": ["autovibe"]},
    }
    CONSTRAINTS = {
        "mutually_exclusive": [SOURCES, ("vm_id", "first_vm_id")],
        "required_one_of": [SOURCES],
        "required_by": {
            **{key: ("name", "storage") for key in SOURCES if key != "from_vm_id"},
            "seed": ("customize",),
        },
    }

    def work(self, client: Client, options: dict[str, Any], check: bool) -> dict[str, Any]:
        templates = Templates(Machines(client, options["node"], options["timeout"]))
        if options["from_vm_id"]:
            change = templates.convert(options["from_vm_id"], check=check)
        else:
            if options["keep"] is not None and options["keep"] < 1:
                raise SettingsError("keep: at least 1, the version that is wanted now.")
            seed = options["seed"]
            inputs = Inputs(
                image=self._image(options),
                steps=tuple(self._step(step) for step in options["customize"] or []),
                seed=Seed(**seed, storage=options["image_storage"]) if seed else None,
                extra={key: str(value) for key, value in options["inputs"].items()},
                **{
                    key: options[key]
                    for key in (
                        *("name", "storage", "cloudinit_storage", "cores", "memory", "bridge", "options"),
                        *("build", "disk_size"),
                    )
                },
            )
            change = templates.ensure(
                inputs,
                installation=options["installation"],
                vmid=options["vm_id"],
                first_vmid=options["first_vm_id"],
                pool=options["pool"],
                tags=options["tags"],
                keep=options["keep"],
                check=check,
            )
        return {"changed": change.changed, "diff": diff(change.before, change.after), "template": change.facts}

    def _image(self, options: dict[str, Any]) -> Image:
        file = options["image_file"]
        return Image(
            volume=options["disk_source"],
            file=self._loader.path_dwim(file) if file else None,
            url=options["image_url"],
            checksum=options["checksum"],
            storage=options["image_storage"],
        )

    def _step(self, given: dict[str, Any]) -> Step:
        if given["path"]:
            content = (
                self.read_file(given["src"], "customize.src") if given["src"] else (given["content"] or "").encode()
            )
            return Step(path=given["path"], content=content, mode=given["mode"], owner=given["owner"])
        argv = given["argv"] or ["/bin/sh", "-c", given["shell"]]
        return Step(tuple(argv), timeout=given["exec_timeout"])
