"""The guest agent (qemu-ga) over its virtio-serial port: one request at a time, resynchronised after a timeout."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

from autovibe_lab.guest import AgentError

#: The agent's largest answer: a file read of 48 MB, in base64.
LONGEST_LINE = 72 * 1024 * 1024
#: Flushes the agent's parser, and stands before the answer to `guest-sync-delimited`.
DELIMITER = b"\xff"


class AgentChannel:
    """The host's end of a guest agent's port: a unix socket that QEMU listens on, for one client at a time.

    The protocol has no ids: an answer that comes after its request's timeout would be taken for the next request's.
    So such a connection is dropped, and a new one begins with `guest-sync-delimited`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._turn = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call(self, command: str, arguments: dict | None = None, timeout: float = 5) -> object:
        """What stands under `return` in the agent's answer. The time spent waiting for one's turn counts."""
        try:
            async with asyncio.timeout(timeout), self._turn:
                return await self._call(command, arguments)
        except TimeoutError:
            raise AgentError(f"got timeout: the guest agent did not answer {command} within {timeout:g} s") from None
        except (OSError, asyncio.IncompleteReadError):
            raise AgentError("QEMU guest agent is not running") from None

    async def send(self, command: str, arguments: dict | None = None, timeout: float = 5) -> None:
        """For a command that has no answer when it succeeds (`guest-shutdown`)."""
        try:
            async with asyncio.timeout(timeout), self._turn:
                _, writer = await self._connected()
                writer.write(_message(command, arguments))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            raise AgentError("QEMU guest agent is not running") from None

    def close(self) -> None:
        """Drop the connection; QEMU then discards what the guest has not read yet."""
        if self._streams:
            self._streams[1].close()
            self._streams = None

    async def _call(self, command: str, arguments: dict | None) -> object:
        try:
            reader, writer = await self._connected()
            writer.write(_message(command, arguments))
            answer = json.loads(await reader.readuntil(b"\n"))
        except BaseException:  # a cancelled request, too, leaves an answer that nobody waits for
            self.close()
            raise
        if "error" in answer:
            raise AgentError(answer["error"]["desc"])
        return answer["return"]

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams and not self._streams[0].at_eof():
            return self._streams
        self.close()
        reader, writer = await asyncio.open_unix_connection(str(self.path), limit=LONGEST_LINE)
        try:
            number = random.randrange(1, 2**31)
            writer.write(DELIMITER + _message("guest-sync-delimited", {"id": number}))
            answer = None
            while answer != number:
                await reader.readuntil(DELIMITER)
                answer = json.loads(await reader.readuntil(b"\n")).get("return")
        except BaseException:
            writer.close()
            raise
        self._streams = reader, writer
        return self._streams


def _message(command: str, arguments: dict | None) -> bytes:
    message = {"execute": command} | ({"arguments": arguments} if arguments else {})
    return json.dumps(message).encode() + b"\n"
