"""The guest's initial RAM disk: busybox, a handful of modules and a script, as an uncompressed cpio archive."""

from __future__ import annotations

import stat
from pathlib import Path

#: Debian's kernel has these as modules. In the order in which they are loaded: virtio and its devices, then what reads
#: the cloud-init drive, then the power button. From here and not from the disk: kernel and disk may differ in version.
MODULES = (
    *("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci"),
    *("virtio_blk", "virtio_console", "failover", "net_failover", "virtio_net"),
    *("cdrom", "isofs", "evdev", "button"),
)


def build(root: Path, script: Path) -> bytes:
    """The archive, from a Debian root folder with kernel and busybox. Modules that are built in are left out."""
    found = {file.stem.replace("-", "_"): file for file in (root / "usr/lib/modules").rglob("*.ko")}
    modules = [name for name in MODULES if name in found]
    archive = bytearray()
    for folder in ("bin", "dev", "modules", "proc", "root"):
        archive += _entry(folder, stat.S_IFDIR | 0o755)
    archive += _entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    archive += _entry("bin/busybox", stat.S_IFREG | 0o755, _busybox(root).read_bytes())
    archive += _entry("init", stat.S_IFREG | 0o755, script.read_bytes())
    for name in modules:
        archive += _entry(f"modules/{name}.ko", stat.S_IFREG | 0o644, found[name].read_bytes())
    archive += _entry("modules/order", stat.S_IFREG | 0o644, "".join(f"{name}\n" for name in modules).encode())
    archive += _entry("TRAILER!!!", 0)
    return bytes(archive)


def _busybox(root: Path) -> Path:
    return next(path for path in (root / "usr/bin/busybox", root / "bin/busybox") if path.exists())


def _entry(name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    """One file in cpio's `newc` form: 13 numbers of 8 hexadecimal digits, name, content, each padded to 4 bytes."""
    encoded = name.encode() + b"\0"
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + encoded
    return head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)
