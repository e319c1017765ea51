"""What a test can make the demo model do to its next calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

KINDS = ("status", "drop", "delay", "slow", "cut", "usage")


@dataclass
class Fault:
    """For the next `count` calls.

    - status: answer `status` (529, 429, …) with `headers`; not billed;
    - drop: close the connection without an answer; not billed;
    - delay: wait `seconds`, then answer;
    - slow: wait `seconds` between the events of a stream;
    - cut: billed, then closed after `after_events` events (without an answer when not streaming);
    - usage: answer, with `usage` laid over the true one, on the bill too.
    """

    kind: str
    count: int = 1
    status: int = 529
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    after_events: int = 1
    usage: dict[str, Any] = field(default_factory=dict)

    @property
    def error_type(self) -> str:
        kinds = {
            400: "invalid_request_error",
            401: "authentication_error",
            429: "rate_limit_error",
            529: "overloaded_error",
        }
        return kinds.get(self.status, "api_error")


def parse_fault(given: Any) -> Fault:
    """The fault in a JSON object; ValueError or TypeError when it is none."""
    fault = Fault(**given)
    if fault.kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}")
    return fault
