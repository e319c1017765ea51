"""The APIs that the gateway speaks; what is different between them stands here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autovibe.gateway import upstream
from autovibe.gateway.chat import ChatMeter, ChatReader, check_chat
from autovibe.gateway.errors import ErrorForm, chat_form, messages_form
from autovibe.gateway.metering import Meter, StreamReader
from autovibe.gateway.requests import CheckedRequest, check_messages


@dataclass(frozen=True)
class Protocol:
    """One API: its path below a provider's root, and how its requests, answers and errors are read and written."""

    name: str
    path: str
    check: Callable[[bytes, int], CheckedRequest]
    meter: Callable[[], Meter]
    reader: Callable[[Any, Any], StreamReader | ChatReader]
    headers: Callable[[Mapping[str, str], upstream.Provider], dict[str, str]]
    error_form: ErrorForm


MESSAGES = Protocol(
    upstream.MESSAGES,
    "/messages",
    check_messages,
    Meter,
    lambda meter, request: StreamReader(meter),
    upstream.messages_headers,
    messages_form,
)
CHAT = Protocol(
    upstream.CHAT,
    "/chat/completions",
    lambda raw, searches: check_chat(raw),
    ChatMeter,
    ChatReader,
    upstream.chat_headers,
    chat_form,
)
