"""What a chat completions request may contain: only what has a proven bound of its cost.

The rules are those of `fields.py`. What a server's chat template may write out again in its own way (tool definitions,
calls, schemas: indented, escaped) is counted besides, in `Found.rewritten`.
"""

from __future__ import annotations

import json
from typing import Any

from autovibe.gateway.errors import bad_request
from autovibe.gateway.fields import (
    MAX_IMAGES,
    Found,
    Rule,
    anything,
    by_type,
    cache_control,
    list_of,
    model_name,
    one_of,
    or_text,
    record,
    size_of,
    text,
)

NO_BOUND = {
    "n": "each answer would cost as much as the first; ask again instead",
    "modalities": "sound has another price",
    "audio": "sound has another price",
    "prediction": "predicted tokens are billed beyond max_tokens",
    "web_search_options": "the provider's own tools cost extra",
    "store": "the provider would keep what is in it",
    "functions": "an old name; use tools",
    "function_call": "an old name; use tool_choice",
}
DATA_URL = "data:image/"
REWRITTEN_TIMES = 2  # besides the request's own bytes
INDENT = 4


def rewritten(rule: Rule) -> Rule:
    """What the rule lets pass, noting its size as text that may be written out again."""

    def noted(value: Any, path: str, found: Found) -> None:
        rule(value, path, found)
        found.rewritten += max(REWRITTEN_TIMES * size_of(value), written_out(value))

    return noted


def written_out(value: Any) -> int:
    """The bytes of the longest text that a template makes of a value: indented, escaped to ASCII, safe for HTML."""
    text = json.dumps(value)
    return len(text) + 5 * sum(text.count(sign) for sign in "<>&'") + _indentation(value, 1)


def _indentation(value: Any, depth: int) -> int:
    """The line ends and spaces of a value that begins in a line so deep, at four spaces for each level."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    own = (len(inner) * depth + depth - 1) * INDENT + len(inner) + 1 if inner else 0
    return own + sum(_indentation(one, depth + 1) for one in inner)


def image_url(value: Any, path: str, found: Found) -> None:
    record(("url",), url=text, detail=one_of("auto", "low", "high"))(value, path, found)
    if not value["url"].startswith(DATA_URL):
        raise bad_request(f"{path}.url: only an image inside the request (data:image/…;base64,…) has a known size")
    found.images += 1
    found.media(value["url"])
    if found.images > MAX_IMAGES:
        raise bad_request(f"{path}: more than {MAX_IMAGES} images")


text_part = record(("text",), type=anything, text=text, cache_control=cache_control)
content = or_text(
    list_of(
        by_type(
            "its cost has no bound known here",
            text=text_part,
            image_url=record(("image_url",), type=anything, image_url=image_url),
            refusal=record(type=anything, refusal=text),
        )
    )
)
tool_call = record(
    ("function",),
    id=text,
    type=one_of("function"),
    index=anything,
    function=record(("name",), name=text, arguments=text),
)
message = record(
    ("role",),
    role=one_of("system", "developer", "user", "assistant", "tool"),
    content=content,
    name=text,
    refusal=text,
    # What the model thought before, as some servers want it back.
    reasoning_content=text,
    reasoning=text,
    tool_calls=rewritten(list_of(tool_call)),
    tool_call_id=text,
)
function_tool = record(
    ("function",),
    type=one_of("function"),
    function=record(("name",), name=text, description=text, parameters=anything, strict=anything),
    cache_control=cache_control,
)
response_format = by_type(
    "only text, json_object and json_schema are known here",
    text=record(type=anything),
    json_object=record(type=anything),
    json_schema=record(type=anything, json_schema=rewritten(anything)),
)
chat_request = record(
    ("model", "messages"),
    refusals=NO_BOUND,
    model=model_name,
    messages=list_of(message),
    max_tokens=anything,
    max_completion_tokens=anything,
    stream=one_of(True, False),
    stream_options=record(include_usage=one_of(True, False)),
    tools=rewritten(list_of(function_tool)),
    tool_choice=anything,
    parallel_tool_calls=anything,
    response_format=response_format,
    n=one_of(1),
    stop=anything,
    seed=anything,
    temperature=anything,
    top_p=anything,
    top_k=anything,
    min_p=anything,
    presence_penalty=anything,
    frequency_penalty=anything,
    repetition_penalty=anything,
    logit_bias=anything,
    logprobs=anything,
    top_logprobs=anything,
    reasoning_effort=anything,
    verbosity=anything,
    enable_thinking=anything,
    chat_template_kwargs=record(enable_thinking=anything, thinking=anything),
    service_tier=one_of("default"),
    store=one_of(False),
    user=anything,
    metadata=anything,
)
