"""Whether guests can use KVM: found out by booting the guests' own kernel with it.

A `/dev/kvm` that is there proves nothing: one kind of nested KVM runs the firmware and dies in Debian's kernel.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from autovibe_lab import image

KVM_DEVICE = Path("/dev/kvm")
#: With KVM the boot takes well under a second.
LIMIT_SECONDS = 5
#: What the initrd writes to the serial port once the kernel has come that far.
MARK = b"autovibe-probe-ok"


def probe(built: Path, cache: Path | None = None) -> str:
    """`kvm` or `tcg`, by booting the image in folder `built`. The answer is kept for this image, QEMU and host boot."""
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return "tcg"
    known = (cache or image.cache_folder()) / "accel.json"
    key = _key(built)
    try:
        found = json.loads(known.read_text())
        if found["key"] == key and found["accel"] in ("kvm", "tcg"):
            return found["accel"]
    except (OSError, ValueError, KeyError):
        pass
    accel = "kvm" if boots_with_kvm(built / "vmlinux", built / "initrd") else "tcg"
    known.parent.mkdir(parents=True, exist_ok=True)
    part = known.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps({"key": key, "accel": accel}))
    part.rename(known)
    return accel


def boots_with_kvm(kernel: Path, initrd: Path, accel: str = "kvm", limit: float = LIMIT_SECONDS) -> bool:
    """Whether that kernel gets as far as its first program."""
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    command += ["-machine", "q35", "-accel", accel, "-cpu", "host" if accel == "kvm" else "max", "-m", "256"]
    command += ["-kernel", str(kernel), "-initrd", str(initrd), "-serial", "stdio"]
    command += ["-append", "console=ttyS0 quiet panic=-1 AUTOVIBE_PROBE=1"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit)
    except (subprocess.TimeoutExpired, FileNotFoundError):
        return False
    return MARK in done.stdout


def _key(built: Path) -> str:
    program = Path(shutil.which("qemu-system-x86_64") or "/nonexistent")
    version = f"{program.resolve()} {program.stat().st_mtime_ns}" if program.exists() else ""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return " ".join((built.name, version, os.uname().release, boot))
