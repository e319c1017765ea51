"""The command line of a guest's QEMU, from its Proxmox configuration. Nothing here runs anything."""

from __future__ import annotations

import base64
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from autovibe_lab.disks import file_format
from autovibe_lab.guest import GuestError
from autovibe_lab.paths import LabPaths, Network

#: Inside a guest: its network, its host (which answers nothing), the hub.
GUEST_NETWORK, GUEST_HOST, HUB_ADDRESS, HUB_PORT = "192.168.100.0/24", "192.168.100.1", "192.168.100.2", 8000

#: The kernel stays silent: our init has a console of its own.
KERNEL_PARAMETERS = " ".join(
    [
        "console=null quiet loglevel=0 8250.nr_uarts=0 panic=-1",
        "random.trust_cpu=on cryptomgr.notests audit=0 ipv6.disable=1",
    ]
)
#: What makes a boot without KVM fast.
TCG_PARAMETERS = "lpj=4000000 no_timer_check tsc=reliable mitigations=off nokaslr"
#: With one processor there is no APIC, so PCI interrupts are plain ones: as the firmware has routed them, because ACPI
#: takes 0.3 s a device for it.
ONE_PROCESSOR_PARAMETERS = "nosmp acpi=noirq"


@dataclass(frozen=True)
class Drive:
    """A drive of a guest: its key in the configuration (`scsi0`), its file, whether the guest may write."""

    key: str
    file: Path
    read_only: bool

    @property
    def node(self) -> str:
        """QEMU's name for it."""
        return f"drive-{self.key}"


def options(value: str) -> dict[str, str]:
    """The named options of a value such as `local:100/x.qcow2,size=4G`; its unnamed head is under ``""``."""
    head, *rest = value.split(",")
    if "=" in head:
        head, rest = "", [head, *rest]
    return {"": head, **dict(part.partition("=")[::2] for part in rest)}


def agent_enabled(config: dict[str, str]) -> bool:
    found = options(config.get("agent", "0"))
    return (found.get("enabled") or found[""]) == "1"


def drives(config: dict[str, str], lab: LabPaths) -> list[Drive]:
    """The guest's drives, the one it boots from first. Raises GuestError for one that is missing."""
    found = []
    for key in sorted(config, key=lambda key: _drive_order(key, config)):
        if not re.fullmatch(r"(scsi|virtio|sata|ide)\d+", key):
            continue
        drive = options(config[key])
        volume = drive[""] or drive.get("file", "none")
        if volume in ("none", "cdrom"):
            continue
        file = lab.volume(volume)
        if not file.exists():
            raise GuestError(f"volume '{volume}' does not exist")
        found.append(Drive(key, file.absolute(), drive.get("media") == "cdrom"))
    return found


def _drive_order(key: str, config: dict[str, str]) -> tuple[int, str]:
    order = options(config.get("boot", "")).get("order", "").split(";") + [config.get("bootdisk", "")]
    fallback = {"virtio": 100, "scsi": 101, "sata": 102, "ide": 103}
    if key in order:
        return order.index(key), key
    return fallback.get(key.rstrip("0123456789"), 104), key


def command(
    vmid: int, config: dict[str, str], lab: LabPaths, network: Network, *, accel: str, restrict: bool = True
) -> list[str]:
    """QEMU's argv. Its pid file's path marks every process of this lab. `restrict=False` opens the guest's network to
    the host: only a test that shows what the restriction blocks wants that."""
    cores = int(config.get("cores", "1")) * int(config.get("sockets", "1"))
    memory = options(config.get("memory", "512"))
    argv = ["qemu-system-x86_64", "-name", f"guest={config.get('name', f'VM{vmid}')}"]
    argv += ["-pidfile", str(lab.run / f"{vmid}.pid")]
    argv += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-rtc", "base=utc"]
    argv += ["-machine", "q35", *_accelerator(accel)]
    argv += ["-smp", str(cores), "-m", memory.get("current") or memory[""]]
    argv += _kernel(lab, accel, cores)
    argv += _smbios(config)
    argv += _control(vmid, config, lab)
    for drive in drives(config, lab):
        argv += _drive(drive)
    for key in sorted(key for key in config if re.fullmatch(r"net\d+", key)):
        argv += _network(key, config[key], lab.closed(vmid, key), lab, network, restrict)
    return argv


