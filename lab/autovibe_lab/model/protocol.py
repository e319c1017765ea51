"""The Messages API's forms: checks of a request, usage, the message and its stream of events."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

from autovibe_lab.model import searches
from autovibe_lab.model.script import Answer

MODELS = ("claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5")
BYTES_PER_TOKEN = 4
CHUNK = 60


class BadRequest(Exception):
    """The request is not one that the Messages API takes."""

    def __init__(self, message: str, status: int = 400, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


def check(request: Any, *, counting: bool = False) -> dict[str, Any]:
    """The request, or `BadRequest` as the API words it."""
    if not isinstance(request, dict):
        raise BadRequest("the body must be a JSON object")
    model = request.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("model: Field required")
    if not model.startswith("claude-"):
        raise BadRequest(f"model: {model}", 404, "not_found_error")
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages: at least one message is required")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant", "system"):
            raise BadRequest(f"messages.{index}.role: expected user, assistant or system")
        if not isinstance(message.get("content"), str | list):
            raise BadRequest(f"messages.{index}.content: Field required")
    if not counting and (type(request.get("max_tokens")) is not int or request["max_tokens"] < 1):
        raise BadRequest("max_tokens: a whole number of at least 1 is required")
    _check_thinking(request, counting)
    return request


def _check_thinking(request: dict[str, Any], counting: bool) -> None:
    thinking = request.get("thinking") or {}
    budget = thinking.get("budget_tokens")
    if thinking.get("type") == "enabled" and not counting and not 1024 <= (budget or 0) < request["max_tokens"]:
        raise BadRequest("thinking.budget_tokens: must be at least 1024 and less than max_tokens")


def tokens(value: Any) -> int:
    """A plausible count, the same each time: a token for each four bytes of compact JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)


def input_tokens(request: dict[str, Any]) -> int:
    return tokens([request.get("system", ""), request.get("tools", []), request["messages"]])


def fit(reply: Answer, max_tokens: int) -> Answer:
    """The answer, cut where `max_tokens` cuts it."""
    left, kept = max_tokens, []
    for block in reply.blocks:
        size = _block_tokens(block)
        if size <= left:
            kept.append(block)
            left -= size
            continue
        if block["type"] == "text" and left:
            cut = block["text"].encode()[: left * BYTES_PER_TOKEN].decode("utf-8", "ignore")
            kept.append({"type": "text", "text": cut})
        return Answer(kept, "max_tokens")
    return Answer(kept, reply.stop_reason)


def _block_tokens(block: dict[str, Any]) -> int:
    if block["type"] == "web_search_tool_result":
        return 0  # The model has not written it.
    return tokens(block["text"]) if block["type"] == "text" else tokens(block["input"]) + tokens(block["name"])


def usage(request: dict[str, Any], reply: Answer) -> dict[str, Any]:
    """The usage of a call: with `cache_control`, all but the last message counts as written to or read from a cache.

    After each web search all is read once more, with what was found so far.
    """
    total = input_tokens(request)
    found = [tokens(block) for block in searches.results(reply.blocks)]
    again = sum(total + sum(found[: number + 1]) for number in range(len(found)))
    written = read = 0
    if ttl := _cache_ttl(request):
        known = request["messages"][:-1]
        answered = any(message["role"] == "assistant" for message in known)
        read = tokens([request.get("system", ""), request.get("tools", [])]) if answered else 0
        written = max(0, total - read - 3)
    hour = written if ttl == "1h" else 0
    return {
        "input_tokens": total - read - written + again,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "cache_creation": {"ephemeral_5m_input_tokens": written - hour, "ephemeral_1h_input_tokens": hour},
        "output_tokens": max(1, sum(_block_tokens(block) for block in reply.blocks)),
        "server_tool_use": {"web_search_requests": searches.billed(reply.blocks)} if found else None,
        "service_tier": "standard",
        "inference_geo": "global",
    }


def _cache_ttl(request: dict[str, Any]) -> str | None:
    """ "5m", "1h" or None: the longest `ttl` of any `cache_control` in the request."""
    found: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(mark := value.get("cache_control"), dict):
                found.add(str(mark.get("ttl", "5m")))
            for name, inner in value.items():
                if name not in ("input", "input_schema"):
                    walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk({name: request.get(name) for name in ("cache_control", "system", "tools", "messages")})
    return "1h" if "1h" in found else "5m" if found else None


def message(request: dict[str, Any], reply: Answer, used: dict[str, Any]) -> dict[str, Any]:
    """The whole message, as a call without `stream` gets it."""
    return {
        "id": f"msg_demo_{uuid.uuid4().hex[:20]}",
        "type": "message",
        "role": "assistant",
        "model": request["model"],
        "content": reply.blocks,
        "stop_reason": reply.stop_reason,
        "stop_sequence": None,
        "usage": used,
    }


def events(whole: dict[str, Any]) -> Iterator[bytes]:
    """The message as server-sent events, in the API's order; the counts of `message_delta` are cumulative."""
    begun = {**whole["usage"], "output_tokens": 1, "server_tool_use": None}
    yield sse("message_start", message={**whole, "content": [], "stop_reason": None, "usage": begun})
    yield sse("ping")
    for index, block in enumerate(whole["content"]):
        yield sse("content_block_start", index=index, content_block=_opened(block))
        for delta in _deltas(block):
            yield sse("content_block_delta", index=index, delta=delta)
        yield sse("content_block_stop", index=index)
    delta = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    final = {name: count for name, count in whole["usage"].items() if name.endswith(("_tokens", "_tool_use"))}
    yield sse("message_delta", delta=delta, usage=final)
    yield sse("message_stop")


def _opened(block: dict[str, Any]) -> dict[str, Any]:
    """The block as it begins: what is streamed is empty yet."""
    if block["type"] == "text":
        return {"type": "text", "text": ""}
    return {**block, "input": {}} if "input" in block else block


def _deltas(block: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if block["type"] == "text":
        for citation in block.get("citations", ()):
            yield {"type": "citations_delta", "citation": citation}
        for piece in _pieces(block["text"]):
            yield {"type": "text_delta", "text": piece}
    elif "input" in block:
        for piece in _pieces(json.dumps(block["input"])):
            yield {"type": "input_json_delta", "partial_json": piece}


def sse(event: str, **data: Any) -> bytes:
    return f"event: {event}\ndata: {json.dumps({'type': event, **data})}\n\n".encode()


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), CHUNK):
        yield text[start : start + CHUNK]
