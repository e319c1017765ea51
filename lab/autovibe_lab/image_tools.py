"""What the builders of the guest image share: programs, and how they fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Progress = Callable[[str], None]


class ImageError(Exception):
    """The guest image could not be built."""


def find(program: str) -> str | None:
    # A plain user's PATH often lacks the sbin folders.
    return shutil.which(program, path=path())


def path() -> str:
    # npm stands beside Python, whether that folder is in the PATH or not.
    return f"{os.environ.get('PATH', '')}:{Path(sys.executable).parent}:/usr/local/sbin:/usr/sbin:/sbin"


def run(command: list[str], *, input: bytes | None = None, cwd: Path | None = None) -> bytes:
    """A program's output; ImageError with its last words when it fails."""
    environment = os.environ | {"PATH": path(), "LC_ALL": "C.UTF-8"}
    stdin = {"input": input} if input is not None else {"stdin": subprocess.DEVNULL}
    done = subprocess.run(command, capture_output=True, cwd=cwd, env=environment, **stdin)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-3:]
        raise ImageError(f"{command[0]} failed: {' | '.join(said) or f'exit code {done.returncode}'}")
    return done.stdout


def succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0
    except FileNotFoundError:
        return False