def _accelerator(accel: str) -> list[str]:
    if accel == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    # Claude Code needs AVX, which QEMU's default processor lacks. Without la57 page tables have a level less to walk.
    return ["-accel", "tcg,tb-size=512", "-cpu", "max,la57=off"]


def _kernel(lab: LabPaths, accel: str, cores: int) -> list[str]:
    kernel, initrd = (lab.imports / f"autovibe-guest.{kind}" for kind in ("vmlinux", "initrd"))
    if not kernel.exists() or not initrd.exists():
        raise GuestError(f"the guest kernel {kernel} is missing: run `autovibe lab up` without --no-image")
    parameters = [KERNEL_PARAMETERS]
    if accel == "tcg":
        parameters += [TCG_PARAMETERS, *([ONE_PROCESSOR_PARAMETERS] if cores == 1 else [])]
    return ["-kernel", str(kernel), "-initrd", str(initrd), "-append", " ".join(parameters)]


def _smbios(config: dict[str, str]) -> list[str]:
    found = options(config.get("smbios1", ""))
    encoded = found.pop("base64", "0") == "1"
    values = []
    for name in ("uuid", "serial", "sku", "manufacturer", "product", "version", "family"):
        if value := found.get(name):
            text = base64.b64decode(value).decode() if encoded and name != "uuid" else value
            values.append(f"{name}={_escaped(text)}")
    return ["-smbios", ",".join(["type=1", *values])] if values else []


def _control(vmid: int, config: dict[str, str], lab: LabPaths) -> list[str]:
    """The monitor, the guest agent's port, and a log of what the guest's init and bootstrap say."""
    run = {name: _escaped(str(lab.run / f"{vmid}.{name}")) for name in ("qmp", "qga", "console")}
    argv = ["-chardev", f"socket,id=qmp,path={run['qmp']},server=on,wait=off", "-mon", "chardev=qmp,mode=control"]
    argv += ["-device", "virtio-serial-pci"]
    argv += ["-chardev", f"file,id=console,path={run['console']}"]
    argv += ["-device", "virtserialport,chardev=console,name=org.autovibe.console.0"]
    if agent_enabled(config):
        argv += ["-chardev", f"socket,id=qga,path={run['qga']},server=on,wait=off"]
        argv += ["-device", "virtserialport,chardev=qga,name=org.qemu.guest_agent.0,id=qga"]
    return argv


def _drive(drive: Drive) -> list[str]:
    file = {"driver": "file", "filename": str(drive.file)}
    block = {"driver": file_format(drive.file), "node-name": drive.node, "read-only": drive.read_only, "file": file}
    if not drive.read_only:
        block["discard"] = "unmap"
    device = f"virtio-blk-pci,drive={drive.node},id={drive.key}"
    return ["-blockdev", json.dumps(block), "-device", device]


def _network(key: str, value: str, closed: Path, lab: LabPaths, network: Network, restrict: bool) -> list[str]:
    """User networking, closed but for the hub: QEMU starts one relay per connection, which ends with it. The firewall's
    file `closed` keeps it from starting."""
    mark = shlex.quote(f"-lp{lab.run}")  # so that a relay can be told from others' after a crash
    # -t and shut-down: each side may close its half and still hear the other; nodelay: events go out at once.
    relay = f"socat {mark} -lf/dev/null -t86400 FD:0,shut-down TCP4:127.0.0.1:{network.hub_port},nodelay"
    gate = shlex.quote(f"test -e {shlex.quote(str(closed))} || exec {relay}")
    netdev = [f"user,id={key},ipv6=off,net={GUEST_NETWORK},host={GUEST_HOST},restrict={'on' if restrict else 'off'}"]
    netdev += [f"guestfwd=tcp:{HUB_ADDRESS}:{HUB_PORT}-cmd:{_escaped(f'/bin/sh -c {gate}')}"]
    mac = re.search(r"=((?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2})", value)
    device = f"virtio-net-pci,netdev={key},id={key},romfile="
    return ["-netdev", ",".join(netdev), "-device", device + (f",mac={mac[1]}" if mac else "")]


def _escaped(text: str) -> str:
    return text.replace(",", ",,")
