"""What a Messages request may contain: only what has a proven bound of its cost.

Each rule checks one value; a field without a rule is refused, with the reason where there is a known one. What a rule
lets pass as plain data costs at most one token per byte of the request (`bounds.py`); images and documents are
counted on the way, for their bytes say nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autovibe.gateway.errors import GatewayError, bad_request

IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
MAX_IMAGES = 600  # per request, the API's documented limit
MODEL_CHARACTERS = 200
#: The one tool of the provider's that a hub may allow. Newer ones run code as well, which costs besides.
WEB_SEARCH = "web_search_20250305"


@dataclass
class Found:
    """What was met on the way: media, whose tokens do not follow from bytes, and references to tools.

    `searches`: how many web searches the provider may make; `searched`: how many blocks come from earlier ones.
    `searches_most`: how many the hub allows; 0: web searches are as unknown as the provider's other tools.
    """

    images: int = 0
    documents: int = 0
    media_bytes: int = 0
    tool_references: int = 0
    largest_tool: int = 0
    rewritten: int = 0
    searches: int = 0
    searched: int = 0
    searches_most: int = 0

    def media(self, data: str) -> None:
        self.media_bytes += len(data)


Rule = Callable[[Any, str, Found], None]

NO_BOUND = {
    "mcp_servers": "the provider would run tools whose cost has no bound",
    "container": "code run at the provider has a price of its own",
    "speed": "fast mode has another price",
    "inference_geo": "a region has another price",
    "fallbacks": "another model has another price",
    "fallback": "another model has another price",
    "citations": "citations add tokens that cannot be counted beforehand",
    "task_budget": "its cost has no documented bound",
    "allowed_callers": "code run at the provider has a price of its own",
}


def refuse(path: str, reason: str) -> GatewayError:
    return bad_request(f"{path}: {reason}. The gateway forwards only what it can put an upper bound on.")


def anything(value: Any, path: str, found: Found) -> None:
    """Plain data: at most one token per byte."""


def one_of(*allowed: Any) -> Rule:
    def rule(value: Any, path: str, found: Found) -> None:
        if value not in allowed:
            raise refuse(path, f"{value!r:.60} is not allowed here (allowed: {', '.join(map(str, allowed))})")

    return rule


def text(value: Any, path: str, found: Found) -> None:
    if not isinstance(value, str):
        raise bad_request(f"{path}: must be a string")


def model_name(value: Any, path: str, found: Found) -> None:
    """It is looked up, remembered and written down: nothing that the database cannot keep, and no book."""
    text(value, path, found)
    if not value.isprintable() or len(value) > MODEL_CHARACTERS:
        raise bad_request(f"{path}: must be at most {MODEL_CHARACTERS} printable characters")


def record(required: tuple[str, ...] = (), refusals: Mapping[str, str] | None = None, **rules: Rule) -> Rule:
    """An object with these fields and no others; `refusals` says why not, where there is more to say."""
    reasons = NO_BOUND if refusals is None else refusals

    def rule(value: Any, path: str, found: Found) -> None:
        if not isinstance(value, dict):
            raise bad_request(f"{path or 'the body'}: must be an object")
        for name in required:
            if value.get(name) is None:
                raise bad_request(f"{join(path, name)}: Field required")
        for name, inner in value.items():
            if name not in rules:
                raise refuse(
                    join(path, name), f"this field is not allowed: {reasons.get(name, 'it is not known here')}"
                )
            if inner is not None:
                rules[name](inner, join(path, name), found)

    return rule


def list_of(rule: Rule) -> Rule:
    def each(value: Any, path: str, found: Found) -> None:
        if not isinstance(value, list):
            raise bad_request(f"{path}: must be a list")
        for index, inner in enumerate(value):
            rule(inner, join(path, index), found)

    return each


def by_type(reason: str, **rules: Rule) -> Rule:
    """An object whose `type` names its rule; other types are refused."""

    def rule(value: Any, path: str, found: Found) -> None:
        if not isinstance(value, dict):
            raise bad_request(f"{path}: must be an object")
        kind = value.get("type")
        if not isinstance(kind, str) or kind not in rules:
            raise refuse(join(path, "type"), f"{kind!r:.60} is not allowed: {reason}")
        rules[kind](value, path, found)

    return rule


def or_text(rule: Rule) -> Rule:
    def either(value: Any, path: str, found: Found) -> None:
        if not isinstance(value, str):
            rule(value, path, found)

    return either


def join(path: str, name: str | int) -> str:
    return f"{path}.{name}" if path else str(name)


# The rules, from the inside out.

# `scope` only says who shares the cache; a write is paid at the 1-hour rate at most, which is what is reserved.
cache_control = record(type=one_of("ephemeral"), ttl=one_of("5m", "1h"), scope=anything)


def base64_image(value: dict[str, Any], path: str, found: Found) -> None:
    record(("data",), type=anything, media_type=one_of(*IMAGE_TYPES), data=text)(value, path, found)
    found.images += 1
    found.media(value["data"])
    if found.images > MAX_IMAGES:
        raise bad_request(f"{path}: more than {MAX_IMAGES} images")


def base64_document(value: dict[str, Any], path: str, found: Found) -> None:
    record(("data",), type=anything, media_type=one_of("application/pdf"), data=text)(value, path, found)
    found.documents += 1
    found.media(value["data"])


INLINE_ONLY = "only content inside the request has a known size; send it as base64"
image_source = by_type(INLINE_ONLY, base64=base64_image)
text_block = record(("text",), type=anything, text=text, cache_control=cache_control)
image_block = record(("source",), type=anything, source=image_source, cache_control=cache_control)
document_source = by_type(
    INLINE_ONLY,
    base64=base64_document,
    text=record(("data",), type=anything, media_type=one_of("text/plain"), data=text),
    content=record(
        ("content",),
        type=anything,
        content=or_text(list_of(by_type("a document holds text and images", text=text_block, image=image_block))),
    ),
)
document_block = record(
    ("source",),
    type=anything,
    source=document_source,
    title=text,
    context=text,
    citations=record(enabled=one_of(False)),
    cache_control=cache_control,
)


def tool_reference(value: dict[str, Any], path: str, found: Found) -> None:
    record(type=anything, tool_name=text, name=text, cache_control=cache_control)(value, path, found)
    found.tool_references += 1


result_content = list_of(
    by_type(
        "its cost has no bound in a tool's result",
        text=text_block,
        image=image_block,
        document=document_block,
        tool_reference=tool_reference,
    )
)


def custom_tool(value: Any, path: str, found: Found) -> None:
    """A tool that the client runs itself. Anthropic's own (web_search_…, code_execution_…, …) name a `type`."""
    if isinstance(value, dict) and value.get("type", "custom") not in (None, "custom"):
        raise refuse(join(path, "type"), f"{value['type']!r:.60} is not allowed: the provider's own tools cost extra")
    record(
        ("name",),
        type=anything,
        name=text,
        description=text,
        input_schema=anything,
        input_examples=anything,
        cache_control=cache_control,
        strict=anything,
        defer_loading=anything,
        eager_input_streaming=anything,
        allowed_callers=one_of(["direct"]),
    )(value, path, found)
    found.largest_tool = max(found.largest_tool, size_of(value))


