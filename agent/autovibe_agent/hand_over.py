"""Leaves the workspace with the hub at the end of the work, as one compressed archive, sent while it is packed."""

import hashlib
import os
import secrets
import subprocess
import threading
from pathlib import Path

from autovibe_agent.hub import Hub
from autovibe_agent.paths import User

LIMIT_BYTES = 512 << 20
PART_BYTES = 4 << 20
NAME = "workspace.tar.gz"


class TooLarge(Exception):
    """The workspace is larger than the hub keeps."""


def hand_over(hub: Hub, workspace: Path, names: list[str], user: User, scratch: Path) -> None:
    """Sends these files of the workspace, and waits for a hub that is away.

    TooLarge, HubRefused, or OSError: the hub has none of them.
    """
    archive = scratch / NAME
    archive.unlink(missing_ok=True)
    packing = Packing(workspace, names, user, archive)
    packing.start()
    # The archive's hash is known at its end only.
    upload = secrets.token_hex(32)
    try:
        size = _send(hub, f"/agent/v1/files/{upload}/parts", archive, packing)
        kept = {"kind": "workspace", "name": NAME, "sha256": packing.sha256, "size": size, "upload": upload}
        hub.persist("POST", "/agent/v1/files", kept)
    finally:
        packing.stop()
        archive.unlink(missing_ok=True)


def _send(hub: Hub, path: str, archive: Path, packing: "Packing") -> int:
    """Sends the archive in parts, as it grows, and returns its size once it is whole and with the hub."""
    offset = 0
    while True:
        # In this order: what there is of it after its end is all.
        is_whole = packing.wait(0)
        size = archive.stat().st_size if archive.exists() else 0
        if is_whole and offset >= size:
            return size
        if not is_whole and size - offset < PART_BYTES:
            packing.wait(0.05)
            continue
        with archive.open("rb") as file:
            # The hub says how much it has: more than we think when an answer of it was lost.
            file.seek(offset)
            offset = int(hub.persist("POST", f"{path}?offset={offset}", file.read(PART_BYTES))["size"])


class Packing(threading.Thread):
    """Packs the archive beside its sending."""

    def __init__(self, *of: object):
        super().__init__(daemon=True)
        self.sha256 = ""
        self._of = of
        self._error: Exception | None = None
        self._stopping = threading.Event()

    def run(self) -> None:
        try:
            self.sha256, _ = pack(*self._of, stopping=self._stopping)
        except Exception as error:  # raised where it is waited for
            self._error = error

    def wait(self, seconds: float) -> bool:
        """Whether the archive is whole, which is waited for a little; raises what it has failed by."""
        self.join(seconds)
        if self._error is not None:
            raise self._error
        return not self.is_alive()

    def stop(self) -> None:
        """Ends it; nothing is written any more when this returns."""
        self._stopping.set()
        self.join()


def pack(
    workspace: Path,
    names: list[str],
    user: User,
    archive: Path,
    limit: int = LIMIT_BYTES,
    stopping: threading.Event | None = None,
) -> tuple[str, int]:
    """Writes the archive; returns its SHA-256 and size. The user packs it: what the user may not read stays out.

    TooLarge; OSError also when it is told to stop.
    """
    command = ["tar", "--create", "--use-compress-program=gzip -1", "--null", "--no-recursion", "--files-from=-"]
    as_user = {"user": user.uid, "group": user.gid, "extra_groups": []} if os.geteuid() == 0 else {}
    digest, size = hashlib.sha256(), 0
    listed = archive.with_suffix(".list")
    try:
        listed.write_bytes(b"".join(b"./" + os.fsencode(name) + b"\0" for name in names))
        with listed.open("rb") as wanted, archive.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=workspace, stdin=wanted, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **as_user
            )
            with process:
                while chunk := process.stdout.read(1 << 18):
                    if stopping is not None and stopping.is_set():
                        process.kill()
                        break
                    size += len(chunk)
                    if size > limit:
                        process.kill()
                        raise TooLarge(f"they are larger than {limit >> 20} MiB, packed")
                    digest.update(chunk)
                    file.write(chunk)
    finally:
        listed.unlink(missing_ok=True)
    if process.returncode != 0:
        raise OSError(f"tar ended with {process.returncode}")
    return digest.hexdigest(), size
