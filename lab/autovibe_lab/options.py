"""The options of a virtual machine: their types and formats, and which take effect while it runs."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from urllib.parse import unquote

from autovibe_lab.config import DRIVES, Section, split_properties
from autovibe_lab.schema import BOOLEAN, DNS_NAME, TAGS, Param, Schema, opt

NIC_MODELS = ("virtio", "e1000", "e1000e", "rtl8139", "vmxnet3", "ne2k_pci", "i82551", "i82557b", "i82559er")
NIC_OPTIONS = {"macaddr", "model", "bridge", "tag", "trunks", "firewall", "link_down", "rate", "queues", "mtu"}
DRIVE_OPTIONS = {
    "file",
    "media",
    "size",
    "format",
    "cache",
    "aio",
    "discard",
    "ssd",
    "iothread",
    "backup",
    "replicate",
    "ro",
    "serial",
    "snapshot",
    "shared",
    "import-from",
    "detect_zeroes",
    "werror",
    "rerror",
    "product",
    "vendor",
    "wwn",
    "queues",
    "scsiblock",
    "efitype",
    "pre-enrolled-keys",
    "version",
    "iops",
    "iops_rd",
    "iops_wr",
    "iops_max",
    "iops_rd_max",
    "iops_wr_max",
    "mbps",
    "mbps_rd",
    "mbps_wr",
    "mbps_max",
    "mbps_rd_max",
    "mbps_wr_max",
}
FORMATS = ("raw", "qcow", "qed", "qcow2", "vmdk", "cloop")
MAC = re.compile(r"[0-9a-fA-F][02468aceACE]:([0-9a-fA-F]{2}:){4}[0-9a-fA-F]{2}")
LOCKS = ("backup", "clone", "create", "migrate", "rollback", "snapshot", "snapshot-delete", "suspending", "suspended")

UNDEFINED = "property is not defined in schema and the schema does not allow additional properties"


def _problems(*lines: str) -> ValueError:
    return ValueError("format error\n" + "\n".join(lines))


def parse_net(text: str) -> dict[str, str]:
    """`virtio=MAC,bridge=vmbr0` → {"model": "virtio", "macaddr": MAC, "bridge": "vmbr0"}."""
    found: dict[str, str] = {}
    for key, value in split_properties(text, "model").items():
        if key in NIC_MODELS:
            found |= {"model": key, "macaddr": value}
        else:
            found[key] = value
    return found


def print_net(net: dict[str, str]) -> str:
    rest = [f"{key}={net[key]}" for key in sorted(net) if key not in ("model", "macaddr")]
    return ",".join([f"{net['model']}={net['macaddr']}", *rest])


def _net(text: str) -> None:
    net, problems = parse_net(text), []
    problems += [f"net.{key}: {UNDEFINED}" for key in sorted(net) if key not in NIC_OPTIONS]
    if "model" not in net:
        problems += ["net.model: property is missing and it is not optional"]
    elif net["model"] not in NIC_MODELS:
        problems += [f"net.model: value '{net['model']}' does not have a value in the enumeration"]
    if "macaddr" in net and not MAC.fullmatch(net["macaddr"]):
        problems += ["net.macaddr: invalid format - value does not look like a valid unicast MAC address\n"]
    tag = net.get("tag", "1")
    if not tag.isdigit():
        problems += [f"net.tag: type check ('integer') failed - got '{tag}'"]
    elif not 1 <= int(tag) <= 4094:
        problems += [f"net.tag: value must have a {'maximum value of 4094' if int(tag) else 'minimum value of 1'}"]
    if problems:
        raise _problems(*problems)


def _drive(text: str) -> None:
    properties = split_properties(text, "file")
    problems = [f"drive.{key}: {UNDEFINED}" for key in sorted(properties) if key not in DRIVE_OPTIONS]
    if properties.get("format", "qcow2") not in FORMATS:
        listed = ", ".join(FORMATS)
        problems += [
            f"drive.format: value '{properties['format']}' does not have a value in the enumeration '{listed}'"
        ]
    if problems:
        raise _problems(*problems)


def _memory(text: str) -> None:
    value = split_properties(text, "current").get("current", "")
    if not re.fullmatch(r"\d+", value):
        raise _problems(f"memory.current: type check ('integer') failed - got '{value}'")
    if int(value) < 16:
        raise _problems("memory.current: value must have a minimum value of 16")


def _agent(text: str) -> None:
    for key, value in split_properties(text, "enabled").items():
        if key not in ("enabled", "fstrim_cloned_disks", "freeze-fs-on-backup", "type"):
            raise _problems(f"agent.{key}: {UNDEFINED}")
        if key != "type" and value not in ("0", "1"):
            raise _problems(f"agent.{key}: type check ('boolean') failed - got '{value}'")


def _ipconfig(text: str) -> None:
    for key, value in split_properties(text, "ip").items():
        try:
            if key == "ip" and value != "dhcp":
                ipaddress.IPv4Interface(value if "/" in value else "needs a prefix")
            elif key == "gw":
                ipaddress.IPv4Address(value)
            elif key == "ip6" and value not in ("dhcp", "auto"):
                ipaddress.IPv6Interface(value)
            elif key == "gw6":
                ipaddress.IPv6Address(value)
            elif key not in ("ip", "ip6"):
                raise _problems(f"ipconfig.{key}: {UNDEFINED}")
        except (ipaddress.AddressValueError, ipaddress.NetmaskValueError):
            raise _problems(f"ipconfig.{key}: invalid format - value does not look like a valid address\n") from None


def _smbios(text: str) -> None:
    properties = split_properties(text, "uuid")
    for key, value in properties.items():
        if key == "uuid" and not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", value):
            raise _problems("smbios1.uuid: value does not match the regex pattern")
        if properties.get("base64") == "1" and key not in ("uuid", "base64"):
            try:
                base64.b64decode(value, validate=True)
            except binascii.Error:
                raise _problems(f"smbios1.{key}: value does not match the regex pattern") from None


def _sshkeys(text: str) -> None:
    if re.search(r"[^A-Za-z0-9\-_.~!*'()%]", text):
        raise ValueError(f"invalid urlencoded string: {text}")
    unquote(text)


def agent_enabled(section: Section) -> bool:
    return split_properties(section.get("agent", "0"), "enabled").get("enabled", "0") == "1"


def normalise_tags(text: str) -> str:
    """Proxmox sorts tags, lower-cases them and keeps each once."""
    return ";".join(sorted({tag.lower() for tag in re.split(r"[;, ]+", text) if tag}))


STRING = Param()
TEXT = dict.fromkeys(
    ["affinity", "amd-sev", "args", "boot", "bootdisk", "cdrom", "cicustom", "cipassword", "ciuser", "cpu"], STRING
)
TEXT |= dict.fromkeys(["hookscript", "hotplug", "ivshmem", "machine", "nameserver", "rng0", "searchdomain"], STRING)
TEXT |= dict.fromkeys(
    ["spice_enhancements", "startdate", "startup", "vga", "vmgenid", "vmstatestorage", "watchdog"], STRING
)
FLAGS = dict.fromkeys(
    [
        "acpi",
        "autostart",
        "ciupgrade",
        "freeze",
        "keephugepages",
        "kvm",
        "localtime",
        "numa",
        "onboot",
        "protection",
        "reboot",
        "tablet",
        "tdf",
        "template",
    ],
    BOOLEAN,
)
NUMBERS = {
    "balloon": Param("integer", minimum=0),
    "cores": Param("integer", minimum=1),
    "cpulimit": Param("number", minimum=0, maximum=128),
    "cpuunits": Param("integer", minimum=1, maximum=262144),
    "migrate_downtime": Param("number", minimum=0),
    "migrate_speed": Param("integer", minimum=0),
    "shares": Param("integer", minimum=0, maximum=50000),
    "smp": Param("integer", minimum=1),
    "sockets": Param("integer", minimum=1),
    "vcpus": Param("integer", minimum=1),
}
OSTYPES = ("other", "wxp", "w2k", "w2k3", "w2k8", "wvista", "win7", "win8", "win10", "win11", "l24", "l26", "solaris")
SCSIHW = ("lsi", "lsi53c810", "virtio-scsi-pci", "virtio-scsi-single", "megasas", "pvscsi")
FORMATTED = {
    "agent": Param(check=_agent),
    "arch": Param(enum=("x86_64", "aarch64")),
    "bios": Param(enum=("seabios", "ovmf")),
    "citype": Param(enum=("configdrive2", "nocloud", "opennebula")),
    "description": Param(max_length=8192),
    "efidisk0": Param(check=_drive),
    "hugepages": Param(enum=("any", "2", "1024")),
    "keyboard": STRING,
    "lock": Param(enum=LOCKS),
    "memory": Param(check=_memory),
    "name": DNS_NAME,
    "ostype": Param(enum=OSTYPES),
    "scsihw": Param(enum=SCSIHW),
    "smbios1": Param(max_length=512, check=_smbios),
    "sshkeys": Param(check=_sshkeys),
    "tags": TAGS,
    "tpmstate0": Param(check=_drive),
}
OPTIONS: dict[str, Param] = {name: opt(param) for name, param in (TEXT | FLAGS | NUMBERS | FORMATTED).items()}
NUMBERED: dict[str, Param] = {stem: opt(Param(check=_drive)) for stem in ("ide", "sata", "scsi", "virtio", "unused")}
NUMBERED |= {"net": opt(Param(check=_net)), "ipconfig": opt(Param(check=_ipconfig))}
NUMBERED |= {stem: opt(STRING) for stem in ("serial", "parallel", "usb", "hostpci", "numa", "virtiofs")}


def schema(**more: Param) -> Schema:
    """All options of a machine and `more`."""
    return Schema(OPTIONS | more, NUMBERED)


#: Take effect at once on a running guest; everything else is pending until it starts again.
HOT = re.compile(
    r"autostart|balloon|cpulimit|cpuunits|description|freeze|hookscript|hotplug|lock|migrate_\w+|name|net\d+|onboot"
    r"|protection|shares|startup|tags|unused\d+|vmstatestorage|ipconfig\d+|ci\w+|nameserver|searchdomain|sshkeys"
)
INTEGERS = {name for name, param in OPTIONS.items() if param.type in ("integer", "boolean")}


def known(name: str) -> bool:
    return schema().find(name) is not None


def is_hot(name: str) -> bool:
    return HOT.fullmatch(name) is not None


def is_drive(name: str) -> bool:
    return DRIVES.fullmatch(name) is not None


def shown(section: Section) -> dict[str, object]:
    """The section as the API shows it: numbers as numbers, the password hidden."""
    found: dict[str, object] = {key: int(value) if key in INTEGERS else value for key, value in section.items()}
    if "cipassword" in found:
        found["cipassword"] = "**********"
    return found
