"""The database of a hub that is up: there and migrated when it begins, and, when it is the embedded one, kept running.

The embedded server is nobody's child. When it is killed (the kernel was out of memory, say) nobody would start it
again: machines would work on, and nobody would watch what they cost.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

from autovibe.errors import DatabaseNotMigrated
from autovibe.settings import Settings

log = logging.getLogger(__name__)

CHECK_SECONDS, RETRY_MOST_SECONDS = 1.0, 30.0


def ensure(settings: Settings) -> None:
    """The embedded server runs (if it is the embedded one) and the schema is the newest."""
    from autovibe import db

    try:
        db.engine(settings)
    except DatabaseNotMigrated:
        db.upgrade(settings)
        db.engine(settings)
    # The children connect by themselves.
    db.dispose(settings)


def stop(settings: Settings) -> bool:
    """Stop the embedded server; False when it did not run, or is not ours to stop."""
    if settings.database_url:
        return False
    from autovibe import postgres

    return bool(postgres.stop(settings))


@contextlib.contextmanager
def kept_running(settings: Settings) -> Iterator[None]:
    """Start the embedded server again whenever it is gone, for as long as the context is open.

    From a thread of its own, which inherits the signals that are blocked: a start may take a minute.
    """
    if settings.database_url:
        yield
        return
    ended = threading.Event()
    keeper = threading.Thread(target=_keep, args=(settings, ended), name="database")
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()


def _keep(settings: Settings, ended: threading.Event) -> None:
    from autovibe import postgres

    server, pause = postgres.server(settings), CHECK_SECONDS
    while not ended.wait(pause):
        if server.postmaster() is not None:
            continue
        log.error("the database's server is gone; starting it again")
        try:
            server.start(make=False)
            pause = CHECK_SECONDS
        except Exception as error:
            log.error("the database's server: %s", error)
            pause = min(pause * 2, RETRY_MOST_SECONDS)
