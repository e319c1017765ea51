"""QEMU's monitor (QMP) over a unix socket: commands, and the events that a guest's state hangs on."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path

#: A line of QMP is short; `query-` answers of a large guest are not.
LONGEST_LINE = 16 * 1024 * 1024


class QmpError(Exception):
    """The monitor refused a command, or is gone."""


class Qmp:
    """One connection to a monitor; QEMU serves one at a time. `on_event` gets each event's name and data."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_event: Callable[[str, dict], None] = lambda name, data: None,
    ) -> None:
        self._reader, self._writer, self._on_event = reader, writer, on_event
        self._answers: dict[int, asyncio.Future] = {}
        self._ids = itertools.count(1)
        self._task: asyncio.Task | None = None

    @classmethod
    async def connect(cls, path: Path, on_event: Callable[[str, dict], None] = lambda name, data: None) -> Qmp:
        """Connect and negotiate. Raises OSError while nobody listens, QmpError when the monitor hangs up."""
        reader, writer = await asyncio.open_unix_connection(str(path), limit=LONGEST_LINE)
        qmp = cls(reader, writer, on_event)
        try:
            if not await reader.readline():
                raise QmpError("the monitor is gone")
            qmp._task = asyncio.create_task(qmp._read(), name=f"qmp {path}")
            await qmp.execute("qmp_capabilities")
        except BaseException:
            await qmp.close()
            raise
        return qmp

    async def execute(self, command: str, **arguments: object) -> object:
        """Run one command; `_` in the names of arguments stands for QMP's `-`."""
        number = next(self._ids)
        message: dict = {"execute": command, "id": number}
        if arguments:
            message["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
        if self._task is None or self._task.done():
            raise QmpError("the monitor is gone")
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(json.dumps(message).encode() + b"\n")
            return await answer
        finally:
            self._answers.pop(number, None)

    async def run_job(self, command: str, job_id: str, **arguments: object) -> None:
        """Run a command that starts a job and wait for the job's end."""
        await self.execute(command, job_id=job_id, **arguments)
        delay = 0.01
        while True:
            job = next((job for job in await self.execute("query-jobs") if job["id"] == job_id), None)
            if job is None or job["status"] == "concluded":
                break
            await asyncio.sleep(delay)
            delay = min(delay * 1.5, 0.25)
        if job is not None:
            await self.execute("job-dismiss", id=job_id)
            if job.get("error"):
                raise QmpError(job["error"])

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _read(self) -> None:
        try:
            while line := await self._reader.readline():
                message = json.loads(line)
                if "event" in message:
                    self._on_event(message["event"], message.get("data", {}))
                elif (answer := self._answers.get(message.get("id"))) and not answer.done():
                    if "error" in message:
                        answer.set_exception(QmpError(message["error"]["desc"]))
                    else:
                        answer.set_result(message["return"])
        except (OSError, ValueError):
            pass  # a monitor that speaks no more is gone
        finally:
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(QmpError("the monitor is gone"))
