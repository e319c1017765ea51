"""The lines of qemu-img and of Proxmox in a task's log about a volume, and the paths that they name.

Paths are a node's, not the lab's: what a client reads in a log is what it would read there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from autovibe_lab.paths import BLOCK

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
#: Beside the memory, twice, what Proxmox gives the file that a guest's RAM is saved to.
STATE_EXTRA = 500 << 20
#: How much of a copy `qemu-img convert -p` reports at a time.
COPY_STEP = 8 << 20


def node_path(volid: str) -> str:
    """Where the volume's file would be on a node."""
    storage, _, name = volid.partition(":")
    if BLOCK.fullmatch(name):
        return f"/dev/{storage}/{name.split('/')[-1]}"
    folder = "/var/lib/vz" if storage == "local" else f"/var/lib/vz/{storage}"
    return f"{folder}/images/{'/'.join(name.split('/')[-2:])}"


def kind(volid: str) -> str:
    """`qcow2`, `raw`: the format by the volume's name."""
    return "raw" if BLOCK.fullmatch(volid.partition(":")[2]) else volid.rpartition(".")[2]


def formatting(volid: str, size: int, backing: str | None = None) -> str:
    """What qemu-img says of a new image; `backing` is the base volume of a linked clone."""
    start = f"Formatting '{node_path(volid)}', fmt={kind(volid)}"
    if kind(volid) != "qcow2":
        return f"{start} size={size} preallocation=off"
    end = "lazy_refcounts=off refcount_bits=16"
    common = f"{start} cluster_size=65536 extended_l2=off"
    if backing is None:
        return f"{common} preallocation=metadata compression_type=zlib size={size} {end}"
    file = f"backing_file=../{_own(backing)} backing_fmt={kind(backing)}"
    return f"{common} compression_type=zlib size={size} {file} {end}"


def linking(base: str, volid: str) -> str:
    """What Proxmox says of a linked clone's volume before qemu-img makes it."""
    name, vmid = re.search(r"([^/:]+)$", volid)[1], re.search(r"vm-(\d+)-", volid)[1]
    return f"clone {base.partition(':')[2]}: images, {name}, {vmid} to {name} (base=../{_own(base)})"


def state_size(memory: int) -> int:
    """Bytes of the file that so many bytes of RAM are saved to."""
    return 2 * memory + STATE_EXTRA


def bytes_text(size: float, digits: int = 1) -> str:
    """`0.0 B`, `128.0 MiB`, `1.2 GiB`."""
    unit = 0
    while size >= 1024 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.{digits}f} {UNITS[unit]}"


def transferred(done: int, size: int) -> str:
    percent = 100 * done / size if size else 100.0
    return f"transferred {bytes_text(done)} of {bytes_text(size)} ({percent:.2f}%)"


def copied(size: int) -> Iterator[int]:
    """How many bytes are there at each report of a copy."""
    yield from range(0, size, COPY_STEP)
    yield size
    yield size


def convert(source: str, target: str, bwlimit: int | None) -> str:
    """The command line that copies a stopped guest's disk; `bwlimit` in KiB/s."""
    rate = f"-r {bwlimit}K " if bwlimit else ""
    paths = f"{node_path(source)} zeroinit:{node_path(target)}"
    return f"/usr/bin/qemu-img convert -p -n {rate}-f {kind(source)} -O {kind(target)} {paths}"


def _own(volid: str) -> str:
    return "/".join(volid.partition(":")[2].split("/")[-2:])
