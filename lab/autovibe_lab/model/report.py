"""The provider's usage report, from the demo model's own bill: `GET /v1/organizations/usage_report/messages`.

As Anthropic documents it (platform.claude.com, Usage and Cost API): buckets of one UTC day, grouped by model, in pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from autovibe_lab.model.protocol import BadRequest

DAYS, MOST_DAYS = 7, 31


def usage_report(lines: Iterable[Mapping[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """One page of the report. `lines`: the bill."""
    start = _day(query, "starting_at")
    end = _day(query, "ending_at") if "ending_at" in query else _midnight(datetime.now(UTC)) + timedelta(days=1)
    if query.get("bucket_width", "1d") != "1d":
        raise BadRequest("bucket_width: the demo model has 1d only")
    limit = int(query.get("limit", DAYS))
    if not 1 <= limit <= MOST_DAYS:
        raise BadRequest(f"limit: must be between 1 and {MOST_DAYS}")
    first = start + timedelta(days=int(query.get("page", "0")))
    days = [first + timedelta(days=number) for number in range(limit) if first + timedelta(days=number) < end]
    more = bool(days) and days[-1] + timedelta(days=1) < end
    buckets = [
        {"starting_at": _text(day), "ending_at": _text(day + timedelta(days=1)), "results": _results(lines, day)}
        for day in days
    ]
    return {"data": buckets, "has_more": more, "next_page": str((days[-1] - start).days + 1) if more else None}


def _results(lines: Iterable[Mapping[str, Any]], day: datetime) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        usage = line["usage"]
        if _midnight(datetime.fromisoformat(line["at"])) != day or "input_tokens" not in usage:
            continue
        written = usage.get("cache_creation") or {}
        sums = found.setdefault(
            line["model"],
            {
                "model": line["model"],
                "uncached_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
                "output_tokens": 0,
                "server_tool_use": {"web_search_requests": 0},
            },
        )
        sums["uncached_input_tokens"] += usage["input_tokens"]
        sums["cache_read_input_tokens"] += usage.get("cache_read_input_tokens") or 0
        for name in sums["cache_creation"]:
            sums["cache_creation"][name] += written.get(name) or 0
        sums["output_tokens"] += usage["output_tokens"]
        searches = (usage.get("server_tool_use") or {}).get("web_search_requests") or 0
        sums["server_tool_use"]["web_search_requests"] += searches
    return list(found.values())


def _day(query: Mapping[str, str], name: str) -> datetime:
    try:
        return _midnight(datetime.fromisoformat(query[name]))
    except KeyError:
        raise BadRequest(f"{name}: Field required") from None
    except ValueError:
        raise BadRequest(f"{name}: not an RFC 3339 timestamp") from None


def _midnight(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