def web_search(value: dict[str, Any], path: str, found: Found) -> None:
    """The provider's own search: its price and its steps are bounded by `max_uses`."""
    record(
        ("name", "max_uses"),
        type=anything,
        name=one_of("web_search"),
        max_uses=anything,
        allowed_domains=list_of(text),
        blocked_domains=list_of(text),
        user_location=anything,
        cache_control=cache_control,
    )(value, path, found)
    uses = value["max_uses"]
    if type(uses) is not int or uses < 1:
        raise bad_request(f"{path}.max_uses: must be a whole number above 0")
    found.searches += uses
    if found.searches > found.searches_most:
        raise refuse(f"{path}.max_uses", f"this hub allows {found.searches_most} web searches in a call")


def any_tool(value: Any, path: str, found: Found) -> None:
    searches = found.searches_most and isinstance(value, dict) and value.get("type") == WEB_SEARCH
    (web_search if searches else custom_tool)(value, path, found)


def size_of(value: Any) -> int:
    """At least the bytes of the value's JSON text."""
    return len(repr(value).encode("utf-8", "surrogatepass")) + 16


changed_tool = by_type(
    "a tool is referred to by its name or defined here",
    tool_reference=tool_reference,
    tool_definition=record(("definition",), type=anything, definition=custom_tool),
)
direct = record(type=one_of("direct"))
tool_use = record(type=anything, id=text, name=text, input=anything, cache_control=cache_control, caller=direct)
BLOCKS: dict[str, Rule] = {
    "text": text_block,
    "image": image_block,
    "document": document_block,
    "tool_use": tool_use,
    "tool_result": record(
        type=anything,
        tool_use_id=text,
        content=or_text(result_content),
        is_error=anything,
        cache_control=cache_control,
    ),
    "thinking": record(type=anything, thinking=text, signature=text),
    "redacted_thinking": record(type=anything, data=text),
    "tool_addition": record(("tool",), type=anything, tool=changed_tool, cache_control=cache_control),
    "tool_removal": record(("tool",), type=anything, tool=changed_tool, cache_control=cache_control),
}


