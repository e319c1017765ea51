"""/storage and /nodes/N/storage: which storages there are, and how full."""

from __future__ import annotations

import base64
import json
import re
import secrets

from autovibe_lab import contents
from autovibe_lab.api.routes import Call, route
from autovibe_lab.errors import ApiError, invalid
from autovibe_lab.storages import KINDS, SECRET, Storage

#: Parameters of these calls that are no options of the storage.
CONTROL = ("storage", "type", "delete", "digest")
FLAGS = ("disable", "shared", "mkdir", "create-base-path", "create-subdirs", "sparse", "saferemove", "tagged_only")
FLAGS += ("skip-cert-verification", "fuse", "krbd", "nocow", "nowritecache", "priority")


def _settings(call: Call) -> dict[str, str]:
    found = {name: value for name, value in call.params.items() if name not in CONTROL}
    return {name: str(int(value)) if isinstance(value, bool) else str(value) for name, value in found.items()}


def _configured(storage: Storage, digest: str) -> dict:
    shown = {name: value for name, value in storage.options.items() if name not in SECRET}
    numbers = {name: int(value) for name, value in shown.items() if name in FLAGS}
    return shown | numbers | {"storage": storage.id, "type": storage.type, "digest": digest}


@route("GET", "/storage")
async def configured(call: Call) -> object:
    config = call.node.storages.config
    found = [storage for storage in config.all.values() if call.get("type", storage.type) == storage.type]
    return [_configured(storage, config.digest()) for storage in found]


@route("POST", "/storage")
async def create(call: Call) -> object:
    name, kind = str(call.params["storage"]), str(call.params["type"])
    storages, settings = call.node.storages, _settings(call)
    made = {}
    if settings.get("encryption-key") == "autogen":
        made = {"config": {"encryption-key": _new_key()}}
        settings |= made["config"]
    storages.config.add(name, kind, settings)
    # What all nodes share is in a folder of the first one's.
    base = storages.paths.shared if KINDS[kind].shared or call.get("shared") else storages.paths.state
    (base / "storage" / name).mkdir(parents=True, exist_ok=True)
    return {"storage": name, "type": kind} | made


def _new_key() -> str:
    """What a Proxmox Backup Server's client makes; it is told this once."""
    return json.dumps({"kdf": None, "data": base64.b64encode(secrets.token_bytes(32)).decode()})


@route("GET", "/storage/{storage}")
async def configuration(call: Call) -> object:
    config = call.node.storages.config
    return _configured(config.get(str(call.params["storage"])), config.digest())


@route("PUT", "/storage/{storage}")
async def change(call: Call) -> object:
    config, name = call.node.storages.config, str(call.params["storage"])
    if call.get("digest", config.digest()) != config.digest():
        said = "detected modified configuration - file changed by other user? Try again."
        raise ApiError(500, f"update storage failed: {said}")
    config.change(name, _settings(call), re.findall(r"[^,; ]+", str(call.get("delete", ""))))
    return {"storage": name, "type": config.get(name).type}


@route("DELETE", "/storage/{storage}")
async def delete(call: Call) -> None:
    """Only the configuration: what is on the storage stays there, as with Proxmox."""
    call.node.storages.config.remove(str(call.params["storage"]))


@route("GET", "/nodes/{node}/storage")
async def listing(call: Call) -> object:
    wanted = set(re.findall(r"[^,; ]+", str(call.get("content", ""))))
    storages, found = call.node.storages, []
    for storage in storages.config.all.values():
        if call.get("storage", storage.id) != storage.id or not storage.on(call.node.name):
            continue
        if wanted - set(storage.content) or (call.get("enabled") and not storage.enabled):
            continue
        entry = contents.status(storages, storage.id, call.node.name) | {"storage": storage.id}
        entry["used_fraction"] = entry["used"] / max(entry["total"], 1)
        found.append(entry | (_formats(storage) if call.get("format") else {}))
    return found


def _formats(storage: Storage) -> dict:
    if storage.kind.block:
        return {"formats": {"supported": ["raw"], "default": "raw"}, "select_existing": 0}
    return {"formats": {"supported": ["raw", "qcow2", "vmdk", "subvol"], "default": "raw"}, "select_existing": 0}


@route("GET", "/nodes/{node}/storage/{storage}")
async def index(call: Call) -> object:
    call.node.storages.check(str(call.params["storage"]))
    names = ("content", "upload", "download-url", "file-restore", "prunebackups", "rrd", "rrddata", "status")
    return [{"subdir": name} for name in names]


@route("GET", "/nodes/{node}/storage/{storage}/status")
async def status(call: Call) -> object:
    name = str(call.params["storage"])
    if name not in call.node.storages.config.all:
        raise invalid(storage="No such storage.")
    return contents.status(call.node.storages, name, call.node.name)
