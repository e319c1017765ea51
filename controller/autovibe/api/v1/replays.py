"""A POST with an Idempotency-Key is done once: again, it gets the answer that it got.

The answer is kept in the transaction of the change, so that both are there or neither, whenever the process dies. Two
at a time: the second one waits for the first at the key's row, for some seconds. A request that failed has changed
nothing and is remembered by nobody. Who may not do any more what the request did is not shown what it was answered.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from autovibe import jsonform
from autovibe.errors import Conflict, Invalid
from autovibe.models import RequestReplay

if TYPE_CHECKING:
    from autovibe.api.v1.calls import Answer, Call

KEPT = timedelta(hours=24)
#: How long a request waits for the one before it with its key. Each holds a connection to the database.
WAIT_SECONDS = 3
_LOCK_NOT_AVAILABLE = "55P03"
_FORM = re.compile(r"[\x21-\x7e]{1,255}")


class KeyReused(Conflict):
    """This Idempotency-Key was used for another request."""

    code = "idempotency_key_reused"
    default_hint = "Use a new key for each thing that you ask for."


class KeyInUse(Conflict):
    """A request with this Idempotency-Key is still under way."""

    code = "idempotency_key_in_use"
    default_hint = "Send it again in a moment: it is done once."


def once(call: Call, do: Callable[[], Answer]) -> Answer:
    """What `do` answers, or what it answered when this caller sent the same request with the same key."""
    from autovibe.api.v1.calls import Answer

    key = call.request.headers.get("idempotency-key")
    if key is None or call.request.method != "POST":
        return do()
    if not _FORM.fullmatch(key):
        raise Invalid("An Idempotency-Key has 1 to 255 visible ASCII characters")
    row = {"caller": call.caller.identity, "idempotency_key": key}
    fingerprint = _fingerprint(call)
    if not _claim(call.session, row, fingerprint):
        kept = call.session.scalars(select(RequestReplay).filter_by(**row)).one()
        if kept.fingerprint != fingerprint:
            raise KeyReused()
        call.require_again(kept.answer.get("needed", {}))
        return Answer(
            kept.answer["data"], kept.answer["status"], {**kept.answer["headers"], "Idempotency-Replayed": "true"}
        )
    answer = do()
    if not answer.once:
        call.session.execute(delete(RequestReplay).filter_by(**row))
        return answer
    data = answer.data if answer.remembered is None else answer.remembered
    kept_answer = {"data": jsonform.plain(data), "status": answer.status, "headers": answer.headers}
    kept_answer["needed"] = call.needed
    call.session.flush()
    call.session.execute(update(RequestReplay).filter_by(**row).values(answer=kept_answer))
    return answer


def _claim(session: Session, row: dict[str, str], fingerprint: str) -> bool:
    """Whether this is the first request with its key; KeyInUse while another one of it does not end."""
    wait = text("SELECT set_config('lock_timeout', :wait, true)")
    session.execute(wait, {"wait": f"{WAIT_SECONDS}s"})
    try:
        made = session.execute(insert(RequestReplay).values(**row, fingerprint=fingerprint).on_conflict_do_nothing())
    except OperationalError as error:
        if getattr(error.orig, "pgcode", None) != _LOCK_NOT_AVAILABLE:
            raise
        raise KeyInUse(retry_after=WAIT_SECONDS) from None
    session.execute(wait, {"wait": "0"})
    return bool(made.rowcount)


def forget(session: Session) -> int:
    """Drop what is older than a day; returns how many."""
    old = RequestReplay.created_at < func.now() - KEPT
    return session.execute(delete(RequestReplay).where(old)).rowcount


def _fingerprint(call: Call) -> str:
    request = call.request
    # Read and kept by Starlette before the function was called.
    body = getattr(request, "_body", b"")
    line = f"{request.method} {request.url.path}?{request.url.query}\n".encode()
    return hashlib.sha256(line + body).hexdigest()
