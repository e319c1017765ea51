"""A stand-in for a distribution's cloud image: Debian with systemd, cloud-init, netplan and sshd, and its SHA256SUMS.

As on a real one there is no guest agent in it, no SSH host key, no machine id, and cloud-init sets it up. Its disk is
one file system without a boot loader: the lab's guests start with the lab's kernel. Made once by mmdebstrap, as root,
and cached in `~/.cache/autovibe/cloud-<hash>`.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from autovibe_lab import image as lab_image

NAME = "debian-12-standin-amd64.img"
SUITE = "bookworm"
PACKAGES = (
    *("ca-certificates", "cloud-init", "dbus", "iproute2", "less", "netplan.io", "openssh-server", "procps", "python3"),
    *("systemd-resolved", "systemd-sysv", "udev"),
)
OPTIONS = [
    *("--quiet", "--variant=minbase", "--format=tar", "--mode=root"),
    *(f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("man", "doc", "info", "locale")),
    # Nothing on the lab's network answers these; getty has no console.
    '--customize-hook=chroot "$1" systemctl mask systemd-networkd-wait-online.service apt-daily.timer '
    "apt-daily-upgrade.timer getty@tty1.service e2scrub_reap.service",
    '--customize-hook=chroot "$1" systemctl enable systemd-networkd.service',
    # Without KVM each of cloud-init's modules costs a second: those that count, and no search for clouds.
    "--customize-hook=printf '%s\\n' 'datasource_list: [NoCloud, None]' 'disable_root: true' 'users: [default]' "
    "'cloud_init_modules: [bootcmd, write-files, set_hostname, update_hostname, update_etc_hosts, users-groups, ssh]' "
    "'cloud_config_modules: [runcmd]' 'cloud_final_modules: [scripts-user]' "
    "'system_info: {distro: debian, default_user: {name: debian}, paths: {cloud_dir: /var/lib/cloud/, "
    'templates_dir: /etc/cloud/templates/}}\' >"$1/etc/cloud/cloud.cfg"; rm -f "$1"/etc/cloud/cloud.cfg.d/*',
    '--customize-hook=rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/hostname; : >"$1/etc/machine-id"',
]
SIZE = "3G"


def cloud_image() -> Path:
    """The folder with the image and its SHA256SUMS."""
    made_of = json.dumps([SUITE, PACKAGES, OPTIONS, SIZE])
    cache = lab_image.cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"cloud-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
    with (cache / "cloud.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(prefix=".cloud-", dir=cache) as work:
                _make(Path(work))
                (Path(work) / "done").rename(folder)
    return folder


def _make(work: Path) -> None:
    root, done = work / "root", work / "done"
    root.mkdir()
    done.mkdir()
    command = ["mmdebstrap", *OPTIONS, f"--include={','.join(PACKAGES)}", SUITE, "-"]
    with (work / "root.tar").open("wb") as tar:
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=tar, cwd="/", check=True)
    subprocess.run(["tar", "-C", root, "--numeric-owner", "--exclude=./dev/*", "-xf", work / "root.tar"], check=True)
    _modules(root)
    disk = work / "disk.ext4"
    options = ["-q", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"]
    subprocess.run(["mke2fs", *options, "-d", root, disk, SIZE], check=True)
    subprocess.run(["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", disk, done / NAME], check=True)
    shutil.rmtree(root)
    with (done / NAME).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # As Ubuntu writes them: more files than ours, and a star for binary.
    (done / "SHA256SUMS").write_text(f"{'0' * 64} *another.img\n{digest} *{NAME}\n")


def _modules(root: Path) -> None:
    """The modules of the kernel that the lab's guests start with."""
    newest = max(lab_image.cache_folder().glob("rootfs-*.tar"), key=os.path.getmtime, default=None)
    if newest is None:
        lab_image.build()
        newest = max(lab_image.cache_folder().glob("rootfs-*.tar"), key=os.path.getmtime)
    subprocess.run(["tar", "-C", root, "--numeric-owner", "-xf", newest, "./usr/lib/modules"], check=True)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The URL of a folder's files, over HTTP on loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
