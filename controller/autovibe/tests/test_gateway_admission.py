"""What a machine that means harm may take of the gateway's process before it is refused: nothing of anybody else's."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest
from autovibe.gateway import admission, requests
from autovibe.gateway.admission import Admission
from autovibe.gateway.chat import check_chat
from autovibe.gateway.errors import GatewayError
from autovibe.gateway.requests import check_count_tokens, check_messages
from autovibe.settings import Settings


def refused(act, *args) -> str:
    with pytest.raises(GatewayError) as caught:
        act(*args)
    assert (caught.value.status, "retry-after" in caught.value.headers) == (429, True)
    return caught.value.message


def door(tmp_path, **limits: int) -> Admission:
    return Admission(Settings(state_dir=tmp_path, **limits))


def test_so_many_requests_at_once_and_another_machine_is_not_kept_waiting(tmp_path):
    at = door(tmp_path, machine_calls_at_once=2)
    one, other = uuid4(), uuid4()
    tickets = [at.enter(one), at.enter(one)]
    assert "under way" in refused(at.enter, one)
    at.enter(other)
    tickets[0].leave()
    at.enter(one)


def test_asking_in_vain_counts_too(tmp_path):
    at, one = door(tmp_path, machine_calls_per_minute=3), uuid4()
    for _ in range(6):
        at.enter(one).leave()
    assert "too often" in refused(at.enter, one)
    at.enter(uuid4())


def test_bodies_under_way_are_bounded_together_and_forgotten_with_their_requests(tmp_path):
    at, one = door(tmp_path), uuid4()
    first, second = at.enter(one), at.enter(one)
    first.take(admission.BODY_BYTES - 10)
    second.take(10)
    assert "too large together" in refused(second.take, 1)
    at.enter(uuid4()).take(1)
    first.leave()
    second.take(1)
    second.leave()
    assert not at.bytes[one]
    assert not at.requests[one]


def test_nobody_has_the_process_read_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(admission, "BURST_BYTES", 100)
    monkeypatch.setattr(admission, "BYTES_PER_SECOND", 0)
    at, one = door(tmp_path), uuid4()
    for _ in range(10):
        ticket = at.enter(one)
        ticket.take(10)
        ticket.leave()
    assert "short time" in refused(at.enter(one).take, 1)


def body(**fields: object) -> bytes:
    return json.dumps(
        {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}], **fields}
    ).encode()


@pytest.mark.parametrize("check", [check_messages, check_chat])
def test_a_body_of_many_small_values_is_refused_before_it_is_read(check, monkeypatch):
    monkeypatch.setattr(requests, "MAX_VALUES", 1000)
    with pytest.raises(GatewayError, match="values in it"):
        check(body(metadata={"user_id": [[]] * 1000}))
    # Text has as many commas as it likes, and quotes.
    check(body(messages=[{"role": "user", "content": '["{,\\' * 1000}]))


@pytest.mark.parametrize("rest", [b'\\"', b'"\\', b"\\"], ids=["quotes", "strings", "backslashes"])
def test_a_string_without_an_end_is_read_through_once(rest):
    """Were it read anew from each quote, this took hours, and no other thread of the process ran meanwhile."""
    with pytest.raises(GatewayError):
        check_messages(b"[" * (requests.MAX_VALUES + 1) + rest * 1_000_000)
    with pytest.raises(GatewayError, match="valid JSON"):
        check_messages(b'{"' + b"," * (requests.MAX_VALUES + 1) + rest * 1_000_000)


@pytest.mark.parametrize("check", [check_messages, check_chat, check_count_tokens])
@pytest.mark.parametrize("name", ["a\0b", "\x1b[2J", "m" * 201])
def test_a_models_name_is_one_that_can_be_written_down(check, name):
    with pytest.raises(GatewayError, match="model: must be at most 200 printable characters"):
        check(body(model=name))


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (check_messages, {"role": "user", "content": None}),
        (check_messages, {"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": None}}]}),
        (check_chat, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": None}}]}),
        (check_chat, {"role": None}),
    ],
)
def test_nothing_stands_where_something_must(check, message):
    with pytest.raises(GatewayError, match="Field required"):
        check(body(messages=[message]))
    with pytest.raises(GatewayError, match="model: Field required"):
        check(body(model=None))
