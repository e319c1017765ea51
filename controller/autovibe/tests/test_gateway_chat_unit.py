"""Chat completions without a server: the bound of a request, and usage read from any stream."""

from __future__ import annotations

import json

import pytest
from autovibe.gateway.chat import ChatMeter, ChatReader, check_chat, counts_of
from autovibe.gateway.upstream import Provider

PROVIDER = Provider("local", "http://x/v1", None, frozenset({"chat"}), default_max_tokens=700)
MESSAGE = {"role": "user", "content": "hello"}


def check(**fields: object):
    return check_chat(json.dumps({"model": "m", "messages": [MESSAGE]} | fields).encode())


def usage(prompt: int, output: int, **more: object) -> dict:
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output} | more


def chunk(finish: str | None = None, used: dict | None = None, choices: bool = True) -> bytes:
    choice = [{"index": 0, "delta": {"content": "x"}, "finish_reason": finish}] if choices else []
    return f"data: {json.dumps({'id': 'c', 'model': 'm', 'choices': choice, 'usage': used})}\n\n".encode()


def read(*pieces: bytes, asked: bool = False) -> tuple[ChatMeter, bytes]:
    request = check(stream=True, stream_options={"include_usage": asked})
    meter = ChatMeter()
    reader = ChatReader(meter, request)
    return meter, b"".join(map(reader.feed, pieces)) + reader.end()


def test_the_bound_holds_every_byte_and_thrice_what_a_template_writes_out_again():
    plain, tools = check(), [{"type": "function", "function": {"name": "f", "description": "d" * 1000}}]
    assert plain.input_bound >= len(plain.body)
    assert check(tools=tools).input_bound - plain.input_bound > 3000


def nested(depth):
    return {"properties": nested(depth - 1), "type": "object"} if depth else {"type": "string"}


@pytest.mark.parametrize("parameters", [{"description": "<a href='b'>&" * 300}, nested(150), {"enum": ["é漢"] * 500}])
def test_the_bound_holds_a_definition_as_a_template_indents_and_escapes_it(parameters):
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    written = json.dumps([tool], indent=4)
    for sign in "<>&'":
        written = written.replace(sign, f"\\u{ord(sign):04x}")
    without = check()
    request = check(tools=[tool])
    assert request.input_bound - without.input_bound >= len(written) + len(request.body) - len(without.body)


def test_the_providers_field_bounds_the_output_and_the_smaller_of_two_counts():
    both = check(max_tokens=9, max_completion_tokens=5, stream=True).for_provider(PROVIDER)
    assert (both.payload["max_tokens"], "max_completion_tokens" in both.payload) == (5, False)
    assert both.payload["stream_options"] == {"include_usage": True}
    assert check().for_provider(PROVIDER).max_tokens == 700
    lowered = check(max_tokens=500).for_provider(PROVIDER).lowered(300, 256)
    assert (lowered.max_tokens, json.loads(lowered.body)["max_tokens"]) == (300, 300)


def test_what_qwen_code_and_aider_send_passes():
    talk = [
        {"role": "system", "content": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]},
        MESSAGE,
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [{"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "t", "content": "done"},
    ]
    fields = {"messages": talk, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}, "top_p": 1}
    assert check(**fields).payload == {"model": "m"} | fields


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_stream_is_read_however_it_is_cut(size):
    raw = chunk() + chunk("stop") + chunk(used=usage(10, 5), choices=False) + b"data: [DONE]\n\n"
    meter, passed = read(*(raw[at : at + size] for at in range(0, len(raw), size)))
    assert (meter.usage["input_tokens"], meter.usage["output_tokens"], meter.complete) == (10, 5, True)
    assert passed == chunk() + chunk("stop") + b"data: [DONE]\n\n"


def test_a_stream_whose_chunks_have_no_error_is_read():
    raw = (chunk() + chunk("stop") + chunk(used=usage(10, 5), choices=False)).replace(b'{"id"', b'{"error": null, "id"')
    meter, _ = read(raw)
    assert (meter.usage["output_tokens"], meter.started, meter.failed, meter.complete) == (5, True, False, True)


def test_a_usage_that_was_asked_for_is_passed_on():
    raw = chunk("stop") + chunk(used=usage(10, 5), choices=False)
    assert read(raw, asked=True)[1] == raw


def test_a_running_usage_is_final_only_at_the_end():
    meter, _ = read(chunk(used=usage(10, 1)), chunk(used=usage(10, 2)))
    assert (meter.complete, meter.usage["output_tokens"]) == (False, 2)
    meter, _ = read(chunk(used=usage(10, 1)), chunk("stop", used=usage(10, 3)))
    assert (meter.complete, meter.usage["output_tokens"]) == (True, 3)


def test_a_stream_of_an_error_only_is_not_billed():
    meter, passed = read(b'data: {"error": {"message": "no"}}\n\n')
    assert (meter.started, b"error" in passed) == (False, True)


def test_an_end_without_an_empty_line_is_passed_on():
    assert read(chunk("stop") + b"data: [DONE]")[1].endswith(b"data: [DONE]")


@pytest.mark.parametrize(
    ("reported", "counts"),
    [
        (usage(10, 5), (10, 5, 0)),
        (usage(10, 5, prompt_tokens_details={"cached_tokens": 4}), (6, 5, 4)),
        (usage(10, 5, prompt_tokens_details=None), (10, 5, 0)),
        # Thinking left out of completion_tokens, but not out of the total.
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 40}, (10, 30, 0)),
    ],
)
def test_usage_in_the_form_that_is_priced(reported, counts):
    found = counts_of(reported)
    assert (found["input_tokens"], found["output_tokens"], found["cache_read_input_tokens"]) == counts


@pytest.mark.parametrize("reported", [{}, {"prompt_tokens": 5}, usage(1, 1) | {"completion_tokens": "many"}])
def test_usage_without_counts_has_no_price(reported):
    assert type(counts_of(reported)["output_tokens"]) is not int
