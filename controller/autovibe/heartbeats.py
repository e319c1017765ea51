"""A machine's heartbeat: that it lives, whether it is to go on, whether a checkpoint of it is due.

A fleet sends them all the time, so that they are one statement each, sent by the event loop itself on connections of
their own. A second one is asked only when money may make a checkpoint due.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from autovibe import agents, policies, tokens
from autovibe.async_db import Pool
from autovibe.settings import Settings

_NOTE = "SELECT note_heartbeat($1, $2, $3)"
_SPENT = (
    "SELECT coalesce(sum(cost_cad), 0) FROM resource_usage "
    "WHERE machine_uuid = $1 AND recorded_at > $2 AND resource_type = 'money'"
)


class Heartbeats:
    """One process's heartbeats. Its connections are opened by the first one."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        # Committed, but not waited for until it is on the disk: what a power cut takes is said again in seconds.
        self._pool = Pool(settings, "autovibe heartbeats", synchronous_commit="off")

    async def answer(self, token: str, progress: str | None) -> dict[str, Any]:
        """Note a heartbeat of the machine that shows this token; what it is told. BadToken, DatabaseUnreachable."""
        claims = tokens.claims_of(token, self.settings)
        noted = json.loads(await self._ask(_NOTE, claims.machine_uuid, claims.generation, progress))
        if noted["outcome"] != "noted":
            raise tokens.BadToken(tokens.ENDED if noted["outcome"] == "ended" else tokens.OLD)
        reason = _stop_reason(noted)
        expires_at = datetime.fromtimestamp(claims.expires_at, UTC)
        if claims.is_old:
            token, expires_at = tokens.issue_for(claims.machine_uuid, claims.generation, self.settings)
        asks = reason is None and noted["status"] != "checkpointing"
        return {
            "token": token,
            "expires_at": expires_at.isoformat(),
            "directive": "stop" if reason else "continue",
            "reason": reason,
            "api_calls": noted["api_calls"],
            "checkpoint": await self._due(claims, noted) if asks else None,
            "budget_fraction": noted["fraction"],
        }

    async def _due(self, claims: tokens.Claims, noted: Mapping[str, Any]) -> str | None:
        """Why the working machine is to be checkpointed now; None when it is not."""
        policy = policies.of(policies.of(policies.Making(), noted["policy"]), noted["own_policy"])
        mark = noted["checkpointed"]
        at = datetime.fromisoformat(mark["at"] if mark else noted["enrolled_at"] or noted["spawned_at"])
        called = noted["api_calls"] - (mark["calls"] if mark else 0)
        if reason := policies.due(policy, at, called):
            return reason
        if not noted["smallest"] or not policies.may_be_due_by_money(policy, at, called):
            return None
        spent = await self._ask(_SPENT, claims.machine_uuid, at)
        percent = 100 * spent / Decimal(str(noted["smallest"]))
        return f"after {policy.budget_percent} % of the budget" if percent >= policy.budget_percent else None

    async def _ask(self, query: str, *values: Any) -> Any:
        ((found,),) = await self._pool.fetch(query, *values)
        return found

    async def close(self) -> None:
        await self._pool.close()


def _stop_reason(noted: Mapping[str, Any]) -> str | None:
    """Why the machine is to stop now: its stop_reason, `budget`, `wall_limit`; None when it is to go on.

    A machine that is to be paused is not told to stop: its VM is, and it goes on later.
    """
    if noted["stop_requested_at"] is not None:
        return noted["stop_reason"] or "terminate"
    if (noted["fraction"] or 0) >= 1 and noted["when_exhausted"] != "pause":
        return "budget"
    if noted["enrolled_at"] is not None:
        wall = agents.wall_seconds(noted["limits"], noted["constraints"])
        end = datetime.fromisoformat(noted["enrolled_at"]) + timedelta(seconds=wall) + agents.WALL_GRACE
        if datetime.now(UTC) > end:
            return "wall_limit"
    return None
