"""What creating, changing and cloning a guest needs, option by option: Proxmox checks it while it handles the call."""

from __future__ import annotations

import re
from collections.abc import Iterable

from autovibe_lab import options
from autovibe_lab.api.routes import Call
from autovibe_lab.config import NETS, Drive, Section, drives
from autovibe_lab.errors import ApiError
from autovibe_lab.permissions import denied
from autovibe_lab.usercfg import ROOT

#: Each option's privilege. What is in none of them only root may set; drives and devices are looked at for themselves.
BY_PRIVILEGE = {
    "VM.Config.CPU": r"cores|cpu|cpulimit|cpuunits|numa\d*|smp|sockets|vcpus",
    "VM.Config.Memory": r"memory|balloon|shares",
    "VM.Config.HWType": r"acpi|hotplug|kvm|machine|scsihw|smbios1|tablet|vga|watchdog|audio0|rng0",
    "VM.Config.Options": r"agent|allow-ksm|autostart|bios|description|keyboard|localtime|migrate_downtime|migrate_speed"
    r"|name|onboot|ostype|protection|reboot|spice_enhancements|startdate|startup|tags|tdf|template",
    "VM.PowerMgmt": r"freeze",
    "VM.Config.Disk": r"boot|bootdisk|vmstatestorage|virtiofs\d+",
    "VM.Config.Network": r"net\d+",
}
CLOUDINIT = re.compile(r"ci(custom|password|type|upgrade|user)|ipconfig\d+|nameserver|searchdomain|sshkeys")
DEVICES = re.compile(r"(unused|serial|usb|hostpci)\d+|cdrom")
NEW_DISK = re.compile(r"(?:(?P<storage>[A-Za-z][\w.-]*):)?\d+(\.\d+)?")


def check_create(call: Call, given: dict[str, str]) -> None:
    """A new guest, or one made of a backup: into a pool that is there, or with VM.Allocate on the id itself."""
    vmid, pool, storage = call.params["vmid"], call.get("pool"), call.get("storage")
    if pool:
        call.node.pools.check(pool)
    if storage:
        call.check(f"/storage/{storage}", "Datastore.AllocateSpace")
    allocate = call.can(f"/vms/{vmid}", "VM.Allocate") or (pool and call.can(f"/pool/{pool}", "VM.Allocate"))
    over = call.get("archive") and call.get("force") and vmid in call.node.machines
    if not allocate and not (over and call.can(f"/vms/{vmid}", "VM.Backup")):
        raise denied()
    if archive := call.get("archive"):
        check_volume(call, archive, vmid)
    check_storages(call, given, vmid, storage)
    check_options(call, given, vmid, pool)
    check_devices(call, given, vmid, pool)
    check_bridges(call, given)


def check_change(call: Call, given: dict[str, str], deleted: list[str]) -> None:
    """New values and deletions of a guest that is there."""
    vmid = call.params["vmid"]
    check_options(call, [*deleted, *given], vmid)
    check_storages(call, given, vmid)
    check_devices(call, given, vmid)
    check_bridges(call, given)
    check_changed_drives(call, given, deleted, vmid)


def check_vm(call: Call, vmid: int, pool: str | None, *privileges: str, any: bool = False) -> None:
    """On the guest, or on the pool that it is going to be in."""
    if not (pool and call.can(f"/pool/{pool}", *privileges, any=any)):
        call.check(f"/vms/{vmid}", *privileges, any=any)


def check_options(call: Call, names: Iterable[str], vmid: int, pool: str | None = None) -> None:
    """The 403 that names the first privilege missing for one of these options, or the 500 of what only root sets."""
    if call.user == ROOT:
        return
    for name in names:
        if options.is_drive(name) or DEVICES.fullmatch(name):
            continue
        if CLOUDINIT.fullmatch(name):
            check_vm(call, vmid, pool, "VM.Config.Cloudinit", "VM.Config.Network", any=True)
            continue
        privilege = next((its for its, pattern in BY_PRIVILEGE.items() if re.fullmatch(pattern, name)), None)
        if privilege is None:
            raise ApiError(500, f"only root can set '{name}' config")
        check_vm(call, vmid, pool, privilege)
        if name == "startup":
            call.check("/", "Sys.Modify")


def check_devices(call: Call, given: dict[str, str], vmid: int, pool: str | None = None) -> None:
    """Sockets and spice ports are hardware like any other; the host's own devices are root's."""
    if call.user == ROOT:
        return
    for name, value in given.items():
        kind = name.rstrip("0123456789")
        if kind not in ("serial", "usb", "hostpci"):
            continue
        if value.startswith("mapping="):
            target = value.partition("=")[2].partition(",")[0]
            call.check(f"/mapping/{'usb' if kind == 'usb' else 'pci'}/{target}", "Mapping.Use")
        elif kind == "hostpci":
            raise ApiError(500, f"only root can set '{name}' config for non-mapped devices")
        elif value.split(",")[0] not in ("socket", "spice"):
            raise ApiError(500, f"only root can set '{name}' config for real devices")
        check_vm(call, vmid, pool, "VM.Config.HWType")


