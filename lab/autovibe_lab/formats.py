"""The formats that parameters declare, by Proxmox's own names. A check raises ValueError with Proxmox's words."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable

UNDEFINED = "property is not defined in schema and the schema does not allow additional properties"
MISSING = "property is missing and it is not optional"

Check = Callable[[str], object]

#: Checks by the names of their formats; a room that knows more of a subject adds its own (`register`).
CHECKS: dict[str, Check] = {}


def register(*names: str) -> Callable[[Check], Check]:
    """Make this the check of a format, and of lists of it."""

    def add(check: Check) -> Check:
        for name in names:
            CHECKS[name] = check
            CHECKS[f"{name}-list"] = _each(check)
            CHECKS[f"{name}-opt"] = lambda text: check(text) if text else None
        return check

    return add


def _each(check: Check) -> Check:
    def check_all(text: str) -> None:
        for part in split_list(text):
            check(part)

    return check_all


def split_list(text: str) -> list[str]:
    """`a,b;c d` and what was given several times, as Proxmox takes lists apart."""
    return [part for part in re.split(r"[,;\0\s]+", text) if part]


def matching(pattern: str, message: str, *names: str) -> None:
    """A format that is one regular expression; `{}` in the message is the value."""
    whole = re.compile(pattern)

    def check(text: str) -> None:
        if not whole.fullmatch(text):
            raise ValueError(message.format(text))

    register(*names)(check)


MAC = r"[0-9a-fA-F][02468aceACE]:([0-9a-fA-F]{2}:){4}[0-9a-fA-F]{2}"
_LABEL = r"[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?"

matching(r"[1-9][0-9]{2,8}", "value does not look like a valid VM ID", "pve-vmid")
matching(_LABEL, "value does not look like a valid node name", "pve-node")
matching(rf"{_LABEL}(\.{_LABEL})*", "value does not look like a valid DNS name", "dns-name")
matching(r"[A-Za-z][A-Za-z0-9_-]+", "invalid configuration ID '{}'", "pve-configid")
matching(r"[A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9]", "storage ID '{}' contains illegal characters", "pve-storage-id")
matching(
    r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+){0,2}", "pool name '{}' contains invalid characters", "pve-poolid", "pve-pool"
)
matching(r"[^\s:/]+@[A-Za-z][A-Za-z0-9._-]+", "value '{}' does not look like a valid user name", "pve-userid")
matching(r"[A-Za-z][A-Za-z0-9._-]+", "value '{}' does not look like a valid realm", "pve-realm")
matching(r"[A-Za-z0-9._-]+", "group name '{}' contains invalid characters", "pve-groupid")
matching(r"[A-Za-z0-9._-]+", "role name '{}' contains invalid characters", "pve-roleid")
matching(
    r"[^\s:/]+@[A-Za-z][A-Za-z0-9._-]+![A-Za-z][A-Za-z0-9._-]+",
    "value '{}' does not look like a valid token ID",
    "pve-tokenid",
)
matching(MAC, "value does not look like a valid unicast MAC address", "mac-addr")
matching(r"(?i)[a-f0-9][02468ace](?::[a-f0-9]{2}){0,2}:?", "value is not a valid unicast MAC prefix", "mac-prefix")
matching(r"(\d+(\.\d+)?)([KMGT])?", "value does not look like a valid disk size: {}", "disk-size")
matching(r"[A-Za-z][A-Za-z0-9._-]{1,20}([:.]\d+)?", "invalid network interface name '{}'", "pve-iface")
matching(r"[A-Za-z0-9_.-]+", "invalid bridge ID '{}'", "pve-bridge-id")
matching(r"[A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9]:.+", "unable to parse volume ID '{}'", "pve-volume-id")
matching(r"/.+|[A-Za-z][\w.-]*:.+", "unable to parse volume ID '{}'", "pve-volume-id-or-absolute-path")
matching(r"none|cdrom|/.+|[A-Za-z][\w.-]*:.+", "unable to parse volume ID '{}'", "pve-volume-id-or-qm-path")
matching(r"(?i)[a-z0-9_][a-z0-9_+.-]*", "invalid characters in tag", "pve-tag")
matching(r"[A-Za-z0-9\-_.~!*'()%]*", "invalid urlencoded string: {}", "urlencoded")
matching(r"[^\s@]+@[^\s@]+", "value does not look like a valid email address", "email")
matching(r"ok|error|warning|unknown", "invalid status '{}'", "pve-task-status-type")
matching(r"/[^\n]*", "value does not look like a valid storage path", "pve-storage-path")
matching(r"[a-z][a-z0-9]{0,7}", "vnet ID '{}' contains illegal characters", "pve-sdn-vnet-id")
matching(r"[a-z][a-z0-9]*", "zone ID '{}' contains illegal characters", "pve-sdn-zone-id")


@register("pve-tag-list")
def tag_list(text: str) -> None:
    if "!" in text:  # a separator for no list of Proxmox's
        raise ValueError("invalid characters in tag")
    for tag in split_list(text):
        CHECKS["pve-tag"](tag)


def _address(parse: Callable[[str], object], message: str) -> Check:
    def check(text: str) -> None:
        try:
            parse(text)
        except ValueError:
            raise ValueError(message) from None

    return check


def _network(parse: Callable[[str], object]) -> Callable[[str], object]:
    def with_prefix(text: str) -> object:
        if "/" not in text:
            raise ValueError(text)
        return parse(text)

    return with_prefix


register("ip")(_address(ipaddress.ip_address, "value does not look like a valid IP address"))
register("ipv4")(_address(ipaddress.IPv4Address, "value does not look like a valid IPv4 address"))
register("ipv6")(_address(ipaddress.IPv6Address, "value does not look like a valid IPv6 address"))
register("CIDR")(_address(_network(ipaddress.ip_interface), "value does not look like a valid CIDR network"))
register("CIDRv4")(_address(_network(ipaddress.IPv4Interface), "value does not look like a valid IPv4 network"))
register("CIDRv6")(_address(_network(ipaddress.IPv6Interface), "value does not look like a valid IPv6 network"))
register("IPorCIDR")(_address(ipaddress.ip_interface, "value does not look like a valid IP address or CIDR network"))


# Property strings -----------------------------------------------------------------------------------------------------


def property_string(parts: dict[str, dict]) -> Check:
    """The check of `default,key=value,…` with these parts. Problems name a part as `.part`: who knows the parameter's
    own name puts it before (`Schema.verify`)."""

    def check(text: str) -> None:
        found = split_parts(text, parts)
        problems = [
            f".{key}: {problem}" for key in sorted({*found, *parts}) if (problem := _problem(key, found, parts))
        ]
        if problems:
            raise ValueError("format error\n" + "\n".join(problems))

    return check


def split_parts(text: str, parts: dict[str, dict]) -> dict[str, str]:
    """The parts of a property string; aliases under the names that they stand for."""
    found: dict[str, str] = {}
    default = next((key for key, rule in parts.items() if rule.get("default_key")), None)
    for piece in text.split(","):
        key, equals, value = piece.partition("=")
        if not piece.strip():
            continue
        if not equals:
            if default is None:
                raise ValueError("value without key, but schema does not define a default key")
            key, value = default, piece
        elif not key or not value:
            raise ValueError("missing key in comma-separated list property")
        if key in found:
            raise ValueError(f"duplicate key in comma-separated list property: {key}")
        rule = parts.get(key, {})
        if "keyAlias" in rule:
            if rule["keyAlias"] in found:
                raise ValueError(f"key alias '{rule['keyAlias']}' is already defined")
            found[rule["keyAlias"]] = key
        found[rule.get("alias", key)] = value
    return found


def _problem(key: str, found: dict[str, str], parts: dict[str, dict]) -> str:
    from autovibe_lab.declared import parameter  # a declaration's parts are declarations

    rule = parts.get(key)
    if rule is None:
        return UNDEFINED
    if key not in found:
        return "" if rule.get("optional") or "alias" in rule else MISSING
    if rule.get("requires") and rule["requires"] not in found:
        return f"missing property - '{key}' requires this property"
    if rule.get("type") == "boolean" and re.fullmatch(r"(?i)0|1|on|off|yes|no|true|false", found[key]):
        return ""
    try:
        parameter(rule).parse(found[key])
    except ValueError as error:
        return str(error)
    return ""


_DRIVE_SIZES = {"size": {"type": "string", "format": "disk-size", "optional": 1}}


@register("pve-qm-ipconfig")
def ipconfig(text: str) -> None:
    """`ip=10.0.0.2/24,gw=10.0.0.1,ip6=auto`."""
    words = {"ip": ("dhcp",), "ip6": ("dhcp", "auto")}
    forms = {"ip": "CIDRv4", "gw": "ipv4", "ip6": "CIDRv6", "gw6": "ipv6"}
    found = split_parts(text, {key: {} for key in forms})
    problems = []
    for key, value in sorted(found.items()):
        if key not in forms:
            problems.append(f".{key}: {UNDEFINED}")
            continue
        try:
            if value not in words.get(key, ()):
                CHECKS[forms[key]](value)
        except ValueError as error:
            problems.append(f".{key}: invalid format - {error}\n")
        if key in ("gw", "gw6") and (needed := key.replace("gw", "ip")) not in found:
            problems.append(f".{needed}: missing property - '{key}' requires this property")
    if problems:
        raise ValueError("format error\n" + "\n".join(problems))


@register("pve-qm-smbios1")
def smbios(text: str) -> None:
    """`uuid=…,serial=…,base64=1`: with base64 the other values are."""
    names = ("uuid", "manufacturer", "product", "version", "serial", "sku", "family", "base64")
    found = split_parts(text, {key: {} for key in names})
    problems = [f".{key}: {UNDEFINED}" for key in sorted(found) if key not in names]
    if not re.fullmatch(
        r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", found.get("uuid", "0" * 8 + "-0000" * 3 + "-" + "0" * 12)
    ):
        problems.append(".uuid: value does not match the regex pattern")
    for key, value in sorted(found.items()):
        if found.get("base64") == "1" and key in names[1:-1]:
            try:
                base64.b64decode(value, validate=True)
            except binascii.Error:
                problems.append(f".{key}: value does not match the regex pattern")
    if problems:
        raise ValueError("format error\n" + "\n".join(problems))


@register("pve-startup-order")
def startup(text: str) -> None:
    for part in text.split(","):
        if not re.fullmatch(r"(order=)?\d+|(up|down)=\d+", part.strip()):
            raise ValueError(f"unable to parse startup options '{text}'")


@register("pve-qm-boot")
def boot(text: str) -> None:
    for part in filter(None, text.strip().split(",")):
        key, _, value = part.rpartition("=")
        if key not in ("", "legacy", "order"):
            raise ValueError(f"format error\n.{key}: {UNDEFINED}")
        pattern = (
            r"[acdn]{1,4}" if key != "order" else r"((efi|host|ide|nvme|net|sata|scsi|tpm|usb|virtio)?[a-z]*\d+;?)*"
        )
        if not re.fullmatch(pattern, value):
            raise ValueError(f"format error\n.{key or 'legacy'}: invalid format - invalid boot device '{value}'\n")
