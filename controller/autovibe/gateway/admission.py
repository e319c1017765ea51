"""What one machine may have of this process, whatever it sends: requests, bytes of bodies, bytes in a second.

The limits of its calls stand in the database and hold for all processes, but a request is read and understood before
the database is asked, and one that is refused is no call.
"""

from __future__ import annotations

from collections import Counter
from uuid import UUID

from autovibe.api.limits import RateLimit, TooManyRequests
from autovibe.gateway.errors import too_many
from autovibe.settings import Settings

#: Of one machine's requests under way.
BODY_BYTES = 64 << 20
#: Reading JSON keeps a process from everything else.
BYTES_PER_SECOND, BURST_BYTES = 8 << 20, 256 << 20
#: Of what it may call in a minute: so often it may ask, also in vain.
REQUESTS = 2


class Admission:
    """The door of one process's gateway."""

    def __init__(self, settings: Settings) -> None:
        often = REQUESTS * settings.machine_calls_per_minute
        self.at_once = settings.machine_calls_at_once
        self.requests: Counter[UUID] = Counter()
        self.bytes: Counter[UUID] = Counter()
        self._often = RateLimit(often / 60, often) if often else None
        self._bytes = RateLimit(BYTES_PER_SECOND, BURST_BYTES)

    def enter(self, machine_uuid: UUID) -> Ticket:
        """One more request of the machine; GatewayError (429)."""
        if self.at_once and self.requests[machine_uuid] >= self.at_once:
            raise too_many("This machine has as many calls under way as it may", 1)
        if self._often is not None:
            _take(self._often, machine_uuid, 1, "This machine asks too often")
        return Ticket(self, machine_uuid)

    def take(self, machine_uuid: UUID, size: int) -> None:
        """So many bytes more of its bodies; GatewayError (429)."""
        if self.bytes[machine_uuid] + size > BODY_BYTES:
            raise too_many("The requests of this machine that are under way are too large together", 1)
        _take(self._bytes, machine_uuid, size, "This machine sends too much in a short time")


class Ticket:
    """One request's share, until it leaves."""

    def __init__(self, admission: Admission, machine_uuid: UUID) -> None:
        self._admission, self._machine, self._size = admission, machine_uuid, 0
        admission.requests[machine_uuid] += 1

    def take(self, size: int) -> None:
        """So many bytes more of its body; GatewayError (429)."""
        self._admission.take(self._machine, size)
        self._admission.bytes[self._machine] += size
        self._size += size

    def leave(self) -> None:
        for counter, share in ((self._admission.requests, 1), (self._admission.bytes, self._size)):
            counter[self._machine] -= share
            if counter[self._machine] <= 0:
                del counter[self._machine]


def _take(limit: RateLimit, machine_uuid: UUID, amount: float, message: str) -> None:
    try:
        limit.take(machine_uuid, amount)
    except TooManyRequests:
        raise too_many(message, 2) from None
