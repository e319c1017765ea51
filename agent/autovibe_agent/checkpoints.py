"""Asks the hub for a checkpoint when it is time for one: never two at once, never in the way of the work."""

import logging
import threading
import time
from collections.abc import Callable

from autovibe_agent.hub import Hub, HubRefused, HubUnreachable
from autovibe_agent.workspace import Manifest

POLL_SECONDS = 1.0
GIVE_UP_SECONDS = 600.0
# At most one in so long, however many model calls are made.
FLOOR_SECONDS = 10.0

log = logging.getLogger(__name__)


class Checkpoints:
    """Due after so many seconds or so many model calls since the last one."""

    def __init__(
        self,
        hub: Hub,
        manifest: Manifest,
        every_seconds: float,
        every_calls: int,
        context: Callable[[], dict],
        floor_seconds: float = FLOOR_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ):
        self._hub, self._manifest, self._context = hub, manifest, context
        self._every_seconds, self._every_calls = every_seconds, every_calls
        self._floor_seconds, self._poll_seconds = min(floor_seconds, every_seconds), poll_seconds
        self._last_time, self._last_calls = time.monotonic(), 0
        self._under_way: threading.Thread | None = None

    def consider(self, api_calls: int) -> bool:
        """Starts a checkpoint when one is due; returns at once, and whether it did."""
        if self._under_way is not None and self._under_way.is_alive():
            return False
        age = time.monotonic() - self._last_time
        by_calls = api_calls - self._last_calls >= self._every_calls and age >= self._floor_seconds
        if not by_calls and age < self._every_seconds:
            return False
        why = f"after {api_calls - self._last_calls} model calls" if by_calls else f"after {age:.0f} seconds"
        self._last_time, self._last_calls = time.monotonic(), api_calls
        self._under_way = threading.Thread(target=self._ask, args=(why,), daemon=True)
        self._under_way.start()
        return True

    def _ask(self, why: str) -> None:
        """Asks for one and waits until it is verified or failed; a missed one is made up for by the next."""
        body = {
            "type": "automatic",
            "description": why,
            "context": self._context(),
            "manifest": self._manifest.take(),
        }
        try:
            uuid = self._hub.call("POST", "/agent/v1/checkpoints", body)["checkpoint"]
            end = time.monotonic() + GIVE_UP_SECONDS
            while time.monotonic() < end:
                status = self._hub.persist("GET", f"/agent/v1/checkpoints/{uuid}", seconds=60)["status"]
                if status != "pending":
                    log.info("checkpoint %s: %s", uuid, status)
                    return
                time.sleep(self._poll_seconds)
        except (HubRefused, HubUnreachable) as error:
            log.warning("no checkpoint: %s", error)
