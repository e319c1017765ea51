"""What a machine's agent says that it used, beside what the gateway has billed: a difference is said, never booked."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from autovibe.models import Machine

#: As the coding CLIs report it (the Messages API's names) -> the ledger's names.
COUNTS = {
    "input_tokens": ("input",),
    "output_tokens": ("output",),
    "cache_read_input_tokens": ("cache_read",),
    "cache_creation_input_tokens": ("cache_write_5m", "cache_write_1h"),
}
_BILLED = sa.text("""
SELECT key, sum(value::bigint)::bigint FROM resource_usage, jsonb_each_text(metadata -> 'tokens')
WHERE machine_uuid = :machine AND resource_type = 'money' AND jsonb_typeof(metadata -> 'tokens') = 'object'
GROUP BY key
""")


def compare(session: Session, machine: Machine) -> str | None:
    """Keep both on the machine (`resource_usage`); returns what is wrong when the agent has used more than was billed.

    Less is no wonder: a CLI does not count the calls of its helpers, nor what it did before it was resumed.
    """
    reported = _reported(machine)
    if not reported:
        return None
    by_kind = dict(session.execute(_BILLED, {"machine": machine.uuid}).all())
    billed = {name: sum(by_kind.get(kind, 0) for kind in kinds) for name, kinds in COUNTS.items() if name in reported}
    machine.resource_usage = {**machine.resource_usage, "reported_tokens": reported, "billed_tokens": billed}
    more = [f"{name} {reported[name]}, billed {billed[name]}" for name in reported if reported[name] > billed[name]]
    return f"Its agent reports more than the gateway has billed: {'; '.join(more)}" if more else None


def _reported(machine: Machine) -> dict[str, int]:
    usage: Any = ((machine.result or {}).get("details") or {}).get("usage")
    if not isinstance(usage, dict):
        return {}
    return {name: usage[name] for name in COUNTS if isinstance(usage.get(name), int) and usage[name] >= 0}
