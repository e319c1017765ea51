"""Network slots: a machine's place on the machines' network. Its MAC and address follow from the number."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from autovibe.errors import AutovibeError
from autovibe.models import MachineSlot
from autovibe.settings import Settings

#: Locally administered, unicast.
_MAC_PREFIX = (0x02, 0xAF)


class NetworkFull(AutovibeError):
    """The machines' network has no free address."""

    code = "network_full"
    http_status = 409
    default_hint = "Wait until machines end, or set a larger machine_network."


def acquire(session: Session, settings: Settings, machine_uuid: UUID) -> MachineSlot:
    """The machine's slot: the one it has, else the one that has been free for longest, else a new one."""
    held = session.scalars(select(MachineSlot).where(MachineSlot.machine_uuid == machine_uuid)).one_or_none()
    if held is not None:
        return held
    # New slots are numbered in order, so two spawns at a time take turns here.
    session.execute(text("SELECT pg_advisory_xact_lock(hashtext('autovibe slots'))"))
    slot = session.scalars(
        select(MachineSlot)
        .where(MachineSlot.machine_uuid.is_(None))
        .order_by(MachineSlot.released_at.nulls_first(), MachineSlot.slot)
        .limit(1)
        .with_for_update()
    ).one_or_none()
    if slot is None:
        slot = _new(session, settings)
        session.add(slot)
    slot.machine_uuid = machine_uuid
    slot.released_at = None
    session.flush()
    return slot


def release(session: Session, machine_uuid: UUID) -> None:
    """Give the machine's slot back, if it has one."""
    slot = session.scalars(
        select(MachineSlot).where(MachineSlot.machine_uuid == machine_uuid).with_for_update()
    ).one_or_none()
    if slot is not None:
        slot.machine_uuid = None
        slot.released_at = datetime.now(UTC)
        session.flush()


def address(settings: Settings, slot: MachineSlot) -> str:
    """The slot's address with the network's prefix length, as cloud-init takes it: 192.168.100.10/24."""
    return f"{slot.ip}/{settings.machine_network.prefixlen}"


def _new(session: Session, settings: Settings) -> MachineSlot:
    highest = session.scalar(select(func.max(MachineSlot.slot)))
    number = settings.first_slot if highest is None else max(highest + 1, settings.first_slot)
    network = settings.machine_network
    if number >= network.num_addresses - 1:
        raise NetworkFull(f"The machines' network {network} has no free address")
    ip = ipaddress.IPv4Address(int(network.network_address) + number)
    mac = ":".join(f"{byte:02X}" for byte in (*_MAC_PREFIX, *ip.packed))
    return MachineSlot(slot=number, ip=str(ip), mac=mac)
