"""Usage as the provider reports it, read from an answer or from a stream of events as it passes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Meter:
    """What is known of a call's usage, in the Messages API's form (`reported`: in the API's own, if that is another).

    `started`: the provider has begun to answer, so it bills; `failed`: it has said that it cannot; `complete`: the
    usage is final. In a stream, `message_start` has the input's counts and each `message_delta` replaces counts by
    cumulative ones.
    """

    usage: dict[str, Any] = field(default_factory=dict)
    reported: dict[str, Any] | None = None
    model: str | None = None
    message_id: str | None = None
    started: bool = False
    failed: bool = False
    complete: bool = False

    def read_message(self, body: bytes) -> None:
        """Take the usage of an answer that is not streamed; an answer that is not understood stays incomplete."""
        self.started = True
        try:
            message = json.loads(body)
        except ValueError:
            return
        self._message(message)
        self.complete = self._has_counts()

    def _message(self, message: Any) -> None:
        if not isinstance(message, dict):
            return
        self.model = text_of(message.get("model"))
        self.message_id = text_of(message.get("id"))
        self._counts(message.get("usage"))

    def _counts(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self.usage.update({name: value for name, value in usage.items() if value is not None})

    def _has_counts(self) -> bool:
        return type(self.usage.get("input_tokens")) is int and type(self.usage.get("output_tokens")) is int

    def event(self, name: str, data: Any) -> None:
        """Take one event of a stream."""
        if not isinstance(data, dict):
            return
        if name == "message_start":
            self.started = True
            self._message(data.get("message"))
        elif name == "message_delta":
            usage = data.get("usage")
            self._counts(usage)
            # It comes after the last content block, so its count is final; that of the start is none of the answer.
            counted = isinstance(usage, dict) and type(usage.get("output_tokens")) is int
            self.complete = self.started and counted and self._has_counts()
        elif name == "error":
            self.failed = True


#: Also those without a name: it may come after the data, or stand in it only.
_NEEDED = {"message_start", "message_delta", "error", ""}


class StreamReader:
    """Feeds a `Meter` from the bytes of a `text/event-stream`, however they are cut into chunks."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._rest = b""
        self._event = ""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> bytes:
        """Returns what the client gets: all of it."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._line(line.removesuffix(b"\r"))
        return chunk

    def end(self) -> bytes:
        return b""

    def _line(self, line: bytes) -> None:
        if not line:
            self._dispatch()
        elif line.startswith(b"event:"):
            self._event = line[6:].strip().decode("utf-8", "replace")
        elif line.startswith(b"data:") and self._event in _NEEDED:
            self._data.append(line[5:])

    def _dispatch(self) -> None:
        if self._data:
            try:
                data = json.loads(b"\n".join(self._data))
            except ValueError:
                data = None
            kind = data.get("type") if isinstance(data, dict) else None
            self._meter.event(self._event or str(kind), data)
        self._event, self._data = "", []


def text_of(value: Any) -> str | None:
    return value[:200] if isinstance(value, str) else None
