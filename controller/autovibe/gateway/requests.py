"""From the bytes that a machine sent to a call with a proven upper bound of its input tokens.

The bound of a call's input:

- text: a token is at least one byte, so the bytes of the request that is forwarded bound all that is text in it,
  structure and tool definitions included, in the longest of the forms in which a tokenizer may read it (`read_bytes`).
  The gateway forwards its own serialization of what it has checked; so a duplicate key or an odd encoding cannot make
  the provider read anything else.
- numbers: one that is forwarded with an exponent (1e+300) may be written out by the provider; each counts
  `NUMBER_TOKENS`, however long the client wrote it.
- images: at most `IMAGE_TOKENS` each, whatever their bytes (documented: larger ones are scaled down first).
- PDF documents: pages are not bounded by bytes, so the model's whole context window; `count_tokens` tightens it.
- a reference to a tool: at most the largest tool definition in the request.
- web searches, where the hub allows them: the provider runs the model again after each, on all that it has found so
  far, for at most `SEARCH_STEPS` times in all; each of them reads a whole context window at most. Each may also write
  `max_tokens`, which nothing says to hold for all of them together (`reserving.Bounds`).
- what the provider adds by itself (system prompts for tools, thinking, structured output): `OVERHEAD_TOKENS`.
- never more than the largest context window: a longer prompt is refused by the provider, unbilled.
"""

from __future__ import annotations

import json
import re
import unicodedata
import zlib
from dataclasses import dataclass, replace
from typing import Any, Literal

from autovibe.gateway import fields
from autovibe.gateway.errors import GatewayError, bad_request
from autovibe.gateway.upstream import Provider

MAX_BODY = 32 * 1024 * 1024  # the API's documented limit of a request
CONTEXT_TOKENS = 1_000_000  # the largest context window of any model that has a price here
IMAGE_TOKENS = 5_000  # documented: at most 4,784 for models with high-resolution images, ~1,600 for others
NUMBER_TOKENS = 400  # a double written out has at most 309 digits before the point, or 324 places after it
OVERHEAD_TOKENS = 2_048  # documented: at most 530 for tools; thinking and structured output add less than that each
SEARCH_STEPS = 11  # documented: the provider's own loop pauses after 10 rounds by default; one more, before the first
THINKING_MINIMUM = 1_024  # the API's smallest thinking.budget_tokens
MAX_OUTPUT = 1_000_000
MAX_VALUES = 500_000
#: Nothing is tried twice: one without an end goes to the end of the text, else it would be tried anew from each quote
#: in it; possessive, else each escape would be kept in memory to come back to.
_JSON_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)

_ASCII = re.compile(r"[\x00-\x7f]+")
#: Characters that are brought into a normal form together: sorting a long run of marks takes the square of its length.
NORMALIZED_CHARS = 128
#: Bytes that a composed letter is shorter by than what it is made of, at most: of one that is cut from its next marks.
CUT_BYTES = 8


@dataclass(frozen=True)
class CheckedRequest:
    """A request that may be forwarded, and the bound of its input tokens."""

    payload: dict[str, Any]
    body: bytes
    input_bound: int
    images: int = 0
    searches: int = 0

    @property
    def model(self) -> str:
        return self.payload["model"]

    @property
    def max_tokens(self) -> int:
        return self.payload["max_tokens"]

    @property
    def streams(self) -> bool:
        return bool(self.payload.get("stream"))

    @property
    def thinking_budget(self) -> int | None:
        thinking = self.payload.get("thinking") or {}
        return thinking.get("budget_tokens") if thinking.get("type") == "enabled" else None

    def least_output(self, useful: int) -> int:
        """The smallest `max_tokens` that still allows a useful answer."""
        least = useful + THINKING_MINIMUM if self.thinking_budget is not None else useful
        return min(least, self.max_tokens)

    def lowered(self, max_tokens: int, useful: int) -> CheckedRequest:
        """The same request with a smaller `max_tokens`, and a thinking budget that stays below it."""
        if max_tokens >= self.max_tokens:
            return self
        payload = {**self.payload, "max_tokens": max_tokens}
        budget = self.thinking_budget
        if budget is not None and budget >= max_tokens:
            room = max(THINKING_MINIMUM, max_tokens - useful)
            payload["thinking"] = {**payload["thinking"], "budget_tokens": min(budget, room)}
        return replace(self, payload=payload, body=serialize(payload))

    def for_provider(self, provider: Provider) -> CheckedRequest:
        """As this provider understands it."""
        return self

    def for_counting(self) -> bytes | None:
        """The body of a `count_tokens` request for it, where there is one that says what it will be."""
        if self.searches:
            return None
        return serialize({name: value for name, value in self.payload.items() if name in fields.COUNTED_FIELDS})


def check_messages(raw: bytes, searches: int = 0) -> CheckedRequest:
    """The request of `POST /v1/messages`, with so many web searches at most.

    GatewayError (400) names the field that is wrong, and why.
    """
    request = _messages(raw, fields.messages_request, searches)
    whole_number(request.payload, "max_tokens", 1, MAX_OUTPUT)
    if request.thinking_budget is not None or (request.payload.get("thinking") or {}).get("type") == "enabled":
        whole_number(request.payload["thinking"], "budget_tokens", THINKING_MINIMUM, MAX_OUTPUT, "thinking.")
    return request


