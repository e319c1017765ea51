"""What the gateway adds to a model call, beside the same calls to the demo model directly, and beside LiteLLM's proxy.

Each call is a small message, streamed or not. For 1, 16 and 64 clients: calls a second and the median and 99th
percentile of their milliseconds, of each in turn, in one run; then what each lets through beyond a budget, by the
provider's own bill; then how many times a second money can be reserved and settled, with three budgets.

    make bench        or: python tests/bench/money.py --seconds 5 [--processes 2] [--no-litellm]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import litellm_proxy
from autovibe import allocations, budgets, db, prices, tokens
from autovibe.gateway.database import Books, Hold
from autovibe.ledger import UsageLine
from autovibe.settings import Settings
from autovibe.tests import gateway_fixtures as fixtures

CLIENTS = (1, 16, 64)
PROMPT = [{"role": "user", "content": "Say hello."}]
#: USD: what both may spend in the race against the budget.
SMALL_BUDGET = Decimal("0.05")


def load(url: str, headers: dict[str, str], clients: int, seconds: float, stream: bool = False) -> dict[str, Any]:
    """Calls by `clients` in a loop: how often each status came, seconds, and the milliseconds of those answered 200."""
    body = {"model": fixtures.MODEL, "max_tokens": 64, "messages": PROMPT, "stream": stream}
    spec = {"url": f"{url}/v1/messages", "headers": headers, "clients": clients, "seconds": seconds, "body": body}
    command = [sys.executable, str(Path(__file__).with_name("load.py"))]
    done = subprocess.run(command, input=json.dumps(spec), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def show(name: str, clients: int, took: list[float], seconds: float) -> float:
    """Print one line; returns the median."""
    median, worst = statistics.median(took), took[int(len(took) * 0.99)]
    print(f"{name:<35} {clients:>7} {len(took) / seconds:>12.1f} {median:>13.2f} {worst:>12.2f}", flush=True)
    return median


def compare(ways: dict[str, tuple[str, dict[str, str]]], seconds: float) -> None:
    """The same calls by each way (name → URL and headers), the first one being the provider itself."""
    print("a call, non-streamed and streamed   clients      calls/s     median ms       p99 ms")
    for stream in (False, True):
        for clients in CLIENTS:
            medians = []
            for name, (url, headers) in ways.items():
                seen = load(url, headers, clients, seconds, stream)
                assert set(seen["statuses"]) == {"200"}, (name, seen["statuses"])
                medians.append(
                    show(f"{name}{', streamed' if stream else ''}", clients, seen["milliseconds"], seen["seconds"])
                )
            for name, median in zip(list(ways)[1:], medians[1:], strict=True):
                print(f"{f'  {name} adds':<35} {clients:>7} {median - medians[0]:>26.2f}", flush=True)


def billed_usd(model: fixtures.DemoModel, since: int) -> Decimal:
    """The provider's own bill since then."""
    used = [line["usage"] for line in model.bill()[since:]]
    return sum((Decimal(2 * one["input_tokens"] + 10 * one["output_tokens"]) for one in used), Decimal(0)) / 1_000_000


def let_through(name: str, model: fixtures.DemoModel, url: str, headers: dict[str, str], seconds: float) -> None:
    since = len(model.bill())
    seen = load(url, headers, 16, seconds)
    spent = billed_usd(model, since)
    beyond = max(Decimal(0), spent - SMALL_BUDGET)
    print(
        f"{name}: USD {spent:.4f} were billed on a budget of {SMALL_BUDGET}, {beyond:.4f} beyond it; {seen['statuses']}"
    )


@contextlib.contextmanager
def litellm(folder: Path, model: fixtures.DemoModel, budget: float) -> Iterator[tuple[str, dict[str, str]]]:
    headers = {"x-api-key": litellm_proxy.KEY, "authorization": f"Bearer {litellm_proxy.KEY}"}
    port = fixtures.free_port()
    with litellm_proxy.proxy(folder, fixtures.MODEL, model.url, model.key, budget, port) as url:
        yield url, headers | {"anthropic-version": "2023-06-01"}


