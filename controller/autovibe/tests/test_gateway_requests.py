"""Which requests may be forwarded, and the bound of their input: no database, no server."""

from __future__ import annotations

import json
import sys
import time
import unicodedata
from decimal import Decimal

import pytest
from autovibe.gateway.errors import GatewayError
from autovibe.gateway.metering import Meter, StreamReader
from autovibe.gateway.requests import (
    CONTEXT_TOKENS,
    CUT_BYTES,
    IMAGE_TOKENS,
    MAX_BODY,
    NORMALIZED_CHARS,
    SEARCH_STEPS,
    check_messages,
    decompress,
    read_bytes,
)
from autovibe.gateway.reserving import largest
from autovibe.gateway.upstream import Provider, messages_headers
from hypothesis import given
from hypothesis import strategies as st

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 90_000}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0x"}}


def check(*content: object, **fields: object):
    messages = fields.pop("messages", [{"role": "user", "content": list(content) or "hello"}])
    return check_messages(json.dumps({"model": "m", "max_tokens": 4096, "messages": messages} | fields).encode())


def refusal(*content: object, **fields: object) -> str:
    with pytest.raises(GatewayError) as caught:
        check(*content, **fields)
    assert caught.value.status == 400
    return caught.value.message


#: The fields that Claude Code 2.1.330 was seen to send.
CLAUDE_CODE = {
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.330"},
        {"type": "text", "text": "You are a Claude agent.", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
    ],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "system",
            "content": [{"type": "text", "text": "# Environment"}],
            "output_config": {"effort": "medium"},
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "", "signature": "c2lnbmF0dXJl"},
                {"type": "redacted_thinking", "data": "ZGF0YQ=="},
                {"type": "tool_use", "id": "t1", "name": "Read", "input": {"file_path": "/workspace/a.py"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "1\tprint()", "is_error": False},
                {"type": "tool_result", "tool_use_id": "t2", "content": [IMAGE, PDF, {"type": "text", "text": "x"}]},
                {
                    "type": "tool_result",
                    "tool_use_id": "t3",
                    "content": [{"type": "tool_reference", "tool_name": "Late"}],
                },
            ],
        },
        {"role": "system", "content": [{"type": "tool_removal", "tool": {"type": "tool_reference", "name": "Late"}}]},
    ],
    "tools": [
        {"name": "Read", "description": "read", "input_schema": {"type": "object"}},
        {"name": "Late", "description": "later", "input_schema": {"type": "object"}, "defer_loading": True},
    ],
    "metadata": {"user_id": "{}"},
    "thinking": {"type": "adaptive", "display": "omitted"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "medium"},
    "stream": True,
}


def test_what_claude_code_sends_passes_unchanged():
    assert check(**CLAUDE_CODE).payload == {"model": "m", "max_tokens": 4096} | CLAUDE_CODE


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"mcp_servers": []}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"speed": "fast"}, "speed"),
        ({"inference_geo": "us"}, "inference_geo"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"something_new": 1}, "something_new"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"name": "x", "allowed_callers": ["code_execution_20250825"]}]}, "tools.0.allowed_callers"),
        ({"context_management": {"edits": [{"type": "compact_20260112"}]}}, "context_management.edits.0.type"),
        ({"output_config": {"task_budget": {"total": 1}}}, "output_config.task_budget"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"messages": "hello"}, "messages"),
    ],
)
def test_a_field_without_a_bound_is_refused_by_its_name(fields, named):
    assert named in refusal(**fields)


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
        {"type": "image", "source": {"type": "file", "file_id": "file_1"}},
        {"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}},
        PDF | {"citations": {"enabled": True}},
        {"type": "container_upload", "file_id": "file_1"},
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
        {"type": "mcp_tool_use", "id": "s", "name": "x", "input": {}},
        {"type": "search_result", "source": "x", "title": "x", "content": []},
        {"type": ["text"], "text": "x"},
        "hello",
    ],
)
def test_a_block_without_a_bound_is_refused(block):
    assert refusal(block).startswith("messages.0.content.0")
    inside = {"type": "tool_result", "tool_use_id": "t", "content": [block]}
    assert refusal(inside).startswith("messages.0.content.0.content.0")


SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 2}
FOUND = [
    {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "x"}},
    {"type": "web_search_tool_result", "tool_use_id": "s", "content": [{"type": "web_search_result", "url": "u"}]},
    {"type": "text", "text": "x", "citations": [{"type": "web_search_result_location", "url": "u"}]},
]


def searching(*content, searches=3, **fields):
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": [*content]}]
    body = {"model": "m", "max_tokens": 9, "messages": messages, "tools": [SEARCH]} | fields
    return check_messages(json.dumps(body).encode(), searches)


def test_web_searches_that_the_hub_allows_are_bounded_by_their_steps():
    found = searching(*FOUND)
    assert (found.searches, found.input_bound, found.for_counting()) == (2, SEARCH_STEPS * CONTEXT_TOKENS, None)
    assert found.payload["messages"][1]["content"] == FOUND


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tools": [SEARCH, SEARCH]}, "tools.1.max_uses: this hub allows 3 web searches"),
        ({"tools": [{**SEARCH, "max_uses": None}]}, "tools.0.max_uses: Field required"),
        ({"tools": [{**SEARCH, "max_uses": True}]}, "max_uses: must be a whole number above 0"),
        ({"tools": [{**SEARCH, "max_uses": -1}]}, "max_uses: must be a whole number above 0"),
        ({"tools": [{"type": SEARCH["type"], "name": "web_search"}]}, "tools.0.max_uses: Field required"),
        ({"tools": [{**SEARCH, "type": "web_search_20260209"}]}, "tools.0.type"),
        ({"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]}, "tools.0.type"),
        ({"tools": []}, "together with their tool only"),
        ({"searches": 0}, "messages.1.content.0.type"),
        ({"searches": 0, "tools": []}, "messages.1.content.0.type"),
    ],
)
def test_web_searches_without_a_bound_are_refused(fields, said):
    with pytest.raises(GatewayError) as refused:
        searching(*FOUND, **fields)
    assert (refused.value.status, said in refused.value.message) == (400, True), refused.value.message


@pytest.mark.parametrize(
    "block",
    [
        {"type": "server_tool_use", "id": "s", "name": "code_execution", "input": {}},
        {"type": "text", "text": "x", "citations": [{"type": "page_location"}]},
    ],
)
def test_other_server_tools_stay_refused_beside_web_searches(block):
    with pytest.raises(GatewayError, match=r"messages\.1\.content\.0"):
        searching(block)


def test_text_is_bounded_by_its_bytes():
    assert check({"type": "text", "text": "é" * 5000}).input_bound >= 10_000


def test_an_image_counts_as_the_largest_image_whatever_its_bytes():
    small = {"type": "image", "source": IMAGE["source"] | {"data": "AAAA"}}
    assert IMAGE_TOKENS < check(small).input_bound == check(IMAGE).input_bound < IMAGE_TOKENS + 3000


def test_a_pdf_counts_as_the_whole_context_window():
    assert check(PDF).input_bound == CONTEXT_TOKENS


def test_a_reference_counts_as_the_largest_tool():
    late = {"name": "Late", "description": "d" * 10_000, "input_schema": {}, "defer_loading": True}
    reference = {
        "type": "tool_result",
        "tool_use_id": "t",
        "content": [{"type": "tool_reference", "tool_name": "Late"}],
    }
    assert check(*[reference] * 5, tools=[late]).input_bound > 60_000


def test_numbers_that_grow_when_written_out_are_counted():
    assert check({"type": "tool_use", "id": "t", "name": "n", "input": {"a": [1e300] * 10}}).input_bound > 5000


