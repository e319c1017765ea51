"""What Postgres notifies, for a process that has an event loop: who follows a machine is woken when it has news.

A notification says only that there is something to read. While the connection is away everybody is woken now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from autovibe import db
from autovibe.errors import AutovibeError
from autovibe.settings import Settings

log = logging.getLogger(__name__)

#: Channels that the database's triggers notify: a machine's uuid; operations; who may do what has changed.
MACHINES, OPERATIONS, ACCESS = "autovibe_machines", "autovibe_operations", "autovibe_access"
#: How long a dead connection may go unseen, and how often followers look without being woken.
CHECK_SECONDS = 10.0
_RETRY_MOST = 5.0


class Notifications:
    """Listens from `start` on. `on_access` is called when rights have changed, or may have while nobody listened."""

    def __init__(self, settings: Settings, on_access: Callable[[], None]) -> None:
        self.settings = settings
        self.connected = False
        self.stopping = False
        self._on_access = on_access
        self._followers: set[tuple[str | None, asyncio.Event]] = set()
        self._task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def following(self, machine: str | None) -> Iterator[asyncio.Event]:
        """An event that is set when this machine (None: any) may have news."""
        self.start()
        follower = (machine, asyncio.Event())
        self._followers.add(follower)
        try:
            yield follower[1]
        finally:
            self._followers.discard(follower)

    def start(self) -> None:
        """Listen from now on, if it does not yet."""
        if self._task is None:
            self._task = asyncio.create_task(self.run())

    def stop(self) -> None:
        """Listen no more, and let followers end."""
        self.stopping = True
        self._wake(None)
        if self._task is not None:
            self._task.cancel()

    async def run(self) -> None:
        """Until it is cancelled; a database that is away is tried again."""
        pause = 0.2
        while True:
            try:
                connection = await asyncio.to_thread(self._connect)
                pause = 0.2
                try:
                    await self._listen(connection)
                finally:
                    self._lost()
                    with contextlib.suppress(Exception):
                        connection.close()
            except (DBAPIError, AutovibeError, OSError) as error:
                log.warning("no notifications from the database, trying again: %s", error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _RETRY_MOST)

    def _connect(self) -> Any:
        connection = db.engine(self.settings).connect().execution_options(isolation_level="AUTOCOMMIT")
        for channel in (MACHINES, OPERATIONS, ACCESS):
            connection.execute(text(f"LISTEN {channel}"))
        connection.detach()
        return connection

    async def _listen(self, connection: Any) -> None:
        raw = connection.connection.dbapi_connection
        readable = asyncio.Event()
        loop = asyncio.get_running_loop()
        # Noted here: a connection that is found dead has none any more.
        descriptor = raw.fileno()
        loop.add_reader(descriptor, readable.set)
        try:
            # What changed before it listened was not heard.
            self._on_access()
            self.connected = True
            self._wake(None)
            while True:
                try:
                    await asyncio.wait_for(readable.wait(), CHECK_SECONDS)
                except TimeoutError:
                    await asyncio.to_thread(connection.execute, text("SELECT 1"))
                readable.clear()
                self._take(raw)
        finally:
            loop.remove_reader(descriptor)

    def _take(self, raw: Any) -> None:
        try:
            raw.poll()
        except Exception as error:
            raise AutovibeError(f"The database has closed the connection: {error}".strip()) from error
        heard = {(notify.channel, notify.payload) for notify in raw.notifies}
        raw.notifies.clear()
        if any(channel == ACCESS for channel, _ in heard):
            self._on_access()
        if any(channel == OPERATIONS for channel, _ in heard):
            self._wake(None)
        for channel, payload in heard:
            if channel == MACHINES:
                self._wake(payload)

    def _lost(self) -> None:
        self.connected = False
        self._on_access()
        self._wake(None)

    def _wake(self, machine: str | None) -> None:
        for wanted, event in self._followers:
            if machine is None or wanted is None or wanted == machine:
                event.set()
