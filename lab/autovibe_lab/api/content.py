"""/nodes/N/storage/S/content, upload and download-url: the volumes of a storage, made, described and removed."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import shutil
from pathlib import Path

import aiohttp

from autovibe_lab import contents, disks, wording
from autovibe_lab.api.routes import Call, route
from autovibe_lab.config import parse_size
from autovibe_lab.errors import ApiError, TaskError, invalid
from autovibe_lab.paths import VolumeError
from autovibe_lab.tasks import Task
from autovibe_lab.volumes import virtual_size

CONTENT = "/nodes/{node}/storage/{storage}/content"


@route("GET", CONTENT)
async def content(call: Call) -> object:
    storage = str(call.params["storage"])
    call.node.storages.check(storage)
    known = [volume for node in call.node.cluster.nodes.values() for volume in node.volumes()]
    return [
        entry
        for entry in contents.listing(call.node.storages, storage, known)
        if call.get("content", entry["content"]) == entry["content"]
        # An import image belongs to no guest and is listed for every one.
        and call.get("vmid", entry.get("vmid")) in (entry.get("vmid"), None)
        or ("vmid" in call.params and entry["content"] == "import" and "content" not in call.params)
    ]


@route("POST", CONTENT)
async def allocate(call: Call) -> object:
    """A volume made by hand; a size without a unit is in KiB."""
    storages, storage = call.node.storages, storage_of(call)
    storages.check_images(storage)
    vmid, name, text = call.params["vmid"], str(call.params["filename"]), str(call.params["size"])
    block = storages.config.get(storage).kind.block
    form = call.get("format") or ("qcow2" if name.endswith(".qcow2") else "raw")
    volid = f"{storage}:{name}" if block else f"{storage}:{vmid}/{name}"
    if not block and not name.endswith(f".{form}"):
        raise ApiError(500, f"illegal name '{name}' - should match '*.{form}'")
    path, size = _path(call, volid), parse_size(text if text[-1] in "MG" else f"{text}K")
    if path.exists():
        raise ApiError(500, f"disk image '{wording.node_path(volid)}' already exists")
    if storages.is_null(volid) or form != "qcow2":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(size) if storages.is_null(volid) else "")
    else:
        await disks.create(path, size)
    return volid


def storage_of(call: Call) -> str:
    return str(call.params["storage"])


def volid_of(call: Call) -> str:
    """The volume of the path, with or without its storage."""
    volume, storage = str(call.params["volume"]), storage_of(call)
    return volume if ":" in volume and not volume.startswith("backup/") else f"{storage}:{volume}"


def _path(call: Call, volid: str) -> Path:
    try:
        return call.node.paths.volume(volid)
    except VolumeError as error:
        raise ApiError(500, str(error)) from None


@route("GET", CONTENT + "/{volume*}")
async def volume(call: Call) -> object:
    call.node.storages.check(storage_of(call))
    volid = volid_of(call)
    path = _path(call, volid)
    if not path.exists():
        raise ApiError(500, f"volume_size_info on '{volid}' failed")
    known = contents.listing(call.node.storages, storage_of(call), call.node.volumes())
    entry = next((entry for entry in known if entry["volid"] == volid), {})
    size = dict(call.node.volumes()).get(volid) or entry.get("size") or virtual_size(path)
    found = {"path": str(path), "format": entry.get("format", path.suffix[1:]), "size": size}
    return found | {"used": path.stat().st_blocks * 512} | contents.attributes(path)


@route("PUT", CONTENT + "/{volume*}")
async def describe(call: Call) -> None:
    call.node.storages.check(storage_of(call))
    volid = volid_of(call)
    path = _path(call, volid)
    if not volid.partition(":")[2].startswith("backup/"):
        raise ApiError(500, f"volume '{volid}' is not a backup: only backups have notes and protection")
    if not path.exists():
        raise ApiError(500, f"volume '{volid}' does not exist")
    if "notes" in call.params:
        notes = contents.beside(path, contents.NOTES)
        notes.write_text(str(call.params["notes"])) if call.params["notes"] else notes.unlink(missing_ok=True)
    if "protected" in call.params:
        protect(path, bool(call.params["protected"]))


def protect(archive: Path, protected: bool) -> None:
    mark = contents.beside(archive, contents.PROTECTED)
    mark.touch() if protected else mark.unlink(missing_ok=True)


@route("DELETE", CONTENT + "/{volume*}")
async def delete(call: Call) -> object:
    storages, storage, volid = call.node.storages, storage_of(call), volid_of(call)
    storages.check(storage)
    _path(call, volid)
    name = volid.partition(":")[2]

    async def work(task: Task) -> None:
        if call.node.linked_clones_of(volid):
            raise TaskError(f"base volume '{name}' is still in use by linked clones")
        path = storages.path(volid)
        if contents.beside(path, contents.PROTECTED).exists():
            raise TaskError(f"cannot remove protected volume '{name}' on '{storage}'")
        if not path.exists():
            task.log(f"disk image '{wording.node_path(volid)}' does not exist")
        if name.startswith("backup/"):
            contents.remove(path)
        else:
            storages.delete(volid)
        task.log(f"Removed volume '{volid}'")

    owner = re.search(r"(?:vm|base|qemu|lxc)-(\d+)|(?:^|/)(\d+)/", name)
    return call.task("imgdel", work, id=f"{owner[1] or owner[2]}@{storage}" if owner else f"@{storage}")


# Files from outside -------------------------------------------------------------------------------------------------


def _target(call: Call, filename: str) -> Path:
    """Where the file goes; refuses a name that is none of its kind's, and a storage that does not take the kind."""
    kind, storages = str(call.params["content"]), call.node.storages
    storage = storages.check(storage_of(call))
    if storage.kind.block or storage.type in ("pbs", "esxi"):
        raise ApiError(500, f"can't upload to storage type '{storage.type}'")
    name = re.sub(r"[^-a-zA-Z0-9_.]", "_", re.sub(r"\s", "_", re.split(r"[/\\]", filename)[-1]))
    pattern, folder = contents.EXTENSIONS[kind]
    if not re.fullmatch(pattern, name, re.IGNORECASE):
        raise invalid(filename="invalid filename or wrong extension" if kind == "import" else "wrong file extension")
    if kind not in storage.content:
        raise ApiError(500, f"storage '{storage.id}' does not support '{kind}' content")
    return storages.paths.storage(storage.id) / folder / name


