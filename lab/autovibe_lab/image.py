"""The guest image: Debian, git, Python, the guest agent, Claude Code, and our init and bootstrap.

Made once and cached in `$XDG_CACHE_HOME/autovibe` by the hash of all that goes into it::

    rootfs-<hash>.tar           Debian with its packages; changes seldom
    claude-<version>            Claude Code's program; so for other coding CLIs (`coding_clis`)
    image-<hash>/disk.qcow2     the disk: one ext4 file system, read only
                 vmlinux        its kernel, uncompressed, because unpacking takes long without KVM
                 initrd         loads the kernel's modules and mounts the disk

Two flavours: the default one has Claude Code; `agents` has qwen-code and aider besides, a disk three times as large
that takes minutes to build. They share kernel and initrd.

Needs no root, no mounts and no loop device, only a way to install packages as root of their own: root, user
namespaces, or `sudo`.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from autovibe_lab import coding_clis, initramfs
from autovibe_lab.image_tools import ImageError, Progress, find, run, succeeds
from autovibe_lab.paths import LabPaths

SUITE = "bookworm"
PACKAGES = (
    "linux-image-cloud-amd64",
    "busybox-static",
    "ca-certificates",
    "git",
    "iproute2",
    "kmod",
    "less",
    "procps",
    "python3",
    "qemu-guest-agent",
)
#: What the disk offers to the guest; on the host it takes what is used.
DISK_SIZE = "8G"
#: What a build may take on the host, at its height.
NEEDED_BYTES = 4 * 1024**3
#: Programs that a build runs, and the Debian packages that have them.
PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "qemu-img": "qemu-utils",
    "lz4": "lz4",
    "npm": "npm",
}
#: What a flavour's disk has beside Claude Code.
FLAVOURS: dict[str, tuple] = {"default": (), "agents": (coding_clis.qwen, coding_clis.aider)}
SOURCES = Path(__file__).parent / "image"
#: The user that agents work as.
HOOK = 'chroot "$1" useradd --create-home --uid 1000 --shell /bin/bash agent'


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autovibe"


def folder(cache: Path | None = None, flavour: str = "default") -> Path:
    """Where the image of this version stands, or will."""
    return (cache or cache_folder()) / f"image-{_image_key(flavour)}"


def build(progress: Progress = lambda text: None, cache: Path | None = None, flavour: str = "default") -> Path:
    """Build the image unless it is there already; returns its folder. Of two builders one waits. Raises ImageError."""
    target = folder(cache, flavour)
    if target.is_dir():
        return target
    cache = target.parent
    with _building(cache, progress) as work:
        if not target.is_dir():
            _preflight(cache)
            with ThreadPoolExecutor() as pool:
                rootfs = pool.submit(_rootfs, cache, work, progress)
                claude = pool.submit(coding_clis.claude, cache, work, progress)
                more = [pool.submit(fetch, cache, work, progress) for fetch in FLAVOURS[flavour]]
            files = _files(claude.result()) | {
                name: entry for part in more for name, entry in coding_clis.files_of(part.result()).items()
            }
            progress("making the disk")
            _assemble(rootfs.result(), files, work)
            (work / "image").rename(target)
    return target


def coding_cli(name: str, progress: Progress = lambda text: None, cache: Path | None = None) -> Path:
    """One CLI of an image (claude: a program; qwen, aider: a folder), fetched unless it is in the cache already."""
    fetch = {"claude": coding_clis.claude, "qwen": coding_clis.qwen, "aider": coding_clis.aider}[name]
    cache = cache or cache_folder()
    with _building(cache, progress) as work:
        return fetch(cache, work, progress)


@contextmanager
def _building(cache: Path, progress: Progress) -> Iterator[Path]:
    """A folder to work in, which goes; of two builders one waits."""
    cache.mkdir(parents=True, exist_ok=True)
    with _lock(cache / "build.lock", progress):
        work = Path(tempfile.mkdtemp(prefix=".build-", dir=cache))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def install(image: Path, lab: LabPaths, name: str = "autovibe-guest") -> None:
    """Put the image of folder `image` into a lab's `import` folder, as `<name>.{qcow2,vmlinux,initrd}`.

    The lab boots all guests with the kernel and initrd of `autovibe-guest`. The names are links to files that carry
    the image's hash: disks made from an older image keep theirs.
    """
    lab.imports.mkdir(parents=True, exist_ok=True)
    for source, kind in (("disk.qcow2", "qcow2"), ("vmlinux", "vmlinux"), ("initrd", "initrd")):
        target = f"{name}-{image.name.removeprefix('image-')}.{kind}"
        file, link = lab.imports / target, lab.imports / f"{name}.{kind}"
        if not file.exists():
            _link_or_copy(image / source, file)
        if not link.is_symlink() or os.readlink(link) != target:
            new = lab.imports / f".{link.name}.new"
            new.unlink(missing_ok=True)
            new.symlink_to(target)
            new.rename(link)


def prune(cache: Path | None = None) -> list[Path]:
    """Delete all cached files but those of this version; labs keep what they have installed. Returns what went."""
    cache = cache or cache_folder()
    if not cache.is_dir():
        return []
    keep = {f"rootfs-{_rootfs_key()}.tar", *coding_clis.names()}
    keep |= {f"image-{_image_key(flavour)}" for flavour in FLAVOURS}
    gone = []
    with _lock(cache / "build.lock", lambda text: None):
        for pattern in ("image-*", "rootfs-*.tar", "claude-*", "qwen-*", "aider-*", ".build-*"):
            for path in cache.glob(pattern):
                if path.name not in keep:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                    gone.append(path)
    return gone


# -- what the image is made of


def _rootfs_key() -> str:
    return _digest(SUITE, *PACKAGES, HOOK, *_mmdebstrap_options())


def _image_key(flavour: str = "default") -> str:
    files = [*sorted(SOURCES.iterdir()), Path(__file__), Path(initramfs.__file__), _bootstrap()]
    more = [Path(coding_clis.__file__).read_bytes()] if FLAVOURS[flavour] else []
    return _digest(
        _rootfs_key(), coding_clis.CLAUDE_VERSION, *more, *(file.read_bytes() for file in files if file.is_file())
    )


def _digest(*inputs: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in inputs:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:16]


def _bootstrap() -> Path:
    """The agent's bootstrap: found, never imported."""
    spec = importlib.util.find_spec("autovibe_agent")
    if spec is None or not spec.submodule_search_locations:
        raise ImageError("the package autovibe_agent is not installed")
    return Path(spec.submodule_search_locations[0]) / "bootstrap.py"


