"""What the gateway adds to a model call, beside the same calls to the demo model directly; and budgets by themselves.

Each call is a small message, streamed or not. For 1, 16 and 64 clients: calls a second and the median and 99th
percentile of their milliseconds, through the gateway (reserve, forward, meter, settle) and directly, in turn, in one
run; then how many times a second money can be reserved and settled, with a total, a monthly and a daily budget.

    make bench        or: python tests/bench/money.py --seconds 5
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import httpx
from autovibe import allocations, budgets, db
from autovibe.ledger import UsageLine
from autovibe.settings import Settings
from autovibe.tests import gateway_fixtures as fixtures

CLIENTS = (1, 16, 64)
BODY = {"model": fixtures.MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": "Say hello."}]}


def load(clients: int, seconds: float, make: Callable[[], Callable[[], None]]) -> tuple[float, float, float]:
    """(calls a second, median ms, 99th percentile ms) of what `make` makes for each client, called in a loop."""
    took: list[float] = []
    barrier = threading.Barrier(clients + 1)

    def client() -> None:
        call = make()
        call()
        barrier.wait()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.perf_counter()
            call()
            took.append((time.perf_counter() - began) * 1000)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    barrier.wait()
    began = time.monotonic()
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - began
    ordered = sorted(took)
    return len(took) / elapsed, statistics.median(ordered), ordered[int(len(ordered) * 0.99)]


def caller(url: str, headers: dict[str, str], stream: bool) -> Callable[[], Callable[[], None]]:
    def make() -> Callable[[], None]:
        client = httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)

        def call() -> None:
            response = client.post("/v1/messages", json={**BODY, "stream": stream})
            assert response.status_code == 200, response.text

        return call

    return make


def reserver(settings: Settings, account: fixtures.Account) -> Callable[[], Callable[[], None]]:
    def call() -> None:
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
            count = UsageLine("api_calls", amount=Decimal(1), unit="count")
            budgets.settle(session, held, lines=[UsageLine("money", cost_cad=Decimal("0.00007")), count])

    return lambda: call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="autovibe-bench-") as folder:
        state = Path(folder)
        with fixtures.migrated(state) as settings, fixtures.demo_model(settings.lab_dir) as model:
            account = fixtures.account(settings, "100000")
            with db.session_scope(settings) as session:
                for period in ("daily", "monthly"):
                    allocations.set_budget(session, account.project, Decimal(100000), period=period)
            direct = {"x-api-key": model.key, "anthropic-version": "2023-06-01"}
            print("a call, non-streamed and streamed   clients      calls/s     median ms       p99 ms")
            with fixtures.hub(settings) as hub_url:
                for stream in (False, True):
                    for clients in CLIENTS:
                        rows = [
                            ("direct", load(clients, args.seconds, caller(model.url, direct, stream))),
                            ("gateway", load(clients, args.seconds, caller(hub_url, account.headers, stream))),
                        ]
                        for name, (rate, median, worst) in rows:
                            kind = f"{name}{', streamed' if stream else ''}"
                            print(f"{kind:<35} {clients:>7} {rate:>12.1f} {median:>13.2f} {worst:>12.2f}", flush=True)
                        print(f"{'  added median':<35} {clients:>7} {rows[1][1][1] - rows[0][1][1]:>40.2f}")
            for clients in (1, 8):
                rate, median, worst = load(clients, args.seconds, reserver(settings, account))
                print(
                    f"{'reserve + settle, three budgets':<35} {clients:>7} {rate:>12.1f} {median:>13.2f} {worst:>12.2f}"
                )
            budget = account.budget()
            assert budget.used_amount <= budget.allocated_amount
            assert account.held() == 0


if __name__ == "__main__":
    main()