def _verify(call: Call, file: Path, log: object) -> None:
    algorithm = call.get("checksum-algorithm")
    if not algorithm:
        return
    with file.open("rb") as content:
        found = hashlib.file_digest(content, str(algorithm)).hexdigest()
    if found != str(call.params["checksum"]).lower():
        raise TaskError(f"checksum mismatch: got '{found}' != expect '{call.params['checksum']}'")
    log("calculating checksum...OK, checksum verified")


@route("POST", "/nodes/{node}/storage/{storage}/upload")
async def upload(call: Call) -> object:
    if call.upload is None:
        raise invalid(filename="property is missing and it is not optional")
    target = _target(call, call.upload.filename)
    source = call.node.paths.run / f"pveupload-{secrets.token_hex(16)}"
    shown = f"/var/tmp/{source.name}"
    await asyncio.to_thread(_spool, call.upload.file, source)

    async def work(task: Task) -> None:
        try:
            task.log(f"starting file import from: {shown}")
            await asyncio.to_thread(_verify, call, source, task.log)
            task.log(f"target node: {call.node.name}")
            task.log(f"target file: {target}")
            task.log(f"file size is: {source.stat().st_size}")
            task.log(f"command: cp -- {shown} {target}")
            target.parent.mkdir(parents=True, exist_ok=True)
            await asyncio.to_thread(shutil.copyfile, source, target)
            task.log("finished file import successfully")
        finally:
            source.unlink(missing_ok=True)

    return call.task("imgcopy", work, id="")


def _spool(content: object, target: Path) -> None:
    with target.open("wb") as file:
        shutil.copyfileobj(content, file)


@route("POST", "/nodes/{node}/storage/{storage}/download-url")
async def download(call: Call) -> object:
    target, url = _target(call, str(call.params["filename"])), str(call.params["url"])

    async def work(task: Task) -> None:
        task.log(f"downloading {url} to {target}")
        if target.exists():
            if not call.get("checksum-algorithm"):
                raise TaskError(f"refusing to override existing file '{target}'")
            await asyncio.to_thread(_verify, call, target, task.log)
            task.log("OK, got correct file already, no need to download")
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.tmp.{task.pid}")
        try:
            await _fetch(url, part, bool(call.get("verify-certificates", True)))
            await asyncio.to_thread(_verify, call, part, task.log)
            part.rename(target)
        finally:
            part.unlink(missing_ok=True)
        task.log(f"download of '{url}' to '{target}' finished")

    return call.task("download", work, id=target.name)


async def _fetch(url: str, target: Path, verify: bool) -> None:
    try:
        async with aiohttp.ClientSession() as session, session.get(url, ssl=verify) as response:
            if response.status != 200:
                raise TaskError(f"download failed: ERROR {response.status}: {response.reason}.")
            with target.open("wb") as file:
                async for chunk in response.content.iter_chunked(1 << 20):
                    file.write(chunk)
    except aiohttp.ClientError as error:
        raise TaskError(f"download failed: {error}") from None