def sessions(settings: Settings, account: fixtures.Account, threads: int, seconds: float) -> None:
    """Reserve and settle by the Python API, as everything but the gateway does."""
    took: list[float] = []
    end = time.monotonic() + seconds

    def work() -> None:
        while time.monotonic() < end:
            began = time.perf_counter()
            with db.session_scope(settings) as session:
                held = budgets.reserve(
                    session,
                    project_uuid=account.project,
                    amount_cad=Decimal("0.0001"),
                    counts={"api_calls": Decimal(1)},
                    holder="bench",
                    purpose=budgets.AI_CALL,
                    expires_at=datetime.now(UTC) + timedelta(minutes=5),
                ).uuid
            with db.session_scope(settings) as session:
                budgets.settle(session, held, lines=bill())
            took.append((time.perf_counter() - began) * 1000)

    running = [threading.Thread(target=work) for _ in range(threads)]
    for one in running:
        one.start()
    for one in running:
        one.join()
    show("reserve + settle, by sessions", threads, sorted(took), seconds)


def bill() -> list[UsageLine]:
    amount = Decimal("0.00007")
    return [UsageLine("money", amount=amount, cost_cad=amount), UsageLine("api_calls", amount=Decimal(1), unit="count")]


async def statements(settings: Settings, account: fixtures.Account, clients: int, seconds: float) -> None:
    """Reserve and settle as the gateway does."""
    unlimited = settings.model_copy(update={"machine_calls_per_minute": 0, "machine_calls_at_once": 0})
    books, took, end = Books(unlimited), [], time.monotonic() + seconds
    claims = tokens.claims_of(account.token, settings)

    async def work() -> None:
        while time.monotonic() < end:
            began = time.perf_counter()
            mine = claims.machine_uuid, claims.generation, Decimal("0.0001"), "bench"
            wanted = Hold(uuid.uuid4(), *mine, fixtures.MODEL, fixtures.MODEL, "claude_api")
            assert (await books.hold(wanted)).outcome == "held"
            await books.end(budgets.settled(wanted.reservation_uuid, bill()))
            took.append((time.perf_counter() - began) * 1000)

    await asyncio.gather(*(work() for _ in range(clients)))
    await books.close()
    show("reserve + settle, by the gateway", clients, sorted(took), seconds)


def three_budgets(settings: Settings) -> fixtures.Account:
    account = fixtures.account(settings, "100000")
    with db.session_scope(settings) as session:
        for period in ("daily", "monthly"):
            allocations.set_budget(session, account.project, Decimal(100000), period=period)
    return account


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement")
    parser.add_argument("--processes", type=int, default=1, help="of the gateway")
    parser.add_argument("--no-litellm", action="store_true", help="without the comparison")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="autovibe-bench-")))
        settings = stack.enter_context(fixtures.migrated(folder))
        model = stack.enter_context(fixtures.demo_model(settings.lab_dir))
        account = three_budgets(settings)
        url = stack.enter_context(fixtures.hubs(settings, args.processes))
        ways = {
            "direct": (model.url, {"x-api-key": model.key, "anthropic-version": "2023-06-01"}),
            "gateway": (url, account.headers),
        }
        with contextlib.ExitStack() as other:
            if not args.no_litellm:
                ways["LiteLLM"] = other.enter_context(litellm(folder, model, 1e6))
            for one, headers in ways.values():
                load(one, headers, 4, 1)  # Everything is open and cached.
            compare(ways, args.seconds)
        with db.session_scope(settings) as session:
            rate = prices.tariff(session, fixtures.MODEL).rate.rate
        poor = fixtures.account(settings, (SMALL_BUDGET * rate).quantize(prices.QUANTUM))
        let_through("gateway", model, url, poor.headers, max(args.seconds, 10))
        if not args.no_litellm:
            with litellm(folder, model, float(SMALL_BUDGET)) as (one, headers):
                let_through("LiteLLM", model, one, headers, max(args.seconds, 10))
        for clients in (1, 16, 64):
            asyncio.run(statements(settings, account, clients, args.seconds))
        for threads in (1, 8):
            sessions(settings, account, threads, args.seconds)
        for who in (account, poor):
            who.settled()
            budget = who.budget()
            assert budget.used_amount <= budget.allocated_amount


if __name__ == "__main__":
    main()
