"""How long what machines leave with the hub is kept: as long as one of their checkpoints.

Its files are what a checkpoint's differences and the patches of its branches are read from. A machine that has ended,
whose checkpoints were removed, loses them; one that has left no checkpoint keeps them, for there is nothing else.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import delete, exists, func, select
from sqlalchemy.orm import Session

from autovibe import machine_files
from autovibe.models import Checkpoint, Machine, MachineFile
from autovibe.settings import Settings

log = logging.getLogger(__name__)

_THERE = ("pending", "verified", "missing", "pruning")


@dataclass(frozen=True)
class Kept:
    """What the hub keeps of machines: of how many, and how large it is."""

    machines: int
    size_bytes: int


def kept(session: Session) -> Kept:
    """What is recorded; the disk may have a machine's last file but one beside it."""
    machines = func.count(func.distinct(MachineFile.machine_uuid))
    row = session.execute(select(machines, func.coalesce(func.sum(MachineFile.size_bytes), 0))).one()
    return Kept(row[0], int(row[1]))


def collect(session: Session, settings: Settings) -> int:
    """Remove the files of machines whose checkpoints are gone, and what ended machines had not sent whole; how many."""
    removed = _without_checkpoints(session)
    # The files first: a row without them says so (NoFiles), and the next round removes it.
    for machine_uuid in removed:
        shutil.rmtree(machine_files.folder_of(settings, machine_uuid), ignore_errors=True)
    session.execute(delete(MachineFile).where(MachineFile.machine_uuid.in_(removed)))
    for machine_uuid in _ended(session, machine_files.incoming(settings)):
        shutil.rmtree(machine_files.incoming_folder_of(settings, machine_uuid), ignore_errors=True)
    if removed:
        log.info("the files of %d machines are removed: their checkpoints are", len(removed))
    return len(removed)


def _without_checkpoints(session: Session) -> list[UUID]:
    """Ended machines with files, that had checkpoints and have none any more."""
    mine = Checkpoint.creating_machine_uuid == Machine.uuid
    query = select(Machine.uuid).where(
        Machine.status == "terminated",
        exists().where(MachineFile.machine_uuid == Machine.uuid),
        exists().where(mine, Checkpoint.verification_status == "pruned"),
        ~exists().where(mine, Checkpoint.verification_status.in_(_THERE)),
    )
    return list(session.scalars(query.order_by(Machine.uuid)))


def _ended(session: Session, machines: list[UUID]) -> list[UUID]:
    query = select(Machine.uuid).where(Machine.uuid.in_(machines), Machine.status == "terminated")
    return list(session.scalars(query)) if machines else []