def of_search(rule: Rule) -> Rule:
    """Something that an earlier web search has left in the conversation: its tokens do not follow from its bytes."""

    def counted(value: Any, path: str, found: Found) -> None:
        rule(value, path, found)
        found.searched += 1

    return counted


NO_BLOCK = "its cost has no bound known here"
plain_block = by_type(NO_BLOCK, **BLOCKS)
searched_block = by_type(
    NO_BLOCK,
    **BLOCKS
    | {
        "text": record(
            ("text",),
            type=anything,
            text=text,
            cache_control=cache_control,
            citations=list_of(of_search(by_type("only of web searches", web_search_result_location=anything))),
        ),
        "server_tool_use": of_search(
            record(
                type=anything,
                id=text,
                name=one_of("web_search"),
                input=anything,
                cache_control=cache_control,
                caller=direct,
            )
        ),
        "web_search_tool_result": of_search(
            record(type=anything, tool_use_id=text, content=anything, cache_control=cache_control, caller=direct)
        ),
    },
)


def content_block(value: Any, path: str, found: Found) -> None:
    (searched_block if found.searches_most else plain_block)(value, path, found)


output_config = record(
    effort=anything,
    format=by_type("only json_schema is known here", json_schema=record(type=anything, schema=anything)),
)
message = record(
    ("role", "content"),
    role=one_of("user", "assistant", "system"),
    content=or_text(list_of(content_block)),
    output_config=output_config,
)
# Edits that only leave out what the request holds. `compact_…` lets the model write a summary that is billed besides.
context_edit = by_type(
    "only edits that clear content have a known cost",
    clear_thinking_20251015=record(type=anything, keep=anything),
    clear_tool_uses_20250919=record(
        type=anything,
        trigger=anything,
        keep=anything,
        clear_at_least=anything,
        exclude_tools=anything,
        clear_tool_inputs=anything,
    ),
)
COMMON: dict[str, Rule] = {
    "model": model_name,
    "messages": list_of(message),
    "system": or_text(list_of(by_type("a system prompt is text", text=text_block))),
    "tools": list_of(any_tool),
    "tool_choice": record(type=one_of("auto", "any", "tool", "none"), name=text, disable_parallel_tool_use=anything),
    "thinking": record(type=one_of("enabled", "adaptive", "disabled"), budget_tokens=anything, display=anything),
    "context_management": record(edits=list_of(context_edit)),
    "output_config": output_config,
    "cache_control": cache_control,
    "speed": one_of("standard"),
}
messages_request = record(
    ("model", "messages", "max_tokens"),
    **COMMON,
    max_tokens=anything,
    metadata=record(user_id=anything),
    stop_sequences=list_of(text),
    stream=one_of(True, False),
    temperature=anything,
    top_k=anything,
    top_p=anything,
    service_tier=one_of("standard_only", "auto"),
)
count_tokens_request = record(("model", "messages"), **COMMON)
COUNTED_FIELDS = frozenset(COMMON)
