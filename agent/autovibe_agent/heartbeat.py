"""Says every few seconds that this machine lives; hears what the hub wants."""

import logging
import threading
from collections.abc import Callable

from autovibe_agent.hub import Hub, HubRefused, HubUnreachable

log = logging.getLogger(__name__)


class Heartbeat:
    """Beats until stopped. Calls back with each answer, or with a refusal that ends this machine's identity.

    A hub that does not answer changes nothing: the work goes on, and the next beat is tried.
    """

    def __init__(
        self,
        hub: Hub,
        seconds: float,
        progress: Callable[[], str | None],
        on_answer: Callable[[dict], None],
        on_refused: Callable[[HubRefused], None],
    ):
        self._hub, self._seconds, self._progress = hub, seconds, progress
        self._on_answer, self._on_refused = on_answer, on_refused
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join(5)

    def _beat(self) -> None:
        while not self._end.is_set():
            try:
                body = {"status": "working", "progress": self._progress()}
                self._on_answer(self._hub.call("POST", "/agent/v1/heartbeat", body))
            except HubUnreachable as error:
                log.warning("hub does not answer: %s", error)
            except HubRefused as error:
                self._on_refused(error)
                if error.identity_is_over:
                    return
            self._end.wait(self._seconds)
