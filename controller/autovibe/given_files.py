"""Files for a machine's workspace out of a tar archive or a git repository, as a spawn takes them.

{"path", "content_base64", "mode"}; {"path", "delete": true} removes. Archives are somebody's: no path leads out of the
workspace, there are no links and devices, and what they grow to is bounded.
"""

from __future__ import annotations

import base64
import os
import resource
import signal
import subprocess
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from autovibe import archives
from autovibe.errors import Invalid

#: Together and unpacked. They travel in the request and in the assignment.
TOTAL_BYTES = 8 * 2**20
FILES = 1000
#: Folders among them.
MEMBERS = 10_000
#: What git may write into one file, for it is somebody's repository: a tree can name itself again and again.
GIT_BYTES = 512 * 2**20
GIT_SECONDS = 120
GIT_PROTOCOLS = "https:http:ssh:git"


def total_of(files: list[dict[str, Any]]) -> int:
    """How many bytes the files have."""
    return sum(len(entry.get("content_base64") or "") * 3 // 4 for entry in files)


def entry(path: str, content: bytes, mode: int = 0o644) -> dict[str, Any]:
    """One file to be written."""
    return {"path": path, "content_base64": base64.b64encode(content).decode(), "mode": format(mode & 0o777, "04o")}


def removal(path: str) -> dict[str, Any]:
    """One file or folder to be deleted."""
    return {"path": safe_path(path), "delete": True}


def from_tar(source: Path | BinaryIO) -> list[dict[str, Any]]:
    """The regular files of a tar archive, packed by gzip, bzip2, xz or not; Invalid when it is not to be trusted."""
    return _read(source)


def _read(source: Path | BinaryIO, *, links_as_text: bool = False) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    try:
        with archives.opened(source, archives.Bounds(TOTAL_BYTES, MEMBERS)) as members:
            for member in members:
                if member.isdir():
                    continue
                if len(found) >= FILES:
                    raise archives.TooMuchInIt()
                path = safe_path(member.name)
                if links_as_text and member.issym():
                    found.append(entry(path, member.linkname.encode(errors="surrogateescape")))
                elif member.isreg():
                    found.append(entry(path, members.content(member).read(), member.mode))
                else:
                    raise Invalid(
                        f"{member.name!r:.200} is a link or a device: archives may have files and folders only"
                    )
    except archives.TooMuchInIt:
        raise archives.TooMuchInIt(
            f"The archive has more than {TOTAL_BYTES // 2**20} MiB, {FILES} files or {MEMBERS} folders in it"
        ) from None
    return found


def from_git(url: str, ref: str | None = None) -> list[dict[str, Any]]:
    """The files of a repository at a branch or tag (default: its HEAD), fetched from here. Links come as text.

    No hook, filter or submodule of it is run; file: and ext: URLs are refused.
    """
    if url.startswith("-") or (ref or "").startswith("-"):
        raise Invalid(f"{url!r} is not a git URL")
    with tempfile.TemporaryDirectory(prefix="autovibe-git-") as scratch:
        clone = ["git", "-c", "core.symlinks=false", "-c", "core.hooksPath=/dev/null", "clone", "--quiet", "--depth=1"]
        clone += [
            "--no-checkout",
            "--no-tags",
            *([f"--branch={ref}"] if ref else []),
            "--",
            url,
            f"{scratch}/repository",
        ]
        _git(clone, scratch)
        tar = Path(scratch) / "files.tar"
        _git(["git", "-C", f"{scratch}/repository", "archive", "--format=tar", f"--output={tar}", "HEAD"], scratch)
        return _read(tar, links_as_text=True)


def safe_path(path: str) -> str:
    """The path below the workspace, without `./`; Invalid when it leads out of it, or is no text."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path:
        raise Invalid(f"The path {path!r:.200} does not stay in the workspace")
    if any("\ud800" <= one <= "\udfff" for one in path):
        raise Invalid(f"The path {path!r:.200} is not UTF-8")
    return str(PurePosixPath(*parts))


def _git(command: list[str], home: str) -> None:
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": home,
        "GIT_ALLOW_PROTOCOL": GIT_PROTOCOLS,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_SSH_COMMAND": "ssh -o BatchMode=yes",
        **({"SSH_AUTH_SOCK": os.environ["SSH_AUTH_SOCK"]} if "SSH_AUTH_SOCK" in os.environ else {}),
    }
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=GIT_SECONDS,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (GIT_BYTES, GIT_BYTES)),
        )
    except FileNotFoundError:
        raise Invalid("git is not installed here", "apt-get install git") from None
    except subprocess.TimeoutExpired:
        raise Invalid(f"git did not end within {GIT_SECONDS} seconds") from None
    if done.returncode == -signal.SIGXFSZ or b"File too large" in done.stderr:
        raise Invalid(f"The repository is larger than {GIT_BYTES // 2**20} MiB at this revision")
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise Invalid(f"git cannot get it: {said[-1] if said else f'exit code {done.returncode}'}")
