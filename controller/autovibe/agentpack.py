"""The agent that the hub serves to its machines: one zipapp, named by its SHA-256.

Built from the files of the package `autovibe_agent`, which is found and never imported: it runs in the guest, not here.
The same files give the same bytes everywhere.

An agent type is one module with one subclass of `autovibe_agent.base.CodingAgent`. A package brings one of its own by
an entry point of the group `autovibe.agent_types`, whose name is the type's and whose value is `module:Class`; the pack
then has the module's file too, as `autovibe_agent/<type>.py`. It may import the standard library and `autovibe_agent`.
"""

import hashlib
import importlib.util
import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path

PACKAGE = "autovibe_agent"
GROUP = "autovibe.agent_types"
TYPE_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
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


class BadAgentType(RuntimeError):
    """A package's agent type cannot be packed."""


def package_dir() -> Path:
    """Folder of the agent's package, found without importing it."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise AgentNotFound(AgentNotFound.__doc__)
    return Path(next(iter(spec.submodule_search_locations)))


def types() -> dict[str, str]:
    """The agent types that are installed here: name → the module that has it. Nothing is imported."""
    return {point.name: point.module for point in sorted(entry_points(group=GROUP), key=lambda one: one.name)}


def type_files() -> dict[str, Path]:
    """The module files of the types that other packages bring; BadAgentType when there is none, or its name is bad."""
    return {name: _module_file(name, module) for name, module in types().items() if module.partition(".")[0] != PACKAGE}


def _module_file(name: str, module: str) -> Path:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if not TYPE_NAME.fullmatch(name) or spec is None or not str(spec.origin).endswith(".py"):
        raise BadAgentType(f"agent type {name!r}: there is no file of a module {module!r}, or this is no type's name")
    return Path(spec.origin)


def build(folder: Path, types: Mapping[str, Path] | None = None) -> AgentPack:
    """The zipapp of a package folder: all its modules but tests and the bootstrap, and the files of `types`.

    BadAgentType when a type has the name of one of the agent's own modules.
    """
    files = {"__main__.py": ENTRY_POINT.encode()}
    for path in folder.rglob("*.py"):
        relative = path.relative_to(folder)
        if "tests" not in relative.parts and relative.as_posix() not in LEFT_OUT:
            files[f"{PACKAGE}/{relative.as_posix()}"] = path.read_bytes()
    for name, path in (types or {}).items():
        if f"{PACKAGE}/{name}.py" in files:
            raise BadAgentType(f"agent type {name!r}: the agent has a module of that name")
        files[f"{PACKAGE}/{name}.py"] = path.read_bytes()
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
    return build(package_dir(), type_files())