def check_changed_drives(call: Call, given: dict[str, str], deleted: Iterable[str], vmid: int) -> None:
    """Drives of a guest that is there: a CD is one privilege, a disk another."""
    for name in deleted:
        if options.is_drive(name) or name.startswith("unused"):
            call.check(f"/vms/{vmid}", "VM.Config.Disk")
    for name, value in given.items():
        if options.is_drive(name):
            drive = Drive.parse(name, value)
            cdrom = drive.is_cdrom or drive.volid.endswith(":cloudinit")
            call.check(f"/vms/{vmid}", "VM.Config.CDROM" if cdrom else "VM.Config.Disk")


def check_bridges(call: Call, section: Section) -> None:
    """SDN.Use on the bridge of each network device, or on its VLAN there."""
    if call.user == ROOT:
        return
    for key in sorted(section):
        if NETS.fullmatch(key):
            net = options.parse_net(section[key])
            if bridge := net.get("bridge"):
                tag = f"/{net['tag']}" if net.get("tag") else ""
                call.check(f"/sdn/zones/localnetwork/{bridge}{tag}", "SDN.Use")


def check_storages(call: Call, given: dict[str, str], vmid: int, default: str | None = None) -> None:
    """Space for each new disk, and access to each volume that is named."""
    if call.user == ROOT:
        return
    for name, value in given.items():
        if options.is_drive(name):
            _check_drive(call, Drive.parse(name, value), vmid, default)
    if storage := given.get("vmstatestorage"):
        call.check(f"/storage/{storage}", "Datastore.AllocateSpace")


def _check_drive(call: Call, drive: Drive, vmid: int, default: str | None) -> None:
    volid = drive.volid
    if volid in ("", "none") or volid.rpartition(":")[2] == "cloudinit":
        return
    if volid == "cdrom":
        call.check("/", "Sys.Console")
    elif (match := NEW_DISK.fullmatch(volid)) and not drive.is_cdrom:
        call.check(f"/storage/{match['storage'] or default}", "Datastore.AllocateSpace")
    else:
        check_volume(call, volid, vmid)
    if source := drive.properties.get("import-from"):
        owner = re.match(r"[^/:]+:(?:.*/)?(\d+)/[^/]+$", source)
        if owner:
            call.check(f"/vms/{owner[1]}", "VM.Clone")
        else:
            check_volume(call, source, vmid)


def check_volume(call: Call, volid: str, vmid: int | None = None) -> None:
    """Read access to one volume: an image, an ISO, a backup. `vmid` is the guest that is to have it."""
    if call.user == ROOT:
        return
    storage, colon, name = volid.partition(":")
    if not colon or volid.startswith("/"):
        raise ApiError(
            500, "Only root can pass arbitrary filesystem paths. at /usr/share/perl5/PVE/Storage.pm line 581."
        )
    path = f"/storage/{storage}"
    if call.can(path, "Datastore.Allocate"):
        return
    kind, _, rest = name.partition("/")
    backup = re.match(r"vzdump-[a-z]+-(\d+)-", rest) if kind == "backup" else None
    owner = re.search(r"(?:^|/)(\d+)/[^/]+$", name) or re.search(r"(?:^|/)(?:vm|base)-(\d+)-", name)
    if kind in ("iso", "vztmpl", "import"):
        call.check(path, "Datastore.AllocateSpace", "Datastore.Audit", any=True)
    elif backup:
        call.check(path, "Datastore.AllocateSpace")
        call.check(f"/vms/{backup[1]}", "VM.Backup")
    elif owner and int(owner[1]) != vmid:
        call.check(path, "Datastore.Audit")
        call.check(f"/vms/{owner[1]}", "VM.Config.Disk")
    elif not owner:
        raise ApiError(500, f"missing privileges to access {volid}")


def may_read(call: Call, volid: str) -> bool:
    """Whether a list of volumes shows this one."""
    try:
        check_volume(call, volid)
    except ApiError:
        return False
    return True


def check_clone(call: Call, section: Section, storage: str | None) -> None:
    """Space on the storage of each disk of the copy, and the use of its bridges."""
    if call.user == ROOT:
        return
    for drive in drives(section):
        if drive.volid == "cdrom":
            call.check("/", "Sys.Console")
        elif not drive.is_cdrom and not drive.is_cloudinit and ":" in drive.volid:
            call.check(f"/storage/{storage or drive.volid.partition(':')[0]}", "Datastore.AllocateSpace")
    check_bridges(call, section)
