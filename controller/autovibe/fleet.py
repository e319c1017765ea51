"""The fleet as Proxmox lists it, by one small Ansible run of `playbooks/meter.yml`."""

from __future__ import annotations

import logging
import shutil
from typing import Any
from uuid import uuid4

from autovibe import db, metering, processes, readings, runner
from autovibe.errors import AutovibeError
from autovibe.settings import Settings

log = logging.getLogger(__name__)

_READS = "autovibe.proxmox.usage_info"


class NoReading(AutovibeError):
    """The fleet cannot be read."""

    code = "no_reading"
    http_status = 503


def meter(settings: Settings) -> int | None:
    """Book what every VM that is due has used, each in a transaction of its own; returns how many were.

    None when none is due: then nothing is read.
    """
    with db.session_scope(settings) as session:
        due = metering.due(session, settings)
    if not due:
        return None
    reading, taken, failed = read(settings), 0, None
    for vm_id in due:
        try:
            taken += db.transact(settings, lambda session, vm=vm_id: metering.take(session, settings, vm, reading))
        except AutovibeError as error:
            log.error("VM %d cannot be booked: %s", vm_id, error)
            failed = failed or error
    if failed is not None:
        raise failed
    return taken


def read(settings: Settings) -> readings.Reading:
    """Every VM of ours in one call. Raises NoReading with Ansible's reason."""
    said: list[dict[str, Any]] = []

    def note(event: dict[str, Any]) -> None:
        data = event.get("event_data") or {}
        action = data.get("resolved_action") or data.get("task_action")
        if event.get("event", "").startswith("runner_on_") and action == _READS:
            said.append(data.get("res") or {})

    run = runner.Run(settings, uuid4(), "meter")
    try:
        run.prepare()
        run.write_inventory([])
        outcome = run.execute(note)
    finally:
        # Ansible's workers outlive a runner that was ended.
        processes.end_run(run.uuid, grace=0)
        shutil.rmtree(run.folder, ignore_errors=True)
    if outcome.rc == 0 and said and "usage" in said[-1]:
        return readings.reading_of(said[-1])
    reason = (said[-1].get("msg") if said else None) or outcome.tail.strip() or f"Ansible ended with {outcome.rc}"
    raise NoReading(f"The fleet cannot be read: {' '.join(str(reason).split())[-500:]}", "")
