"""The agent that the hub serves to its machines: one zipapp, named by its SHA-256.

Built from the files of the package `autovibe_agent`, which is found and never imported: it runs in the guest, not here.
The same files give the same bytes everywhere.
"""

import hashlib
import importlib.util
import io
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

PACKAGE = "autovibe_agent"
# bootstrap.py is part of the guest image, tests of neither.
LEFT_OUT = {"bootstrap.py"}
EPOCH = (1980, 1, 1, 0, 0, 0)
ENTRY_POINT = f"import sys\nfrom {PACKAGE}.__main__ import main\n\nsys.exit(main())\n"


@dataclass(frozen=True)
class AgentPack:
    """A zipapp and the hex SHA-256 of its bytes."""

    sha256: str
    content: bytes


class AgentNotFound(RuntimeError):
    """The package autovibe_agent is not installed here; install the autovibe distribution."""


def package_dir() -> Path:
    """Folder of the agent's package, found without importing it."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise AgentNotFound(AgentNotFound.__doc__)
    return Path(next(iter(spec.submodule_search_locations)))


def build(folder: Path) -> AgentPack:
    """The zipapp of a package folder: all its modules but tests and the bootstrap."""
    files = {"__main__.py": ENTRY_POINT.encode()}
    for path in folder.rglob("*.py"):
        relative = path.relative_to(folder)
        if "tests" not in relative.parts and relative.as_posix() not in LEFT_OUT:
            files[f"{PACKAGE}/{relative.as_posix()}"] = path.read_bytes()
    buffer = io.BytesIO()
    # Stored, not deflated: a zlib of another version would give other bytes.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, date_time=EPOCH)
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, files[name])
    content = buffer.getvalue()
    return AgentPack(hashlib.sha256(content).hexdigest(), content)


@lru_cache(maxsize=1)
def current() -> AgentPack:
    """The agent as it was when this process first asked; a new version is served after a restart."""
    return build(package_dir())
