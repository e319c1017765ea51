"""Chat completions: the request with a proven bound, and the usage that its answer reports.

The bound is that of `requests.py`, with what a chat template may write out again counted thrice over, or as it is
indented and escaped where that is longer. A call that names no bound of its output gets the provider's
default, for without one it would have none.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from typing import Any

from autovibe.gateway import chat_fields
from autovibe.gateway.errors import bad_request
from autovibe.gateway.metering import Meter, text_of
from autovibe.gateway.requests import MAX_OUTPUT, CheckedRequest, checked, serialize, whole_number
from autovibe.gateway.upstream import Provider

LIMITS = ("max_tokens", "max_completion_tokens")
_END_OF_EVENT = re.compile(rb"\r?\n\r?\n")


@dataclass(frozen=True)
class ChatRequest(CheckedRequest):
    """A chat completions request. `limit`: the field that bounds the output, `usage_asked`: the stream's usage too."""

    limit: str = LIMITS[0]
    usage_asked: bool = field(default=False)

    @property
    def max_tokens(self) -> int:
        return self.payload[self.limit]

    @property
    def thinking_budget(self) -> int | None:
        return None

    def lowered(self, max_tokens: int, useful: int) -> ChatRequest:
        if max_tokens >= self.max_tokens:
            return self
        payload = {**self.payload, self.limit: max_tokens}
        return replace(self, payload=payload, body=serialize(payload))

    def for_counting(self) -> bytes | None:
        return None

    def for_provider(self, provider: Provider) -> ChatRequest:
        """As this provider understands it: its field for the output's bound, and always the stream's usage."""
        asked = [self.payload[name] for name in LIMITS if self.payload.get(name) is not None]
        payload = {name: value for name, value in self.payload.items() if name not in LIMITS}
        payload[provider.max_tokens_field] = min(asked, default=provider.default_max_tokens)
        if self.streams:
            payload["stream_options"] = {"include_usage": True}
        else:
            payload.pop("stream_options", None)
        if self.images and provider.image_tokens is None:
            raise bad_request("messages: this provider's images have no known bound (setting image_tokens)")
        return replace(
            self,
            payload=payload,
            body=serialize(payload),
            limit=provider.max_tokens_field,
            input_bound=self.input_bound + self.images * (provider.image_tokens or 0),
        )


def check_chat(raw: bytes) -> ChatRequest:
    """The request of `POST /v1/chat/completions`; GatewayError (400) names the field that is wrong, and why."""
    payload, body, found, bound = checked(raw, chat_fields.chat_request)
    for name in LIMITS:
        if payload.get(name) is not None:
            whole_number(payload, name, 1, MAX_OUTPUT)
    asked = (payload.get("stream_options") or {}).get("include_usage")
    return ChatRequest(payload, body, bound + found.rewritten, found.images, usage_asked=bool(asked))


class ChatMeter(Meter):
    """The usage of a chat completion, kept in the form of the Messages API's."""

    def __init__(self) -> None:
        super().__init__()
        self._finished = False

    def read_message(self, body: bytes) -> None:
        self.started = True
        try:
            self._completion(json.loads(body))
        except ValueError:
            return
        self.complete = bool(self.usage)

    def event(self, name: str, data: Any) -> None:
        """Take one chunk. Usage before the chunk that ends the choice is a running count, not the final one."""
        if not isinstance(data, dict):
            return
        if data.get("error"):  # some servers have it in each chunk, as null
            self.failed = True
            return
        self.started = True
        choices = data.get("choices") or []
        self._finished |= any(isinstance(one, dict) and one.get("finish_reason") for one in choices)
        if self._completion(data) and self._finished:
            self.complete = True

    def end(self) -> None:
        """[DONE]: whatever the usage is now, it is final."""
        self.complete = bool(self.usage)

    def _completion(self, data: Any) -> bool:
        """Take what a completion, or a chunk of it, says; returns whether there was usage in it."""
        if not isinstance(data, dict):
            return False
        self.model = text_of(data.get("model")) or self.model
        self.message_id = text_of(data.get("id")) or self.message_id
        usage = data.get("usage")
        if not isinstance(usage, dict):
            return False
        self.reported = usage
        self.usage = counts_of(usage) | ({"service_tier": tier} if (tier := _dearer_tier(data)) else {})
        return True


def counts_of(usage: dict[str, Any]) -> dict[str, Any]:
    """A chat completion's usage in the Messages API's form; without the counts it is one that no price takes.

    Some servers leave the tokens of thinking out of `completion_tokens`, but not out of `total_tokens`.
    """
    details = usage.get("prompt_tokens_details")
    details = details if isinstance(details, dict) else {}
    cached, written = details.get("cached_tokens") or 0, details.get("cache_write_tokens") or 0
    prompt, output, total = usage.get("prompt_tokens"), usage.get("completion_tokens"), usage.get("total_tokens")
    if not all(type(one) is int for one in (prompt, output, cached, written)):
        return {"output_tokens": "missing"}
    if type(total) is int:
        output = max(output, total - prompt)
    counts = {"input_tokens": prompt - cached - written, "output_tokens": output, "cache_read_input_tokens": cached}
    return counts | ({"cache_creation_input_tokens": written} if written else {})


def _dearer_tier(data: dict[str, Any]) -> str | None:
    """The tier that a call was served at, where that is not the one that the prices are for."""
    tier = data.get("service_tier")
    return None if tier in (None, "", "default", "auto", "standard") else str(tier)[:40]


class ChatReader:
    """Feeds a meter from the bytes of a stream; passes whole events on, but for a usage that nobody asked for.

    A client that did not ask for it may stumble over the chunk without choices.
    """

    def __init__(self, meter: ChatMeter, request: ChatRequest) -> None:
        self._meter, self._keep_usage = meter, request.usage_asked
        self._rest = b""

    def feed(self, chunk: bytes) -> bytes:
        """Returns what the client gets."""
        self._rest += chunk
        passed, start = [], 0
        while end := _END_OF_EVENT.search(self._rest, start):
            event = self._rest[start : end.end()]
            start = end.end()
            if self._event(event):
                passed.append(event)
        self._rest = self._rest[start:]
        return b"".join(passed)

    def end(self) -> bytes:
        """The rest of a stream that ended without an empty line."""
        rest, self._rest = self._rest, b""
        return rest if rest and self._event(rest) else b""

    def _event(self, event: bytes) -> bool:
        """Take one event; returns whether the client is to see it."""
        lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
        data = b"\n".join(lines)
        if data == b"[DONE]":
            self._meter.end()
            return True
        try:
            chunk = json.loads(data)
        except ValueError:
            return True
        self._meter.event("", chunk)
        only_usage = isinstance(chunk, dict) and chunk.get("usage") and not chunk.get("choices")
        return self._keep_usage or not only_usage
