"""The chat completions API's forms: an OpenAI-style request read as a Messages request, the answer written back.

So the script knows one kind of conversation only, and the bill one kind of usage.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator
from typing import Any

from autovibe_lab.model.protocol import CHUNK, BadRequest, tokens
from autovibe_lab.model.script import Answer

DEFAULT_MAX_TOKENS = 4096
# qwen-code says "Error: (none)" of a command that went well.
FAILED = re.compile(r"\AError|Exit Code: [12]|Error: (?!\(none\))")
FINISH = {"end_turn": "stop", "tool_use": "tool_calls", "max_tokens": "length"}


def check(request: Any) -> dict[str, Any]:
    """The request, or `BadRequest` as such APIs word it."""
    if not isinstance(request, dict):
        raise BadRequest("the body must be a JSON object")
    if not isinstance(request.get("model"), str) or not request["model"]:
        raise BadRequest("you must provide a model parameter")
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages: at least one message is required")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in (
            "system",
            "developer",
            "user",
            "assistant",
            "tool",
        ):
            raise BadRequest(f"messages.{index}.role: not a role of this API")
    limit = max_tokens(request)
    if type(limit) is not int or limit < 1:
        raise BadRequest("max_tokens: a whole number of at least 1 is required")
    return request


def max_tokens(request: dict[str, Any]) -> Any:
    return request.get("max_completion_tokens") or request.get("max_tokens") or DEFAULT_MAX_TOKENS


def as_messages(request: dict[str, Any]) -> dict[str, Any]:
    """The same conversation as a Messages request."""
    system = [_text(one.get("content")) for one in request["messages"] if one["role"] in ("system", "developer")]
    messages: list[dict[str, Any]] = []
    for one in request["messages"]:
        if one["role"] in ("system", "developer"):
            continue
        if one["role"] == "tool":
            messages.append({"role": "user", "content": [_result(one)]})
        elif one["role"] == "assistant":
            messages.append(
                {"role": "assistant", "content": [_text_block(one), *map(_use, one.get("tool_calls") or [])]}
            )
        else:
            messages.append({"role": "user", "content": [_text_block(one)]})
    tools = [_tool(one.get("function") or {}) for one in request.get("tools") or []]
    return {
        "model": request["model"],
        "system": "\n".join(system),
        "messages": messages,
        "tools": tools,
        "max_tokens": max_tokens(request),
    }


def _tool(function: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": function.get("name"),
        "description": function.get("description", ""),
        "input_schema": function.get("parameters") or {},
    }


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text", "")) for part in content or [] if isinstance(part, dict))


def _text_block(message: dict[str, Any]) -> dict[str, Any]:
    return {"type": "text", "text": _text(message.get("content"))}


def _use(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    return {
        "type": "tool_use",
        "id": str(call.get("id", "")),
        "name": function.get("name"),
        "input": function.get("arguments", ""),
    }


def _result(message: dict[str, Any]) -> dict[str, Any]:
    """A tool's result. The API has no mark for a failed one: the text says so."""
    text = _text(message.get("content"))
    return {
        "type": "tool_result",
        "tool_use_id": str(message.get("tool_call_id", "")),
        "content": text,
        "is_error": FAILED.search(text) is not None,
    }


def usage(request: dict[str, Any], used: dict[str, Any]) -> dict[str, Any]:
    """The Messages API's usage of the call in this API's form; a prompt that was answered before counts as cached."""
    prompt = used["input_tokens"] + used["cache_read_input_tokens"] + used["cache_creation_input_tokens"]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": used["output_tokens"],
        "total_tokens": prompt + used["output_tokens"],
        "prompt_tokens_details": {"cached_tokens": used["cache_read_input_tokens"]},
    }


def with_cache(asked: dict[str, Any], used: dict[str, Any]) -> dict[str, Any]:
    """The usage as a provider that caches by itself counts it: system and tools are read from it after an answer."""
    if not any(message["role"] == "assistant" for message in asked["messages"]):
        return used
    read = min(used["input_tokens"], tokens([asked["system"], asked["tools"]]))
    return {**used, "input_tokens": used["input_tokens"] - read, "cache_read_input_tokens": read}


def completion(request: dict[str, Any], reply: Answer, used: dict[str, Any]) -> dict[str, Any]:
    """The whole answer, as a call without `stream` gets it."""
    text = "".join(block["text"] for block in reply.blocks if block["type"] == "text")
    calls = [_call(block) for block in reply.blocks if block["type"] == "tool_use"]
    message = {"role": "assistant", "content": text or None} | ({"tool_calls": calls} if calls else {})
    return {
        "id": f"chatcmpl-demo-{uuid.uuid4().hex[:20]}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": FINISH[reply.stop_reason], "logprobs": None}],
        "usage": usage(request, used),
    }


def _call(block: dict[str, Any]) -> dict[str, Any]:
    function = {"name": block["name"], "arguments": json.dumps(block["input"])}
    return {"id": block["id"], "type": "function", "function": function}


def chunks(whole: dict[str, Any], include_usage: bool) -> Iterator[bytes]:
    """The answer as server-sent events; with `include_usage` the last one has the usage and no choices."""
    choice = whole["choices"][0]
    yield _chunk(whole, include_usage, {"role": "assistant", "content": ""})
    for piece in _pieces(choice["message"]["content"] or ""):
        yield _chunk(whole, include_usage, {"content": piece})
    for index, call in enumerate(choice["message"].get("tool_calls", [])):
        opened = {**call, "index": index, "function": {"name": call["function"]["name"], "arguments": ""}}
        yield _chunk(whole, include_usage, {"tool_calls": [opened]})
        for piece in _pieces(call["function"]["arguments"]):
            part = {"index": index, "function": {"arguments": piece}}
            yield _chunk(whole, include_usage, {"tool_calls": [part]})
    yield _chunk(whole, include_usage, {}, choice["finish_reason"])
    if include_usage:
        yield _event({**_head(whole), "choices": [], "usage": whole["usage"]})
    yield b"data: [DONE]\n\n"


def _head(whole: dict[str, Any]) -> dict[str, Any]:
    return {"id": whole["id"], "object": "chat.completion.chunk", "created": whole["created"], "model": whole["model"]}


def _chunk(whole: dict[str, Any], include_usage: bool, delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return _event({**_head(whole), "choices": [choice]} | ({"usage": None} if include_usage else {}))


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), CHUNK):
        yield text[start : start + CHUNK]
