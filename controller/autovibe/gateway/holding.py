"""A machine's next model call waits while its checkpoint is made: so the snapshot falls between two messages.

A checkpoint that was asked for while a call was under way waits for that call's end in turn (`machines.checkpoint`);
the next call is the proof of it. Both waits are bounded, and nothing that goes wrong here stops a call.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select

from autovibe import budgets, policies
from autovibe.gateway.reserving import Caller, Transactions
from autovibe.models import Machine, Operation

log = logging.getLogger("autovibe.gateway")

POLL_SECONDS = 0.1


async def hold(db: Callable[..., Awaitable[Any]], caller: Caller) -> None:
    """Return when no checkpoint of the machine is under way, or after the policy's `hold_seconds`.

    `db` runs a function with transactions as its first argument. Costs nothing when the machine is not checkpointing.
    """
    if not caller.checkpointing:
        return
    began = time.monotonic()
    try:
        while time.monotonic() - began < await db(_seconds, caller.machine_uuid):
            await asyncio.sleep(POLL_SECONDS)
    except Exception:
        log.exception("holding a call of machine %s for its checkpoint failed; it goes on", caller.machine_uuid)


def _seconds(transactions: Transactions, machine_uuid: UUID) -> float:
    """How long the call is to be held, counted from its beginning; lets the checkpoint begin, for no message is open.

    A checkpoint that is older than twice the policy's limit holds nobody: its worker is away.
    """
    with transactions() as session:
        query = select(Operation).where(Operation.machine_uuid == machine_uuid, Operation.kind == "checkpoint")
        operation = session.scalars(
            query.where(Operation.status.in_(("queued", "running"))).order_by(Operation.seq).limit(1)
        ).first()
        if operation is None:
            return 0.0
        limit = policies.making(session, session.get_one(Machine, machine_uuid)).hold_seconds
        if (datetime.now(UTC) - operation.created_at).total_seconds() > 2 * limit:
            return 0.0
        if operation.status == "queued" and operation.not_before is not None:
            if budgets.has_call(session, machine_uuid):
                return 0.0  # another call is under way beside this one: waiting would not help
            operation.not_before = None
        return float(limit)