@pytest.mark.parametrize("number", ["1" + "0" * 300 + ".0", "0." + "0" * 300 + "1", "1e300", "1E-300"])
def test_a_number_counts_as_it_is_forwarded_not_as_the_client_wrote_it(number):
    block = '{"type":"tool_use","id":"t","input":{"a":%s}}'
    body = f'{{"model":"m","max_tokens":9,"messages":[{{"role":"user","content":[{block}]}}]}}'
    plain, long = (check_messages((body % one).encode()) for one in ("1.5", f"[{','.join([number] * 10)}]"))
    assert long.input_bound - plain.input_bound > 10 * 300
    assert len(long.body) < len(plain.body) + 100


@pytest.mark.parametrize(("letter", "form", "most"), [("\U0001d160", "NFC", 12), ("\ufdfa", "NFKC", 33)])
def test_text_is_bounded_in_the_longest_form_that_a_tokenizer_reads(letter, form, most):
    assert len(unicodedata.normalize(form, letter).encode()) == most
    assert check({"type": "text", "text": letter * 1000}).input_bound >= most * 1000
    assert check({"type": "text", "text": "한글é—漢" * 1000}).input_bound < 15 * 1000 + 3000


@given(st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("ae=<\u0323\u0301\u0338ﷺ𝅘𝅥\U0001d160각가…"))))
def test_no_form_of_a_text_is_longer_than_its_bound(text):
    text *= 1 + NORMALIZED_CHARS // max(1, len(text))  # also over the cuts
    bound = read_bytes(text.encode())
    assert max(len(unicodedata.normalize(form, text).encode()) for form in ("NFC", "NFKC")) <= bound
    assert len(text.encode()) <= bound


def test_a_letter_that_is_cut_from_its_marks_is_not_counted_too_short():
    longest = 0
    for letter in map(chr, range(sys.maxunicode + 1)):
        parts = unicodedata.normalize("NFD", letter)
        if len(parts) > 1 and unicodedata.combining(parts[1]) and unicodedata.normalize("NFC", letter) == letter:
            longest = max(longest, len(parts.encode()) - len(letter.encode()))
    assert 0 < longest <= CUT_BYTES


@pytest.mark.parametrize("marks", ["\u0301\u0316", "\u0f73"])
def test_a_long_run_of_marks_is_bounded_in_no_more_time_than_other_text(marks):
    text = "α" * NORMALIZED_CHARS + marks * 50_000
    began = time.process_time()
    bound = read_bytes(text.encode())
    assert time.process_time() - began < 3
    assert len(text.encode()) <= bound < 4 * len(text.encode())


def test_only_what_was_checked_is_forwarded():
    twice = b'{"model":"m","max_tokens":1,"max_tokens":64,"messages":[{"role":"user","content":"hi"}]}'
    assert json.loads(check_messages(twice).body)["max_tokens"] == 64
    assert check_messages(twice).body.count(b"max_tokens") == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b'{"model":NaN}',
        b"[" * 200_000,
        b'{"model":"m","max_tokens":1,"messages":["\\ud800"]}',
    ],
)
def test_a_body_that_is_no_request_is_refused(raw):
    with pytest.raises(GatewayError) as caught:
        check_messages(raw)
    assert caught.value.status == 400


def test_a_body_that_unpacks_to_too_much_is_refused():
    import gzip

    with pytest.raises(GatewayError) as caught:
        decompress(gzip.compress(b" " * (MAX_BODY + 1)), "gzip")
    assert caught.value.status == 413


def test_a_lowered_request_keeps_its_thinking_budget_below_max_tokens():
    asked = check(max_tokens=64_000, thinking={"type": "enabled", "budget_tokens": 32_000})
    assert asked.least_output(256) == 1280
    for max_tokens in (1280, 5000, 32_000):
        payload = asked.lowered(max_tokens, 256).payload
        assert 1024 <= payload["thinking"]["budget_tokens"] < payload["max_tokens"] == max_tokens
    assert asked.lowered(64_000, 256) is asked


