"""How long the machines' requests took, model calls among them: what Prometheus reads of their listener.

That listener has several processes and tells nobody of itself. `autovibe up` names a folder to them, where they keep
their figures (prometheus_client's multiprocess mode), and the people's API reads it; without one each has its own.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autovibe.settings import Settings

#: Of one process: all routes, methods and statuses that there are take less.
FILE_BYTES = 1 << 20
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")

log = logging.getLogger(__name__)
guests = CollectorRegistry()
_seconds = Histogram(
    "autovibe_guest_duration_seconds",
    "Time from a machine's request to the end of its answer; of a model call, to the end of its stream.",
    ("method", "route", "status"),
    registry=guests,
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)


def add_guests(registry: CollectorRegistry, settings: Settings) -> None:
    """Add what those processes have kept since `autovibe up`."""
    if settings.metrics_dir.is_dir():
        MultiProcessCollector(registry, str(settings.metrics_dir))


def observe(histogram: Histogram, scope: Scope, status: int, seconds: float) -> None:
    """Count a request under its route's path, never under what it asked for."""
    path = getattr(scope.get("route"), "path", None) or "(none)"
    method = scope["method"] if scope["method"] in _METHODS else "(other)"
    histogram.labels(method, path, str(status)).observe(seconds)


class Measured:
    """Measures each request of the machines' listener."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._keeps = _has_room()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._keeps:
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, answer)
        finally:
            observe(_seconds, scope, status, time.perf_counter() - began)


def _has_room() -> bool:
    """Take the room for this process's figures: on a full disk, writing to its mapped file would kill it."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is None:
        return True
    path = Path(folder) / f"histogram_{os.getpid()}.db"
    try:
        with path.open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, FILE_BYTES)
    except OSError as error:
        log.warning("how long requests take is not kept: %s: %s", path, error.strerror)
        return False
    return True
