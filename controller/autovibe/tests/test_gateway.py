"""The gateway against the demo model: one call at a time, with everything that can happen to it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace

import httpx
import pytest
import sqlalchemy as sa
from autovibe import budgets, db, machines, projects, records
from autovibe.models import Machine, Project, Reservation
from autovibe.tests.gateway_fixtures import (
    MODEL,
    Account,
    account,
    demo_model,
    hub,
    hub_process,
    migrated,
    patient,
    request_body,
    wait_for,
)

TOOLS = [{"name": "Bash", "description": "run", "input_schema": {"type": "object"}}]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    with (
        migrated(tmp_path_factory.mktemp("state")) as settings,
        demo_model(settings.lab_dir) as model,
        hub(settings) as url,
    ):
        yield SimpleNamespace(settings=settings, model=model, url=url)


@pytest.fixture
def rich(site: SimpleNamespace) -> Account:
    return account(site.settings, "5")


@pytest.fixture(autouse=True)
def _no_faults(site: SimpleNamespace) -> Iterator[None]:
    yield
    site.model.ask("DELETE", "/lab/faults")


def post(site: SimpleNamespace, who: Account, body: dict, path: str = "/v1/messages", **headers: str) -> httpx.Response:
    response = patient.post(f"{site.url}{path}", json=body, headers=who.headers | headers)
    who.settled()
    return response


def error_of(response: httpx.Response) -> tuple[int, str, str]:
    body = response.json()
    assert body["type"] == "error"
    return response.status_code, body["error"]["type"], body["error"]["message"]


def price_of(usage: dict, rate: Decimal) -> Decimal:
    """Sonnet 5.5 in CAD, computed here from its published prices."""
    written = usage["cache_creation"]
    usd = (
        Decimal(2) * usage["input_tokens"]
        + Decimal(10) * usage["output_tokens"]
        + Decimal("0.2") / 2 * usage["cache_read_input_tokens"]
        + Decimal("2.5") * written["ephemeral_5m_input_tokens"]
        + Decimal(4) * written["ephemeral_1h_input_tokens"]
    ) / 1_000_000
    return (usd * rate).quantize(Decimal("1e-9"), rounding="ROUND_CEILING")


def test_a_call_is_answered_metered_and_settled(site, rich):
    response = post(site, rich, request_body(tools=TOOLS))
    assert response.status_code == 200
    usage = response.json()["usage"]
    (line,) = rich.lines()
    assert line.cost_cad == price_of(usage, line.exchange_rate) == rich.budget().used_amount
    assert line.metadata_["basis"] == "usage"
    assert line.metadata_["provider"] == "demo model"
    assert (line.currency, line.resource_subtype) == ("USD", "claude_api")
    assert line.price_uuid
    assert [one.amount for one in rich.lines("api_calls")] == [1]
    assert (rich.budget().reserved_amount, rich.held(), rich.api_calls()) == (0, 0, 1)


def test_a_stream_passes_byte_for_byte_and_is_billed_the_same(site, rich):
    with patient.stream(
        "POST", f"{site.url}/v1/messages?beta=true", json=request_body(stream=True, tools=TOOLS), headers=rich.headers
    ) as response:
        raw = b"".join(response.iter_raw())
    rich.settled()
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [line for line in raw.decode().splitlines() if line.startswith("event:")]
    assert (events[0], events[-1]) == ("event: message_start", "event: message_stop")
    billed = site.model.bill()[-1]["usage"]
    (line,) = rich.lines()
    assert line.cost_cad == price_of(billed, line.exchange_rate)


def test_a_call_waits_for_the_checkpoint_that_is_being_made(site, rich):
    with db.session_scope(site.settings) as session:
        machine = session.get_one(Machine, rich.machine)
        machine.enrolled_at = datetime.now(UTC)
        _, made = machines.checkpoint(session, site.settings, machine)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(post, site, rich, request_body())
        with pytest.raises(TimeoutError):
            call.result(1)
        with db.session_scope(site.settings) as session:
            records.end(session, site.settings, made.uuid, error="no room", error_class="TaskFailed")
        assert call.result(60).status_code == 200
    with db.session_scope(site.settings) as session:
        assert session.get_one(Machine, rich.machine).status == "working"


def test_either_header_and_both_carry_the_token(site, rich):
    bearer = {"authorization": f"Bearer {rich.token}"}
    for headers in (bearer, {"x-api-key": rich.token}, bearer | {"x-api-key": rich.token}):
        assert patient.post(f"{site.url}/v1/messages", json=request_body(), headers=headers).status_code == 200


@pytest.mark.parametrize("headers", [{}, {"x-api-key": "nonsense"}, {"authorization": "Bearer nonsense"}])
def test_without_a_machine_token_nothing_is_forwarded(site, headers):
    before = len(site.model.bill())
    status, kind, _ = error_of(patient.post(f"{site.url}/v1/messages", json=request_body(), headers=headers))
    assert (status, kind) == (401, "authentication_error")
    assert len(site.model.bill()) == before


def test_two_different_tokens_are_refused(site, rich):
    assert post(site, rich, request_body(), authorization="Bearer other").status_code == 401


def test_the_token_of_a_machine_that_has_ended_is_refused(site, rich):
    with db.session_scope(site.settings) as session:
        session.get(Machine, rich.machine).status = "terminated"
    assert post(site, rich, request_body()).status_code == 401


def test_an_empty_budget_is_402_and_not_to_be_retried(site):
    poor = account(site.settings, "0.000001")
    response = post(site, poor, request_body())
    status, kind, message = error_of(response)
    assert (status, kind, response.headers["x-should-retry"]) == (402, "billing_error", "false")
    assert "0.000001 CAD left" in message
    assert poor.lines() == []


def test_max_tokens_is_lowered_to_what_the_budget_can_pay(site):
    # 100 000 tokens out would cost CAD 1.4; the input about 0.001.
    poor = account(site.settings, "0.02")
    response = post(site, poor, request_body(max_tokens=100_000))
    assert response.status_code == 200
    (line,) = poor.lines()
    assert line.metadata_["asked_max_tokens"] == 100_000
    assert 256 <= line.metadata_["max_tokens"] < 2_000


def test_a_thinking_budget_stays_below_a_lowered_max_tokens(site):
    poor = account(site.settings, "0.05")
    thinking = {"type": "enabled", "budget_tokens": 60_000}
    response = post(site, poor, request_body(max_tokens=100_000, thinking=thinking))
    assert response.status_code == 200, response.text


def test_count_tokens_tightens_a_bound_that_is_too_high(site):
    # 64 KB are bounded by 64 000 tokens (CAD 0.36), counted they are a quarter of it.
    thrifty = account(site.settings, "0.15")
    assert post(site, thrifty, request_body("word " * 13_000, max_tokens=300)).status_code == 200
    assert thrifty.lines()[0].metadata_["input_bound"] < 20_000


def test_an_unknown_model_is_never_free(site, rich):
    status, kind, message = error_of(post(site, rich, request_body(model="claude-nobody-9")))
    assert (status, kind) == (404, "not_found_error")
    assert "claude-nobody-9" in message
    assert rich.held() == 0


def test_an_overloaded_provider_is_passed_on_and_costs_nothing(site, rich):
    site.model.fault("status", status=529, headers={"retry-after": "7"})
    response = post(site, rich, request_body())
    assert (response.status_code, response.headers["retry-after"]) == (529, "7")
    assert error_of(response)[1] == "overloaded_error"
    assert (rich.lines(), rich.held(), rich.budget().reserved_amount) == ([], 0, 0)


def test_a_refused_provider_key_is_the_hubs_trouble(site, rich):
    site.model.fault("status", status=401)
    response = post(site, rich, request_body())
    status, kind, message = error_of(response)
    assert (status, kind, response.headers["x-should-retry"]) == (502, "api_error", "false")
    assert "hub" in message
    assert rich.held() == 0


def test_a_call_that_was_sent_and_not_answered_is_booked_at_its_bound(site, rich):
    site.model.fault("drop")
    assert post(site, rich, request_body()).status_code == 502
    (line,) = rich.lines()
    assert line.metadata_["basis"] == "bound"
    assert line.cost_cad == rich.budget().used_amount > 0
    assert rich.held() == 0


def test_a_stream_that_breaks_off_is_paid_by_its_input_and_the_bound_of_its_output(site, rich):
    site.model.fault("cut", after_events=3)
    with (
        pytest.raises(httpx.RemoteProtocolError),
        patient.stream(
            "POST", f"{site.url}/v1/messages", json=request_body(stream=True), headers=rich.headers
        ) as response,
    ):
        response.read()
    rich.settled()
    (line,) = rich.lines()
    billed = site.model.bill()[-1]["usage"]
    assert line.metadata_["basis"] == "partial"
    assert line.cost_cad == price_of({**billed, "output_tokens": 1000}, line.exchange_rate)


def test_a_client_that_goes_away_pays_what_the_provider_billed(site, rich):
    site.model.fault("slow", seconds=0.02)
    with patient.stream(
        "POST", f"{site.url}/v1/messages", json=request_body(stream=True), headers=rich.headers
    ) as response:
        next(response.iter_raw())
    rich.settled()
    (line,) = rich.lines()
    assert line.metadata_["basis"] == "usage"
    assert line.cost_cad == price_of(site.model.bill()[-1]["usage"], line.exchange_rate)


def test_a_gateway_that_is_stopped_settles_its_calls_first(site, rich):
    site.model.fault("slow", seconds=60)
    with (
        httpx.Client(timeout=60) as client,
        hub_process(site.settings) as (url, process),
        client.stream("POST", f"{url}/v1/messages", json=request_body(stream=True), headers=rich.headers) as response,
    ):
        next(response.iter_raw())
        process.terminate()
        process.wait(60)
    (line,) = rich.lines()
    assert (line.metadata_["basis"], rich.held()) == ("partial", 0)


def test_the_calls_of_a_killed_gateway_are_settled_at_their_bound(site, rich):
    # Nothing of its usage is known, however long the gateway lives.
    site.model.fault("delay", seconds=60)
    with (
        ThreadPoolExecutor(1) as threads,
        hub_process(site.settings) as (url, process),
        httpx.Client(timeout=60) as client,
    ):
        call = threads.submit(client.post, f"{url}/v1/messages", json=request_body(), headers=rich.headers)
        wait_for(lambda: rich.held() == 1, "call under way")
        process.kill()
        process.wait(60)
        assert isinstance(call.exception(60), httpx.TransportError)
    held = rich.budget().reserved_amount
    assert (rich.held(), rich.lines()) == (1, [])
    with db.session_scope(site.settings) as session:
        budgets.reap(session, datetime.now(UTC) + timedelta(seconds=site.settings.call_hold_seconds))
    assert (rich.held(), rich.budget().used_amount, rich.lines()[0].cost_cad) == (0, held, held)


def test_a_call_whose_usage_is_known_is_settled_by_it_when_its_gateway_is_killed(site, rich):
    def known():
        with db.session_scope(site.settings) as session:
            mine = sa.select(Reservation).where(Reservation.project_uuid == rich.project)
            return session.scalars(mine).one().metadata_.get("known")

    site.model.fault("slow", seconds=60)
    with (
        httpx.Client(timeout=60) as client,
        hub_process(site.settings, AUTOVIBE_CALL_HOLD_SECONDS="10") as (url, process),
        client.stream("POST", f"{url}/v1/messages", json=request_body(stream=True), headers=rich.headers) as response,
    ):
        next(response.iter_raw())
        wait_for(known, "known usage")
        process.kill()
        process.wait(30)
    held = rich.budget().reserved_amount
    with db.session_scope(site.settings) as session:
        budgets.reap(session, datetime.now(UTC) + timedelta(seconds=60))
    (line,) = rich.lines()
    usage = {"input_tokens": 0, "cache_read_input_tokens": 0, "cache_creation": {}} | site.model.bill()[-1]["usage"]
    assert line.cost_cad == price_of({**usage, "output_tokens": 1000}, line.exchange_rate) < held
    assert (rich.held(), rich.budget().used_amount, rich.api_calls()) == (0, line.cost_cad, 1)
    about = line.metadata_
    assert (about["basis"], about["reaped"], about["model"], "tokens" in about) == ("partial", True, MODEL, False)


def test_a_bill_above_the_bound_is_booked_whole_and_freezes_the_budget(site, rich):
    site.model.fault("usage", usage={"output_tokens": 1_000_000})
    assert post(site, rich, request_body()).status_code == 200
    budget = rich.budget()
    assert budget.frozen_at
    assert budget.used_amount == rich.lines()[0].cost_cad > budget.allocated_amount
    assert error_of(post(site, rich, request_body()))[:2] == (402, "billing_error")


@pytest.mark.parametrize("usage", [{"output_tokens": -5}, {"input_tokens": "many"}, {"speed": "fast"}])
def test_usage_that_cannot_be_priced_is_booked_at_the_bound(site, rich, usage):
    site.model.fault("usage", usage=usage)
    assert post(site, rich, request_body()).status_code == 200
    assert rich.lines()[0].metadata_["basis"] == "bound"


def test_counting_and_listing_cost_nothing(site, rich):
    body = {name: value for name, value in request_body().items() if name != "max_tokens"}
    assert post(site, rich, body, "/v1/messages/count_tokens").json()["input_tokens"] > 0
    assert "demo model" in patient.get(f"{site.url}/v1/models", headers=rich.headers).text
    assert patient.head(site.url).status_code == 200
    assert (rich.lines(), rich.held()) == ([], 0)


def test_a_compressed_body_is_measured_unpacked(site, rich):
    packed = gzip.compress(json.dumps(request_body("word " * 1000)).encode())
    headers = rich.headers | {"content-encoding": "gzip", "content-type": "application/json"}
    assert patient.post(f"{site.url}/v1/messages", content=packed, headers=headers).status_code == 200
    rich.settled()
    assert rich.lines()[0].metadata_["input_bound"] > 5000


def test_a_refused_field_is_named(site, rich):
    response = post(site, rich, request_body(mcp_servers=[]))
    status, kind, message = error_of(response)
    assert (status, kind) == (400, "invalid_request_error")
    assert "mcp_servers" in message
    assert rich.held() == 0


def test_without_a_provider_the_hub_says_what_to_set(site, rich, tmp_path):
    with hub(site.settings, AUTOVIBE_DEMO_MODEL_KEY_FILE=str(tmp_path / "none")) as url:
        status, _, message = error_of(patient.post(f"{url}/v1/messages", json=request_body(), headers=rich.headers))
    assert status == 503
    assert "ANTHROPIC_API_KEY" in message


def test_a_provider_that_cannot_be_reached_costs_nothing(site, rich):
    with hub(site.settings, AUTOVIBE_DEMO_MODEL_URL="http://127.0.0.1:9") as url:
        response = patient.post(f"{url}/v1/messages", json=request_body(), headers=rich.headers)
        rich.settled()
    assert response.status_code == 502
    assert (rich.lines(), rich.held()) == ([], 0)


def test_the_real_key_goes_to_the_provider_and_is_shown_to_nobody(site, rich):
    with hub(site.settings, ANTHROPIC_API_KEY=site.model.key, AUTOVIBE_UPSTREAM_URL=site.model.url) as url:
        response = patient.post(f"{url}/v1/messages", json=request_body(), headers=rich.headers)
        rich.settled()
    assert response.status_code == 200
    assert rich.lines()[0].metadata_["provider"] == "anthropic"
    assert site.model.key not in response.text + str(response.headers) + str(rich.lines()[0].metadata_)


def test_a_machine_makes_so_many_calls_in_a_minute_and_is_told_when_it_may_go_on(site, rich):
    with hub(site.settings, AUTOVIBE_MACHINE_CALLS_PER_MINUTE="2") as url:
        answers = [patient.post(f"{url}/v1/messages", json=request_body(), headers=rich.headers) for _ in range(3)]
        other = account(site.settings, "5")
        assert patient.post(f"{url}/v1/messages", json=request_body(), headers=other.headers).status_code == 200
    assert [one.status_code for one in answers] == [200, 200, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    rich.settled()
    assert len(rich.lines()) == 2


def test_a_machine_has_so_many_calls_under_way(site, rich):
    site.model.fault("slow", seconds=60)
    with (
        httpx.Client(timeout=60) as client,
        hub(site.settings, AUTOVIBE_MACHINE_CALLS_AT_ONCE="1") as url,
        client.stream("POST", f"{url}/v1/messages", json=request_body(stream=True), headers=rich.headers) as response,
    ):
        next(response.iter_raw())
        refused = patient.post(f"{url}/v1/messages", json=request_body(), headers=rich.headers)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    rich.settled()


def test_a_project_uses_only_the_models_that_it_allows(site, rich):
    def allow(*models: str) -> None:
        with db.session_scope(site.settings) as session:
            projects.change(session, session.get(Project, rich.project), models=models)

    allow("claude-haiku-*")
    response = post(site, rich, request_body())
    assert error_of(response)[:2] == (404, "not_found_error")
    assert "claude-haiku-*" in response.text
    names = [
        one["id"] for one in patient.get(f"{site.url}/v1/models", headers={"x-api-key": rich.token}).json()["data"]
    ]
    assert names == ["claude-haiku-5-5"]
    allow("claude-haiku-5-5", "claude-sonnet-5-5")
    assert post(site, rich, request_body(model="claude-sonnet-5-5-20260901")).status_code == 200
    allow("claude_sonnet-5-5")  # an underscore stands for itself
    assert post(site, rich, request_body()).status_code == 404
    allow()
    assert post(site, rich, request_body()).status_code == 200


def test_each_call_leaves_a_line_without_its_content(site, rich, tmp_path):
    file = tmp_path / "calls.log"
    with hub(site.settings, AUTOVIBE_GATEWAY_AUDIT_PATH=str(file)) as url:
        asked = request_body("a secret prompt")
        assert patient.post(f"{url}/v1/messages", json=asked, headers=rich.headers).status_code == 200
        asked = request_body(model="claude-nobody-9")
        assert patient.post(f"{url}/v1/messages", json=asked, headers=rich.headers).status_code == 404
        wait_for(lambda: file.exists() and len(file.read_text().splitlines()) == 2, "both lines")
    lines = {line["status"]: line for line in map(json.loads, file.read_text().splitlines())}
    assert lines[200]["machine"] == str(rich.machine)
    assert lines[200]["usage"]["output_tokens"] > 0
    assert lines[404]["reservation"] is None
    assert "secret" not in file.read_text()
    assert oct(file.stat().st_mode)[-3:] == "600"
