"""Asks the hub for checkpoints: when the hub says that one is due, beside the work; before a risky command, before it.

There are never two of a machine at once: the hub makes one of those that are asked for at the same time.
"""

import logging
import threading
import time
from collections.abc import Callable

from autovibe_agent.hub import Hub, HubRefused, HubUnreachable
from autovibe_agent.manifest import Manifest

POLL_SECONDS = 1.0
STANDING_POLL_SECONDS = 0.2
GIVE_UP_SECONDS = 600.0

log = logging.getLogger(__name__)


class Checkpoints:
    """The hub knows the policy, the model calls and the money; what stands in the workspace is known here."""

    def __init__(self, hub: Hub, manifest: Manifest, context: Callable[[], dict], poll_seconds: float = POLL_SECONDS):
        self._hub, self._manifest, self._context = hub, manifest, context
        self._poll_seconds = poll_seconds
        self._under_way: threading.Thread | None = None

    def consider(self, why: str | None) -> bool:
        """Starts a checkpoint when there is a reason for one; returns at once, and whether it did."""
        if not why or (self._under_way is not None and self._under_way.is_alive()):
            return False
        self._under_way = threading.Thread(target=self._ask, args=(why,), daemon=True)
        self._under_way.start()
        return True

    def before(self, why: str, seconds: float) -> str | None:
        """Has one made while the CLI waits for it; None once it is there, else what it failed by, after `seconds`."""
        done, said = threading.Event(), []

        def ask() -> None:
            said.append(self._ask(why, standing=True))
            done.set()

        # In a thread of its own: a hub that is silent, or a large workspace, is to hold the CLI no longer than so.
        threading.Thread(target=ask, daemon=True).start()
        return said[0] if done.wait(seconds) else f"it was not made within {seconds:g} seconds"

    def _ask(self, why: str, standing: bool = False) -> str | None:
        """Asks for one and waits until it is there (None) or is not; a missed one is made up for by the next.

        `standing`: the CLI waits for it, so that the hub need not wait for a model call of it.
        """
        body = {
            "type": "automatic",
            "description": why,
            "standing": standing,
            "context": self._context(),
            "manifest": self._manifest.take(),
        }
        try:
            uuid = self._hub.call("POST", "/agent/v1/checkpoints", body)["checkpoint"]
            end = time.monotonic() + GIVE_UP_SECONDS
            pause = STANDING_POLL_SECONDS if standing else self._poll_seconds
            while time.monotonic() < end:
                status = self._hub.persist("GET", f"/agent/v1/checkpoints/{uuid}", seconds=60)["status"]
                if status != "pending":
                    log.info("checkpoint %s: %s", uuid, status)
                    return None if status == "verified" else "it failed"
                time.sleep(pause)
        except (HubRefused, HubUnreachable) as error:
            log.warning("no checkpoint: %s", error)
            return f"the hub said {error.code}" if isinstance(error, HubRefused) else "the hub does not answer"
        return f"it was not made within {GIVE_UP_SECONDS:g} seconds"