# -- Debian


def _rootfs(cache: Path, work: Path, progress: Progress) -> Path:
    target = cache / f"rootfs-{_rootfs_key()}.tar"
    if target.exists():
        return target
    progress("installing Debian's packages (about a minute)")
    part, log = work / "rootfs.tar", work / "mmdebstrap.log"
    command = [*_as_root(), "mmdebstrap", *_mmdebstrap_options(), f"--customize-hook={HOOK}"]
    command += [f"--include={','.join(PACKAGES)}", SUITE, "-", *_mirrors()]
    with part.open("wb") as output, log.open("wb") as errors:
        # A folder that every user may enter: mmdebstrap's own user does not see into ours.
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, cwd="/")
    if done.returncode != 0:
        tail = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-5:]
        raise ImageError("mmdebstrap failed: " + " | ".join(tail))
    part.rename(target)
    return target


def _mmdebstrap_options() -> list[str]:
    options = ["--quiet", "--variant=minbase", "--format=tar"]
    options += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "info", "locale")]
    return options


def _as_root() -> list[str]:
    """How mmdebstrap gets to be root: as it is, in a user namespace, or by sudo. INITRD=No: we make our own."""
    environment = ["env", "INITRD=No"]
    if os.geteuid() == 0:
        return environment
    if succeeds("mmdebstrap", "--unshare-helper", "true"):
        return environment
    if succeeds("sudo", "-n", "true"):
        return ["sudo", "-n", *environment]
    raise ImageError(
        "building the image needs user namespaces (install uidmap and give the user a range in /etc/subuid),"
        " sudo without a password, or root"
    )


def _mirrors() -> list[str]:
    """The Debian mirrors that this host uses for the suite; else Debian's own."""
    found: dict[str, None] = {}
    for file in sorted([Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]):
        if file.suffix in (".list", ".sources") and file.is_file():
            text = file.read_text(errors="replace")
            found |= dict.fromkeys(_one_line_sources(text) if file.suffix == ".list" else _deb822_sources(text))
    return list(found) or [f"deb http://deb.debian.org/debian {SUITE} main"]


def _one_line_sources(text: str) -> Iterator[str]:
    for uri, suite in re.findall(r"^\s*deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+.*\bmain\b", text, re.MULTILINE):
        if suite in (SUITE, f"{SUITE}-updates", f"{SUITE}-security") and "debian" in uri:
            yield f"deb {uri} {suite} main"


def _deb822_sources(text: str) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^([A-Za-z-]+):[ \t]*(.*)$", block, re.MULTILINE))
        if "deb" not in fields.get("Types", "").split() or "main" not in fields.get("Components", "").split():
            continue
        for uri in fields.get("URIs", "").split():
            for suite in fields.get("Suites", "").split():
                yield from _one_line_sources(f"deb {uri} {suite} main")


