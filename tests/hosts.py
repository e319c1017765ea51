"""Hosts to run roles against: Debian with systemd in a container (systemd-nspawn), made and removed by the test.

::

    with host(packages=["nftables"], groups=["proxmox"]) as h:
        h.run("systemctl is-active ssh")                       # a shell in it, as root; raises when it fails
        h.write("/etc/motd", "hello")
        result = h.playbook("playbooks/network.yml", "--diff", machine_network_profile="open")
        assert result.changed == 0, result.output

A host has its own network with nothing but loopback in it: no address, bridge or rule of the machine is ever touched.
Ansible reaches its sshd through the network namespace. Where packages are installed, `mirror=True` gives its apt a
proxy. What it is made of is built once by mmdebstrap and cached in `~/.cache/autovibe/hosts-<hash>`; each host is an
overlay on that. It ends with the process that made it, also by SIGKILL.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from host_mirror import serve_mirror

REPOSITORY = Path(__file__).parents[1]
BASE = ("ca-certificates", "dbus", "iproute2", "openssh-server", "procps", "python3", "python3-apt", "systemd-sysv")
#: What a machine must have to hold such hosts, and the Debian packages that bring it.
PROGRAMS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "socat": "socat",
    "nsenter": "util-linux",
    "ssh": "openssh-client",
}


@cache
def why_not() -> str:
    """Why this machine can hold no such host; empty when it can."""
    if os.geteuid() != 0:
        return "needs root: a host is a systemd-nspawn container"
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if missing:
        return f"needs apt-get install {' '.join(missing)} (scripts/setup --test does it)"
    tried = subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], capture_output=True)
    return "" if tried.returncode == 0 else "needs mount, network and PID namespaces, which are refused here"


@dataclass
class Play:
    """An ansible-playbook that has ended: its output, and what it did to the host."""

    returncode: int
    output: str
    recap: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        recap = re.search(r"^PLAY RECAP.*\n\S+\s*:(.*)$", self.output, re.MULTILINE)
        if recap:
            self.recap = {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", recap.group(1))}

    @property
    def changed(self) -> int:
        return self.recap["changed"]

    @property
    def changed_tasks(self) -> list[str]:
        """The names of the tasks that changed something, or would have (check mode), in order."""
        names, task = [], ""
        for line in self.output.splitlines():
            if found := re.match(r"(?:TASK|RUNNING HANDLER) \[(.*)\] \*+", line):
                task = found.group(1)
            elif line.startswith("changed: "):
                names.append(task)
        return names


class Host:
    """A running host. `inventory` is a file for ansible-playbook."""

    def __init__(self, name: str, tree: Path, folder: Path, groups: Iterable[str], variables: dict[str, Any]) -> None:
        self.name, self._tree, self._folder = name, tree, folder
        self._nspawn: subprocess.Popen[bytes] | None = None
        self.pid = 0
        self.inventory = folder / "inventory.json"
        self._groups, self._variables = list(groups), variables
        for part in ("upper", "work", "root", "ssh"):
            (folder / part).mkdir()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "ssh/key"], check=True)
        self._put("root/.ssh/authorized_keys", (folder / "ssh/key.pub").read_text(), 0o600)
        self._put("etc/machine-id", f"{secrets.token_hex(16)}\n")
        self._put("etc/hostname", f"{name}\n")
        self._put("etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
        host_key = (tree / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
        (folder / "ssh/known_hosts").write_text(f"{name} {host_key}")

    def _put(self, path: str, content: str, mode: int = 0o644) -> None:
        """A file of the host, written before it starts."""
        file = self._folder / "upper" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        file.chmod(mode)

    # -- power

    def start(self) -> None:
        """Boot, until systemd has started all there is and sshd answers."""
        lower, upper = self._tree, self._folder / "upper"
        # The mount is in a namespace of its own: it goes when the processes go.
        layers = f"lowerdir={lower},upperdir={upper},workdir={self._folder}/work"
        mount = f"mount -t overlay overlay -o {layers} {self._folder}/root"
        nspawn = ["systemd-nspawn", "--quiet", "--boot", f"--directory={self._folder}/root", f"--machine={self.name}"]
        nspawn += ["--register=no", "--private-network", "--resolv-conf=off", "--timezone=off", "--link-journal=no"]
        nspawn += ["--console=pipe", "--capability=CAP_NET_ADMIN,CAP_NET_RAW,CAP_SYS_ADMIN"]
        if not Path("/run/systemd/system").is_dir():
            nspawn.append("--keep-unit")
        with (self._folder / "console").open("ab") as console:
            self._nspawn = subprocess.Popen(
                [
                    "setpriv",
                    "--pdeathsig",
                    "KILL",
                    "unshare",
                    "--mount",
                    "sh",
                    "-c",
                    f'{mount} && exec "$@"',
                    "sh",
                    *nspawn,
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._until("has no init", lambda: _init_of(self._nspawn.pid if self._nspawn else 0))
        self._until("does not come up", self._is_up)
        self._write_inventory()

    def _is_up(self) -> bool:
        state = self.run("systemctl is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded") and self.run("ss -Hltn sport = :22", check=False).stdout != ""

    def stop(self) -> None:
        """Pull the plug."""
        if self._nspawn is None:
            return
        with suppress(ProcessLookupError):
            if self.pid and _init_of(self._nspawn.pid) == self.pid:
                os.kill(self.pid, 9)
            self._nspawn.terminate()
        try:
            self._nspawn.wait(60)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()
        self._nspawn, self.pid = None, 0

    def reboot(self) -> None:
        """Shut down in order and boot again: what was not on disk is gone."""
        self.run("systemctl poweroff", check=False)
        if self._nspawn:
            with suppress(subprocess.TimeoutExpired):
                self._nspawn.wait(60)
        self.stop()
        self.start()

    def _until(self, problem: str, condition: Any, seconds: float = 240) -> Any:
        end, pause = time.monotonic() + seconds, 0.02
        while not (result := condition()):
            ended = self._nspawn is None or self._nspawn.poll() is not None
            if ended or time.monotonic() > end:
                console = (self._folder / "console").read_text(errors="replace")
                raise AssertionError(f"host {self.name} {problem}:\n{console[-3000:]}")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)
        return result

    # -- use

    def command(self, *argv: str) -> list[str]:
        """The command line that runs a program in the host, from outside."""
        namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid"]
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return ["nsenter", f"--target={self.pid}", *namespaces, "env", "-i", path, "HOME=/root", *argv]

    def run(
        self, shell: str, check: bool = True, stdin: str = "", timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        """A shell script in the host, as root."""
        done = subprocess.run(
            self.command("sh", "-c", shell), input=stdin, capture_output=True, text=True, timeout=timeout
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{shell!r} in {self.name} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def popen(self, shell: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command("sh", "-c", shell), text=True, **options)

    def write(self, path: str, content: str, mode: str = "644") -> None:
        self.run(f"mkdir -p $(dirname {path}) && cat >{path} && chmod {mode} {path}", stdin=content)

    def read(self, path: str) -> str:
        return self.run(f"cat {path}").stdout

    def playbook(
        self, playbook: str | Path, *arguments: str, timeout: float = 600, check: bool = True, **extra: Any
    ) -> Play:
        """Run ansible-playbook against the host, with `extra` as its extra variables."""
        done = subprocess.run(
            self.playbook_command(playbook, *arguments, **extra),
            cwd=REPOSITORY, env=self.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=timeout,
        )  # fmt: skip
        play = Play(done.returncode, done.stdout)
        if check and play.returncode != 0:
            raise AssertionError(f"{playbook} ended with {play.returncode}:\n{play.output[-6000:]}")
        return play

    def playbook_command(self, playbook: str | Path, *arguments: str, **extra: Any) -> list[str]:
        command = ["ansible-playbook", "-i", str(self.inventory), str(playbook), *arguments]
        return [*command, "-e", json.dumps(extra)] if extra else command

    def environment(self) -> dict[str, str]:
        """The environment for Ansible: this checkout's, with its own connections."""
        path = f"{REPOSITORY}/.venv/bin:{os.environ.get('PATH', '')}"
        environment = os.environ | {"PATH": path, "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self._folder / "ssh")}
        return environment | {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg")}

    def _write_inventory(self) -> None:
        ssh = [f"-o UserKnownHostsFile={self._folder}/ssh/known_hosts", "-o StrictHostKeyChecking=yes"]
        ssh += [f'-o ProxyCommand="nsenter --target={self.pid} --net socat - TCP:127.0.0.1:22"', "-F none"]
        variables = {
            "ansible_host": self.name,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self._folder / "ssh/key"),
            "ansible_ssh_common_args": " ".join(ssh),
            "ansible_ssh_pipelining": True,
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        groups = {group: {"hosts": {self.name: {}}} for group in self._groups}
        hosts = {self.name: variables | self._variables}
        self.inventory.write_text(json.dumps({"all": {"hosts": hosts, "children": groups}}, indent=2))


@contextmanager
def host(
    packages: Iterable[str] = (),
    *,
    suite: str = "bookworm",
    name: str = "pve1",
    groups: Iterable[str] = ("proxmox",),
    mirror: bool = False,
    **variables: Any,
) -> Iterator[Host]:
    """A host that runs while the block does. `variables` are its variables in the inventory."""
    if reason := why_not():
        pytest.skip(reason)
    with ExitStack() as stack:
        tree = _tree(suite, sorted({*BASE, *packages}))
        folder = stack.enter_context(_folder())
        made = Host(name, tree, folder, groups, variables)
        stack.callback(made.stop)
        made.start()
        if mirror:
            proxy = stack.enter_context(serve_mirror(made.pid))
            made.write("/etc/apt/apt.conf.d/99-mirror", f'Acquire::http::Proxy "{proxy}";\n')
        yield made


def _init_of(pid: int) -> int:
    """PID 1 of the container that a systemd-nspawn holds, as seen from here; 0 when there is none yet."""
    todo = [pid]
    while todo:
        process = todo.pop()
        with suppress(OSError):
            status = Path(f"/proc/{process}/status").read_text()
            levels = re.search(r"^NSpid:(.*)$", status, re.MULTILINE)
            if process != pid and levels and levels.group(1).split()[-1] == "1":
                return process
            todo += [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return 0


# -- the cache


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autovibe"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _locked(file: Path, wait: bool = True) -> Iterator[bool]:
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def _tree(suite: str, packages: list[str]) -> Path:
    """The files that hosts with these packages are overlays on."""
    options = ["--quiet", "--mode=root", "--variant=minbase", "--format=directory"]
    options += [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("man", "doc", "info", "locale")]
    # The host's network is its own: nothing in it is to wait for one. Its name and id come with each host.
    options.append('--customize-hook=rm -f "$1"/etc/machine-id "$1"/etc/hostname; chroot "$1" systemctl mask '
                   'systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer')  # fmt: skip
    digest = hashlib.sha256(json.dumps([suite, packages, options]).encode()).hexdigest()[:16]
    tree = _cache() / f"hosts-{digest}"
    with _locked(_cache() / "hosts.lock"):
        if tree.is_dir():
            return tree
        part = tree.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        command = ["mmdebstrap", *options, f"--include={','.join(packages)}", suite, str(part)]
        made = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/")
        if made.returncode != 0:
            raise AssertionError(f"mmdebstrap ended with {made.returncode}:\n{made.stderr[-3000:]}")
        part.chmod(0o755)
        part.rename(tree)
    return tree


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder for one host. Those whose process was killed are removed here."""
    runs = _cache() / "hosts-run"
    runs.mkdir(exist_ok=True)
    with ExitStack() as stack:
        # Or another process took one for left that is not locked yet.
        with _locked(_cache() / "hosts-run.lock"):
            _remove_left(runs)
            folder = Path(tempfile.mkdtemp(prefix="h", dir=runs))
            lock = folder.with_suffix(".lock")
            stack.enter_context(_locked(lock))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _remove_left(runs: Path) -> None:
    for lock in runs.glob("*.lock"):
        with suppress(OSError), _locked(lock, wait=False) as free:
            if free:
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)


def _hold(inventory: Path, packages: list[str]) -> None:
    """Keep a host until SIGTERM, with its inventory at a given place: for Molecule, and for looking around by hand."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with host(packages) as held:
        inventory.parent.mkdir(parents=True, exist_ok=True)
        part = inventory.with_suffix(".part")
        content = json.loads(held.inventory.read_text())
        content["all"]["vars"] = {"holder": os.getpid()}
        part.write_text(json.dumps(content, indent=2))
        part.rename(inventory)
        try:
            signal.pause()
        finally:
            inventory.unlink(missing_ok=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: hosts.py INVENTORY [PACKAGE …]: a host until SIGTERM; INVENTORY is written when it is up")
    _hold(Path(sys.argv[1]), sys.argv[2:])
