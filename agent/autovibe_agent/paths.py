"""Where things lie in a machine. `root` stands for / so that the agent can be tried outside of one."""

import os
import pwd
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """All under `root`. What lies in `run` ends with the boot; what lies in `lib` is on the disk and root's alone."""

    root: Path

    @property
    def run(self) -> Path:
        return self.root / "run/autovibe"

    @property
    def ca(self) -> Path:
        return self.run / "ca.pem"

    @property
    def token(self) -> Path:
        """The machine token, readable by the coding CLI's user."""
        return self.run / "token"

    @property
    def nonce(self) -> Path:
        return self.run / "nonce"

    @property
    def lib(self) -> Path:
        return self.root / "var/lib/autovibe"

    @property
    def state(self) -> Path:
        return self.lib / "state.json"

    @property
    def spool(self) -> Path:
        return self.lib / "spool"

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    @property
    def is_machine(self) -> bool:
        """Whether this is a machine's own root: only there the clock may be set."""
        return str(self.root) == "/"


@dataclass(frozen=True)
class User:
    """The unprivileged user that the coding CLI runs as."""

    name: str
    uid: int
    gid: int
    home: Path

    @classmethod
    def named(cls, name: str, paths: Paths) -> "User":
        """The user of that name; without root's rights only one's own user can be had."""
        entry = pwd.getpwnam(name) if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        home = Path(entry.pw_dir) if paths.is_machine else paths.root / "home" / name
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid, home)


def write_private(path: Path, content: str, owner: User | None = None) -> None:
    """Replaces a 0600 file in one step; it belongs to `owner` before its name shows."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(content)
        if owner is not None and os.geteuid() == 0:
            os.fchown(file.fileno(), owner.uid, owner.gid)
    os.replace(temporary, path)
