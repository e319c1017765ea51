"""A guest without a VM: the real bootstrap and agent as ordinary processes, over a folder that stands for its disk."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from autovibe import agentpack

BOOTSTRAP = agentpack.package_dir() / "bootstrap.py"
IDENTITY = "run/autovibe/identity.json"
USER = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


class LocalGuest:
    """A machine's root folder and the bootstrap that runs over it.

    The folder has to be open to others: as root, the CLI runs as `nobody`.
    """

    def __init__(self, root: Path):
        self.root = root
        for folder in ("run/autovibe", "workspace", "home"):
            (root / folder).mkdir(parents=True)
        root.chmod(0o755)
        if os.geteuid() == 0:
            entry = pwd.getpwnam(USER)
            os.chown(root / "workspace", entry.pw_uid, entry.pw_gid)
        self.user = USER
        self.log = root / "console.log"
        self.process = None

    def start(self):
        with self.log.open("ab") as file:
            argv = [sys.executable, "-I", "-S", BOOTSTRAP, "--root", self.root, "--user", USER]
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        return self

    def write_identity(self, content: str):
        """Puts an identity where the bootstrap waits for it."""
        path = self.root / IDENTITY
        new = path.with_suffix(".new")
        new.write_text(content)
        new.chmod(0o600)
        new.replace(path)

    def identity(self) -> str:
        """The identity that lies there; empty when there is none."""
        path = self.root / IDENTITY
        return path.read_text() if path.exists() else ""

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(90)

    def reboot(self):
        """What stands in memory is gone, what is on the disk stays."""
        self.stop()
        self._forget()
        return self.start()

    def crash(self):
        """The power goes, and it boots again."""
        self.power_off()
        return self.start()

    def power_off(self):
        """The power goes: nothing has a moment to end, and what stands in memory is gone."""
        if self.process is not None:
            # Its end would tell the agent to end, and to ask for a checkpoint.
            self.process.send_signal(signal.SIGSTOP)
        while left := self.processes():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        self._forget()

    def _forget(self):
        shutil.rmtree(self.root / "run/autovibe")
        (self.root / "run/autovibe").mkdir()

    def processes(self, of_cli: bool = False) -> list[int]:
        """The pids of what runs in this guest beside its bootstrap: agent and CLI, or the CLI's alone."""
        mark = f"AUTOVIBE_TOKEN_FILE={self.root}/".encode()
        found = []
        for pid in (int(name) for name in os.listdir("/proc") if name.isdecimal()):
            with contextlib.suppress(OSError):
                is_cli = mark in Path(f"/proc/{pid}/environ").read_bytes()
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if is_cli or (not of_cli and b"--agent-sha256" in words and os.fsencode(self.root) in words):
                    found.append(pid)
        return found

    def agents(self) -> list[int]:
        """The pids of the agents that the bootstrap has started and that live."""
        if self.process is None:
            return []
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in found.split()]

    def says(self, text):
        return text in self.log.read_text()

    @property
    def workspace(self):
        return self.root / "workspace"

    def install(self, cached: Path, name: str):
        """Puts a cached CLI (its program, or a folder laid out as the root is) where the agent looks for it.

        By hard links where it can be: the user that runs it may not enter the cache.
        """
        (self.root / "usr/local/bin").mkdir(parents=True)
        ends = [f"{cached}/.", self.root] if cached.is_dir() else [cached, self.root / "usr/local/bin" / name]
        if subprocess.run(["cp", "-al", *ends], capture_output=True).returncode != 0:
            subprocess.run(["cp", "-a", *ends], check=True)
        return self
