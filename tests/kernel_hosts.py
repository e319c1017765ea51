"""A test host with a kernel of its own: the same Debian as in `hosts`, with Debian's kernel, in QEMU.

What the kernel of the machine that tests lacks (a bridge's name in nftables, VLANs) is there. Without KVM a play takes
some minutes: for the long tests.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import hosts
import pytest
from autovibe.tests.ports import free_port
from autovibe_lab import image

MODULES = "linux-image-cloud-amd64"
PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86", "mke2fs": "e2fsprogs"}
#: As for the lab's guests without KVM (autovibe_lab.qemu_command).
PARAMETERS = "root=/dev/vda rw console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check nokaslr"
QEMU = "qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot -machine q35 -smp 2 -m 1024"
QEMU += " -accel tcg,tb-size=512 -cpu max,la57=off"
NETWORK = """
auto eth0
iface eth0 inet static
    address 10.0.2.15/24
"""


class KernelHost(hosts.Host):
    """Its disk is made of the tree and its own files; its sshd is reached on a port of 127.0.0.1."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.port = free_port()
        # QEMU's own names for network cards depend on the machine's type.
        self._put("etc/systemd/network/10-eth0.link", "[Match]\nDriver=virtio_net\n[Link]\nName=eth0\n")
        # As Proxmox VE has it: else udev may give a bridge another address after it has got its own.
        policy = "usr/lib/systemd/network/99-default.link.d/proxmox-mac-address-policy.conf"
        self._put(policy, "[Link]\nMACAddressPolicy=none\n")
        self._put("etc/network/interfaces", "auto lo\niface lo inet loopback\n" + NETWORK)
        (self._folder / "upper/root/.ssh").chmod(0o700)
        host_key = (self._tree / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
        (self._folder / "ssh/known_hosts").write_text(f"[127.0.0.1]:{self.port} {host_key}")

    def start(self) -> None:
        disk = self._folder / "disk"
        if not disk.exists():
            root, layers = self._folder / "root", f"lowerdir={self._tree},upperdir={self._folder}/upper"
            script = f"mount -t overlay overlay -o {layers},workdir={self._folder}/work {root}"
            script += f" && exec mke2fs -q -t ext4 -d {root} {disk} 2G"
            subprocess.run(["unshare", "--mount", "sh", "-c", script], check=True, capture_output=True)
        kernel = self._folder / "vmlinux"
        if not kernel.exists():
            # Unpacking takes long without KVM.
            kernel.write_bytes(image._uncompressed(next(self._tree.glob("boot/vmlinuz-*"))))
        command = ["setpriv", "--pdeathsig", "KILL", *QEMU.split(), "-kernel", str(kernel)]
        command += ["-initrd", str(next(self._tree.glob("boot/initrd.img-*")))]
        command += ["-append", PARAMETERS, "-serial", f"file:{self._folder}/console"]
        command += ["-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"]
        command += ["-netdev", f"user,id=net,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:{self.port}-10.0.2.15:22"]
        command += ["-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci"]
        (self._folder / "console").touch()
        self._nspawn = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self._until("does not come up", self._is_up, seconds=600)
        self._write_inventory()

    def _is_up(self) -> bool:
        with suppress(subprocess.TimeoutExpired):
            state = self.run("systemctl is-system-running", check=False, timeout=30).stdout.strip()
            return state in ("running", "degraded")
        return False

    def stop(self) -> None:
        if self._nspawn is None:
            return
        with suppress(subprocess.CalledProcessError):
            subprocess.run([*self._ssh("-O", "exit"), "-q"], stderr=subprocess.DEVNULL)
        self._nspawn.kill()
        self._nspawn.wait()
        self._nspawn = None

    def _ssh(self, *options: str) -> list[str]:
        folder = self._folder / "ssh"
        ssh = ["ssh", "-F", "none", "-i", f"{folder}/key", "-p", str(self.port), "-o", "BatchMode=yes"]
        ssh += ["-o", f"UserKnownHostsFile={folder}/known_hosts", "-o", "ConnectTimeout=20", "-o", "LogLevel=ERROR"]
        ssh += ["-o", "ControlMaster=auto", "-o", f"ControlPath={folder}/c", "-o", "ControlPersist=120"]
        return [*ssh, *options, "root@127.0.0.1"]

    def command(self, *argv: str) -> list[str]:
        return [*self._ssh(), shlex.join(["env", "-C", "/", *argv])]

    def _write_inventory(self) -> None:
        super()._write_inventory()
        content = json.loads(self.inventory.read_text())
        content["all"]["hosts"][self.name] |= {
            "ansible_host": "127.0.0.1",
            "ansible_port": self.port,
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={self._folder}/ssh/known_hosts"
            " -o StrictHostKeyChecking=yes -F none",
        }
        self.inventory.write_text(json.dumps(content, indent=2))


@contextmanager
def kernel_host(packages: Iterable[str] = (), *, suite: str = "bookworm", **variables: Any) -> Iterator[KernelHost]:
    """A host that runs while the block does. `variables` are its variables in the inventory."""
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if reason := hosts.why_not() or (f"needs apt-get install {' '.join(missing)}" if missing else ""):
        pytest.skip(reason)
    with ExitStack() as stack:
        tree = hosts._tree(suite, sorted({*hosts.BASE, *packages, MODULES}))
        made = KernelHost("pve1", tree, stack.enter_context(hosts._folder()), ["proxmox"], variables)
        stack.callback(made.stop)
        made.start()
        yield made