def test_the_largest_answer_that_fits_is_found():
    def bound(tokens: int) -> Decimal:
        return Decimal(100) + 3 * tokens

    assert largest(bound, Decimal(1000), 10, 5000) == 300
    assert largest(bound, Decimal(130), 10, 5000) == 10
    assert largest(bound, Decimal(129), 10, 5000) is None
    assert largest(bound, Decimal(10**9), 10, 5000) == 5000


def test_usage_is_read_however_a_stream_is_cut():
    stream = (
        b'event: message_start\r\ndata: {"message":{"model":"m","usage":{"input_tokens":7,"output_tokens":1}}}\r\n\r\n'
        b'event: content_block_delta\ndata: {"delta":{"text":"event: message_delta"}}\n\n'
        b'event: message_delta\ndata: {"usage":{"output_tokens":42,"input_tokens":null}}\n\n'
        b"event: message_stop\ndata: {}\n\n"
    )
    for size in (1, 3, 17, len(stream)):
        meter = Meter()
        reader = StreamReader(meter)
        for start in range(0, len(stream), size):
            reader.feed(stream[start : start + size])
        assert (meter.usage, meter.complete) == ({"input_tokens": 7, "output_tokens": 42}, True)


@pytest.mark.parametrize(
    "end", ["{}", '{"usage":null}', '{"usage":{"output_tokens":null}}', '{"usage":{"input_tokens":7}}']
)
def test_an_end_that_does_not_say_what_was_written_is_not_complete(end):
    meter = Meter()
    StreamReader(meter).feed(
        b'event: message_start\ndata: {"message":{"usage":{"input_tokens":7,"output_tokens":1}}}\n\n'
        b"event: message_delta\ndata: " + end.encode() + b"\n\nevent: message_stop\ndata: {}\n\n"
    )
    assert (meter.started, meter.complete) == (True, False)


def test_events_without_a_name_before_their_data_are_read():
    start, end = (
        b'data: {"type":"message_start","message":{"usage":{"input_tokens":7,"output_tokens":1}}}\n',
        b'data: {"type":"message_delta","usage":{"output_tokens":42}}\n',
    )
    for stream in (
        start + b"\n" + end + b"\n",
        start + b"event: message_start\n\n" + end + b"event: message_delta\n\n",
    ):
        meter = Meter()
        StreamReader(meter).feed(stream)
        assert (meter.usage, meter.complete) == ({"input_tokens": 7, "output_tokens": 42}, True)


def test_only_a_stream_that_says_so_has_failed():
    for stream, failed in ((b'event: error\ndata: {"type":"error"}\n\n', True), (b"event: ping\ndata: {}\n\n", False)):
        meter = Meter()
        StreamReader(meter).feed(stream)
        assert (meter.started, meter.failed) == (False, failed)


def test_a_stream_without_its_end_is_not_complete():
    meter = Meter()
    StreamReader(meter).feed(
        b'event: message_start\ndata: {"message":{"usage":{"input_tokens":7,"output_tokens":1}}}\n\n'
    )
    assert (meter.started, meter.complete) == (True, False)


def test_only_known_versions_and_betas_are_passed_on():
    to = Provider("anthropic", "https://provider/v1", "sk-secret", frozenset({"messages"}))
    given = {
        "anthropic-beta": "effort-2025-11-24, fast-mode-2026-02-01",
        "authorization": "Bearer machine",
        "cookie": "c",
    }
    for version in ("2023-06-01", "2026-10-21"):
        headers = messages_headers(given | {"anthropic-version": version}, to)
        assert (headers["anthropic-version"], headers["anthropic-beta"]) == (version, "effort-2025-11-24")
        assert headers["x-api-key"] == "sk-secret"
        assert not {"authorization", "cookie"} & set(headers)
    with pytest.raises(GatewayError):
        messages_headers({"anthropic-version": "1999-01-01"}, to)
    assert "sk-secret" not in repr(to)