def check_count_tokens(raw: bytes, searches: int = 0) -> CheckedRequest:
    """The request of `POST /v1/messages/count_tokens`."""
    return _messages(raw, fields.count_tokens_request, searches)


def _messages(raw: bytes, rule: fields.Rule, searches: int) -> CheckedRequest:
    payload, body, found, bound = checked(raw, rule, searches)
    bound += found.images * IMAGE_TOKENS + found.tool_references * found.largest_tool
    if found.documents:
        bound = CONTEXT_TOKENS
    bound = min(bound, CONTEXT_TOKENS)
    if found.searches:
        bound = SEARCH_STEPS * CONTEXT_TOKENS
    elif found.searched:
        # One that waits for the client's tools is run by the next call.
        raise fields.refuse("messages", "what web searches have left there is allowed together with their tool only")
    return CheckedRequest(payload, body, bound, found.images, found.searches)


def checked(raw: bytes, rule: fields.Rule, searches: int = 0) -> tuple[dict[str, Any], bytes, fields.Found, int]:
    """(payload, the body to forward, what was met, the bound of all its text)."""
    payload, exponents = parse(raw)
    found = fields.Found(searches_most=searches)
    try:
        rule(payload, "", found)
        body = serialize(payload)
    except RecursionError:
        raise bad_request("the body is nested too deeply") from None
    bound = read_bytes(body) - found.media_bytes + exponents * NUMBER_TOKENS + OVERHEAD_TOKENS
    return payload, body, found, bound


def read_bytes(body: bytes) -> int:
    """The bytes of a text in the longest of its forms: tokenizers may bring it into a normal form of Unicode first.

    A letter of 4 bytes becomes 12 by NFC (Qwen's), a ligature of 3 becomes 33 by NFKC (as Claude's published one did).
    """
    if body.isascii():
        return len(body)
    text = body.decode()
    forms = [form for form in ("NFC", "NFKC") if not unicodedata.is_normalized(form, text)]
    if not forms:
        return len(body)
    # ASCII stays as it is, or becomes shorter together with what follows it.
    rest = _ASCII.sub(" ", text)
    longest = max(_normal_bytes(form, rest) for form in forms)
    return len(body) + max(0, longest - len(rest.encode()))


def _normal_bytes(form: Literal["NFC", "NFKC"], text: str) -> int:
    """At least the bytes of the text's normal form. Marks after a cut may keep its letter from being composed."""
    starts = range(0, len(text), NORMALIZED_CHARS)
    pieces = (unicodedata.normalize(form, text[start : start + NORMALIZED_CHARS]) for start in starts)
    return sum(len(piece.encode()) for piece in pieces) + CUT_BYTES * (len(starts) - 1)


def parse(raw: bytes) -> tuple[Any, int]:
    """The JSON value, and how many of its numbers are written with an exponent, by us if not by the client."""
    exponents = 0

    def number(literal: str) -> float:
        nonlocal exponents
        value = float(literal)
        exponents += "e" in repr(value)
        return value

    def constant(name: str) -> float:
        raise ValueError(f"{name} is not JSON")

    if has_too_many_values(raw):
        raise bad_request(f"the body has more than {MAX_VALUES} values in it")
    try:
        return json.loads(raw, parse_float=number, parse_constant=constant), exponents
    except RecursionError:
        raise bad_request("the body is nested too deeply") from None
    except ValueError:
        raise bad_request("the body is not valid JSON") from None


def has_too_many_values(raw: bytes) -> bool:
    """Whether there are more lists, objects and items than `MAX_VALUES`: each takes many times its bytes of memory."""

    def counted(text: bytes) -> int:
        return text.count(b",") + text.count(b"[") + text.count(b"{")

    return counted(raw) > MAX_VALUES and counted(_JSON_STRING.sub(b"", raw)) > MAX_VALUES


def serialize(payload: Any) -> bytes:
    try:
        return json.dumps(payload, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except ValueError:  # a lone surrogate, or a number beyond a double
        raise bad_request("the body holds text that is not Unicode, or a number that is too large") from None


def decompress(raw: bytes, encoding: str) -> bytes:
    """The body without its Content-Encoding (identity or gzip), never more than `MAX_BODY`."""
    if encoding.strip().lower() in ("", "identity"):
        return raw
    if encoding.strip().lower() not in ("gzip", "x-gzip"):
        raise GatewayError(
            415, "invalid_request_error", f"Content-Encoding {encoding!r:.40} is not supported; use gzip"
        )
    inflater = zlib.decompressobj(wbits=31)
    try:
        body = inflater.decompress(raw, MAX_BODY + 1)
    except zlib.error:
        raise bad_request("the body is not valid gzip") from None
    if len(body) > MAX_BODY:
        raise too_large()
    if not inflater.eof or inflater.unused_data:
        raise bad_request("the body is not one whole gzip stream")
    return body


def too_large() -> GatewayError:
    return GatewayError(413, "request_too_large", f"the request is larger than {MAX_BODY // 2**20} MiB")


def whole_number(holder: dict[str, Any], name: str, least: int, most: int, prefix: str = "") -> None:
    value = holder.get(name)
    if type(value) is not int or not least <= value <= most:
        raise bad_request(f"{prefix}{name}: must be a whole number from {least} to {most}")
