"""The options of a virtual machine: how they are read and shown, and which take effect while it runs.

Their types and formats are declared in `declared.json`, as those of all parameters.
"""

from __future__ import annotations

import re

from autovibe_lab import declared
from autovibe_lab.config import DRIVES, Section, split_properties

CONFIG = "PUT /nodes/{node}/qemu/{vmid}/config"
#: Parameters of that call that are none of the machine's options.
CONTROL = {"node", "vmid", "delete", "revert", "digest", "skiplock", "force", "import-working-storage"}

#: The models of network devices: `virtio=MAC` stands for `model=virtio,macaddr=MAC`.
NIC_MODELS = {name for name, rule in declared.rules(CONFIG)["net[n]"]["format"].items() if "keyAlias" in rule}


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


def agent_enabled(section: Section) -> bool:
    return split_properties(section.get("agent", "0"), "enabled").get("enabled", "0") == "1"


def normalise_tags(text: str) -> str:
    """Proxmox sorts tags, lower-cases them and keeps each once."""
    return ";".join(sorted({tag.lower() for tag in re.split(r"[;, ]+", text) if tag}))


#: Take effect at once on a running guest; everything else is pending until it starts again.
HOT = re.compile(
    r"autostart|balloon|cpulimit|cpuunits|description|freeze|hookscript|hotplug|lock|migrate_\w+|name|net\d+|onboot"
    r"|protection|shares|startup|tags|unused\d+|vmstatestorage|ipconfig\d+|ci\w+|nameserver|searchdomain|sshkeys"
)
INTEGERS = {name for name, param in declared.schema(CONFIG).params.items() if param.type in ("integer", "boolean")}
INTEGERS.add("snaptime")


def known(name: str) -> bool:
    return name not in CONTROL and declared.schema(CONFIG).find(name) is not None


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
