"""Chat completions by the gateway against the demo model, which here plays a local server beside the built-in one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from types import SimpleNamespace

import httpx
import pytest
from autovibe import db
from autovibe.models import Price
from autovibe.tests.gateway_fixtures import MODEL, Account, account, demo_model, hub, migrated, patient

LOCAL = "Qwen/Qwen9-Coder"
TOOLS = [{"type": "function", "function": {"name": "run_shell_command", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    folder = tmp_path_factory.mktemp("local")
    with (
        migrated(tmp_path_factory.mktemp("state")) as settings,
        demo_model(settings.lab_dir) as builtin,
        demo_model(folder) as local,
    ):
        provider = {"name": "vllm", "kind": "openai", "url": f"{local.url}/v1", "key_file": str(folder / "model-key")}
        more = {"models": [LOCAL, "free-*"], "max_tokens_field": "max_completion_tokens", "default_max_tokens": 700}
        price(settings, LOCAL, "0.5")
        price(settings, "free-one", "0")
        with hub(settings, AUTOVIBE_PROVIDERS=json.dumps([provider | more])) as url:
            yield SimpleNamespace(settings=settings, url=url, model=builtin, local=local)


def price(settings, model: str, usd: str) -> None:
    kinds = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")
    with db.session_scope(settings) as session:
        row = Price(provider="vllm", model=model, effective_from="2024-01-01", source="test")
        for kind in kinds:
            setattr(row, f"usd_{kind}", Decimal(usd))
        session.add(row)


@pytest.fixture
def rich(site: SimpleNamespace) -> Account:
    return account(site.settings, "5")


@pytest.fixture(autouse=True)
def _no_faults(site: SimpleNamespace) -> Iterator[None]:
    yield
    for one in (site.model, site.local):
        one.ask("DELETE", "/lab/faults")


def body(prompt: str = "Write a small program with a test", **fields: object) -> dict:
    return {"model": MODEL, "max_tokens": 1000, "messages": [{"role": "user", "content": prompt}], **fields}


def post(site: SimpleNamespace, who: Account, asked: dict) -> httpx.Response:
    headers = {"authorization": f"Bearer {who.token}"}
    response = patient.post(f"{site.url}/v1/chat/completions", json=asked, headers=headers)
    who.settled()
    return response


def events_of(response: httpx.Response) -> list[dict]:
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def paid(usage: dict, rate: Decimal, prices: tuple[str, str, str]) -> Decimal:
    """A call in CAD, computed here from its usage and the prices of input, output and what was cached."""
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    counts = (usage["prompt_tokens"] - cached, usage["completion_tokens"], cached)
    usd = sum(Decimal(one) * count for one, count in zip(prices, counts, strict=True)) / 1_000_000
    return (usd * rate).quantize(Decimal("1e-9"), rounding="ROUND_CEILING")


def test_a_call_is_answered_metered_and_settled(site, rich):
    response = post(site, rich, body(tools=TOOLS))
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "run_shell_command"
    (line,) = rich.lines()
    assert line.cost_cad == paid(answer["usage"], line.exchange_rate, ("2", "10", "0.1")) == rich.budget().used_amount
    assert (line.metadata_["basis"], line.metadata_["provider"]) == ("usage", "demo model")
    assert (rich.held(), rich.budget().reserved_amount, rich.api_calls()) == (0, 0, 1)


def test_what_the_provider_cached_is_priced_as_that(site, rich):
    talk = [
        {"role": "system", "content": "s" * 4000},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "more"},
    ]
    usage = post(site, rich, body(messages=talk)).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 1000
    (line,) = rich.lines()
    assert line.cost_cad == paid(usage, line.exchange_rate, ("2", "10", "0.1"))


@pytest.mark.parametrize("asked", [None, {"include_usage": False}, {"include_usage": True}])
def test_a_stream_is_always_metered_and_shows_its_usage_only_when_asked(site, rich, asked):
    response = post(site, rich, body(stream=True, stream_options=asked))
    events = events_of(response)
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events if event["choices"])
    assert "demo model" in text
    usages = [event["usage"] for event in events if event.get("usage")]
    assert len(usages) == (1 if asked and asked["include_usage"] else 0)
    (line,) = rich.lines()
    assert line.metadata_["basis"] == "usage"
    assert line.cost_cad == paid(line.metadata_["usage"], line.exchange_rate, ("2", "10", "0.1"))


def test_a_stream_that_breaks_off_is_booked_at_its_bound(site, rich):
    site.model.fault("cut", after_events=2)
    with pytest.raises(httpx.RemoteProtocolError):
        post(site, rich, body(stream=True))
    rich.settled()
    (line,) = rich.lines()
    assert line.metadata_["basis"] == "bound"
    assert line.cost_cad == rich.budget().used_amount > 0


def test_a_local_server_is_asked_in_its_own_words_and_priced_by_its_own_row(site, rich):
    before = len(site.model.bill())
    response = post(site, rich, body("hello", model=LOCAL, max_tokens=50))
    assert response.status_code == 200, response.text
    (line,) = rich.lines()
    assert line.cost_cad == paid(response.json()["usage"], line.exchange_rate, ("0.5", "0.5", "0.5"))
    assert (line.resource_subtype, line.metadata_["provider"]) == ("vllm_api", "vllm")
    assert line.metadata_["max_tokens"] == 50
    assert (len(site.model.bill()), len(site.local.bill())) == (before, len(site.local.bill()))


def test_a_call_without_a_bound_gets_the_providers_default(site, rich):
    asked = body("hello", model=LOCAL)
    del asked["max_tokens"]
    assert post(site, rich, asked).status_code == 200
    assert rich.lines()[0].metadata_["max_tokens"] == 700


def test_a_model_is_free_only_by_a_price_that_says_so(site, rich):
    assert post(site, rich, body("hello", model="free-one")).status_code == 200
    (line,) = rich.lines()
    assert (line.cost_cad, rich.api_calls()) == (0, 1)
    response = post(site, rich, body("hello", model="free-other"))
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    assert (len(rich.lines()), rich.held()) == (1, 0)


def test_an_empty_budget_is_402_in_the_form_of_this_api(site):
    poor = account(site.settings, "0.000001")
    response = post(site, poor, body())
    error = response.json()["error"]
    assert (response.status_code, error["type"], response.headers["x-should-retry"]) == (
        402,
        "insufficient_quota",
        "false",
    )
    assert "0.000001 CAD left" in error["message"]
    assert poor.lines() == []


def test_max_tokens_is_lowered_to_what_the_budget_can_pay(site):
    poor = account(site.settings, "0.03")
    assert post(site, poor, body(max_completion_tokens=100_000, max_tokens=None)).status_code == 200
    (line,) = poor.lines()
    assert line.metadata_["asked_max_tokens"] == 100_000
    assert 256 <= line.metadata_["max_tokens"] < 3_000


def test_a_busy_provider_is_passed_on_and_costs_nothing(site, rich):
    site.model.fault("status", status=429, headers={"retry-after": "7"})
    response = post(site, rich, body())
    assert (response.status_code, response.headers["retry-after"]) == (429, "7")
    assert (rich.lines(), rich.held()) == ([], 0)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"n": 2}, "n"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"something_new": 1}, "something_new"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": True}, "max_completion_tokens"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages.0.content.0.type"),
        ({"messages": "hello"}, "messages"),
    ],
)
def test_a_field_without_a_bound_is_refused_by_its_name(site, rich, fields, named):
    response = post(site, rich, body(**fields))
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(f"{named}:")
    assert rich.held() == 0


def test_images_are_refused_where_they_have_no_bound(site, rich):
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    response = post(site, rich, body(messages=[{"role": "user", "content": [picture]}]))
    assert (response.status_code, rich.held()) == (400, 0)
    assert "image_tokens" in response.json()["error"]["message"]


def test_the_models_are_those_that_have_a_provider_and_a_price(site, rich):
    headers = {"authorization": f"Bearer {rich.token}"}
    page = patient.get(f"{site.url}/v1/models", headers=headers).json()
    owners = {one["id"]: one["owned_by"] for one in page["data"]}
    assert page["object"] == "list"
    assert owners[LOCAL] == "vllm"
    assert owners[MODEL] == "demo model"
    assert patient.get(f"{site.url}/v1/models").status_code == 401
