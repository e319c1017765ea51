"""Two hundred calls at once, from four client processes to two gateway processes, against a budget for ten."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from types import SimpleNamespace

import pytest
from autovibe import db, prices
from autovibe.tests.gateway_fixtures import Account, account, demo_model, hub, migrated, request_body
from autovibe.tests.provider_bill import cost_of, tariff_of, worst_case

CALLS, CLIENTS = 200, 4
MAX_TOKENS = 1000
PATIENT = {"AUTOVIBE_RESERVATION_WAIT_SECONDS": "30"}

CLIENT = """
import asyncio, json, sys, httpx
async def one(client, url, body, headers):
    try:
        response = await client.post(url + "/v1/messages", json=body, headers=headers)
        return response.status_code
    except httpx.HTTPError as error:
        return type(error).__name__
async def main():
    asked = json.load(sys.stdin)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=120, limits=limits) as client:
        calls = [one(client, asked["urls"][n % 2], body, asked["headers"]) for n, body in enumerate(asked["bodies"])]
        print(json.dumps(await asyncio.gather(*calls)))
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    with migrated(tmp_path_factory.mktemp("state")) as settings, demo_model(settings.lab_dir) as model:
        yield SimpleNamespace(settings=settings, model=model)


def storm(urls: list[str], who: Account, bodies: list[dict]) -> Counter:
    """All calls at once; how often each status came back."""
    clients = []
    for number in range(CLIENTS):
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        clients.append((client, {"urls": urls, "headers": who.headers, "bodies": bodies[number::CLIENTS]}))
    for client, asked in clients:
        assert client.stdin
        client.stdin.write(json.dumps(asked))
        client.stdin.close()
    seen: Counter = Counter()
    for client, _ in clients:
        assert client.stdout
        seen.update(json.loads(client.stdout.read()))
        assert client.wait(60) == 0
    return seen


def bodies(**fields: object) -> list[dict]:
    """Calls that differ in length, of two models, half of them streamed."""
    models = ("claude-sonnet-5-5", "claude-opus-5-5")
    return [
        request_body(
            "x" * (n % 7), max_tokens=MAX_TOKENS, stream=n % 2 == 0, **({"model": models[n // 2 % 2]} | fields)
        )
        for n in range(CALLS)
    ]


def billed(site: SimpleNamespace, since: int) -> tuple[int, Decimal]:
    """How many calls are on the provider's own bill, and what they cost in CAD."""
    lines, rate = site.model.bill()[since:], tariff_of(site.settings)
    return len(lines), sum((cost_of(line, rate) for line in lines), Decimal(0))


def assert_the_books_agree(site: SimpleNamespace, who: Account, since: int) -> int:
    """billed = ledger = used <= allocated, to the last digit; returns how many calls were billed."""
    who.settled()
    calls, bill = billed(site, since)
    lines, budget = who.lines(), who.budget()
    assert len(lines) == calls == len(who.lines("api_calls")) == who.api_calls()
    assert sum(line.cost_cad for line in lines) == bill == budget.used_amount <= budget.allocated_amount
    assert (budget.reserved_amount, budget.overrun_amount, who.held(), budget.frozen_at) == (0, 0, 0, None)
    return calls


@pytest.mark.parametrize("whose", ["budget", pytest.param("machine", marks=pytest.mark.soak)])
def test_the_money_ends_at_the_tenth_call(site, whose):
    """Every call is billed all of its max_tokens, and the money is there for ten and a half."""
    asked = bodies(model="claude-sonnet-5-5")
    site.model.fault("usage", count=CALLS, usage={"output_tokens": MAX_TOKENS})
    with db.session_scope(site.settings) as session:
        one_call = prices.upper_bound(
            prices.tariff(session, "claude-sonnet-5-5"), input_tokens_max=15, max_tokens=MAX_TOKENS
        ).cad
    most = one_call * 21 / 2
    who = account(site.settings, *((most, None) if whose == "budget" else (1000, most)))
    # The smallest useful answer is the whole one here: nothing is lowered.
    options = PATIENT | {"AUTOVIBE_MIN_USEFUL_OUTPUT_TOKENS": str(MAX_TOKENS)}
    since = len(site.model.bill())
    with hub(site.settings, **options) as one, hub(site.settings, **options) as two:
        seen = storm([one, two], who, asked)
    site.model.ask("DELETE", "/lab/faults")
    assert_the_books_agree(site, who, since)
    assert seen == {200: 10, 402: CALLS - 10}


def test_calls_that_cost_less_go_on_while_the_money_lasts(site):
    """What the bound held too much comes back and pays for further calls, with max_tokens lowered to what is left."""
    asked = bodies()
    who = account(site.settings, 10 * worst_case(site.settings, asked))
    since = len(site.model.bill())
    with hub(site.settings, **PATIENT) as one, hub(site.settings, **PATIENT) as two:
        seen = storm([one, two], who, asked)
    assert set(seen) <= {200, 402}
    assert seen[200] == assert_the_books_agree(site, who, since) > 10