# -- the disk


def _assemble(rootfs: Path, files: dict[str, tuple[Path, int]], work: Path) -> None:
    """Make disk, kernel and initrd in `work/image`."""
    root, image = work / "root", work / "image"
    root.mkdir()
    image.mkdir()
    _overlay(files, work / "overlay.tar")
    disk = work / "disk.ext4"
    # One shell for the whole: what fakeroot believes of owners and devices ends with it.
    script = """set -e
    tar -C "$1" --numeric-owner -xf "$2" --exclude='./dev/*'
    mkdir "$1/.kernel" && mv "$1"/boot/vmlinuz-* "$1/.kernel/vmlinuz" && mv "$1/.kernel" "$4"
    rm -rf "$1"/boot/* "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/log/* "$1/etc/machine-id"
    tar -C "$1" --numeric-owner -xf "$3"
    mkdir -p "$1/workspace" && chown 1000:1000 "$1/workspace"
    mke2fs -q -t ext4 -L autovibe -m 0 -J size=32 -E lazy_itable_init=1,lazy_journal_init=1,nodiscard \
        -d "$1" "$5" "$6"
    """
    arguments = [root, rootfs, work / "overlay.tar", work / "kernel", disk, DISK_SIZE]
    fake = [] if os.geteuid() == 0 else ["fakeroot"]
    run([*fake, "sh", "-c", script, "sh", *map(str, arguments)])
    (image / "vmlinux").write_bytes(_uncompressed(work / "kernel" / "vmlinuz"))
    (image / "initrd").write_bytes(initramfs.build(root, SOURCES / "initramfs"))
    run(["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", str(disk), str(image / "disk.qcow2")])
    for file in image.iterdir():
        file.chmod(0o444)


def _files(claude: Path) -> dict[str, tuple[Path, int]]:
    """What we put over Debian's files: name → (source, mode)."""
    return {
        "usr/local/bin/claude": (claude, 0o755),
        "usr/local/lib/autovibe/bootstrap.py": (_bootstrap(), 0o644),
        "usr/sbin/init": (SOURCES / "init", 0o755),
        "etc/acpi/PWRF/00000080": (SOURCES / "power-button", 0o755),
        **{f"usr/sbin/{name}": (SOURCES / "shutdown", 0o755) for name in ("shutdown", "poweroff", "halt", "reboot")},
    }


def _overlay(files: dict[str, tuple[Path, int]], target: Path) -> None:
    """The files as an archive: it knows owners and modes, whoever builds."""
    with tarfile.open(target, "w") as archive:
        for name, (source, mode) in files.items():
            member = archive.gettarinfo(source, name)
            member.uid = member.gid = 0
            member.uname = member.gname = "root"
            member.mode, member.mtime, member.type = mode, 0, tarfile.REGTYPE
            with source.open("rb") as file:
                archive.addfile(member, file)


def _uncompressed(kernel: Path) -> bytes:
    """The ELF image in a bzImage, whose header says where it is (Linux, Documentation/arch/x86/boot.rst)."""
    image = kernel.read_bytes()
    start = (image[0x1F1] + 1) * 512 + int.from_bytes(image[0x248:0x24C], "little")
    payload = image[start : start + int.from_bytes(image[0x24C:0x250], "little")]
    if payload.startswith(b"\x02\x21\x4c\x18"):
        # The last four bytes are the size that it will have.
        return run(["lz4", "-dc", "-"], input=payload[:-4])
    if payload.startswith(b"\x1f\x8b"):
        return gzip.decompress(payload[:-4])
    raise ImageError(f"the kernel is compressed in a way that is not known: {payload[:4].hex()}")


# -- small things


def _preflight(cache: Path) -> None:
    programs = PROGRAMS if os.geteuid() == 0 else PROGRAMS | {"fakeroot": "fakeroot"}
    missing = [package for program, package in programs.items() if not find(program)]
    if not Path("/usr/share/keyrings/debian-archive-keyring.gpg").exists():
        missing.append("debian-archive-keyring")
    if missing:
        raise ImageError(f"building the guest image needs packages: apt-get install {' '.join(sorted(missing))}")
    free = shutil.disk_usage(cache).free
    if free < NEEDED_BYTES:
        raise ImageError(f"no disk space: {cache} has {free / 1024**3:.1f} GiB free, a build needs 4")


def _link_or_copy(source: Path, target: Path) -> None:
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        os.link(source, part)
    except OSError:  # another file system
        shutil.copyfile(source, part)
        part.chmod(0o444)
    part.rename(target)


@contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another build of the image")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
