"""The race: many calls at once against a budget for few, by gateways that are killed and started again meanwhile."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace

import httpx
import pytest
import sqlalchemy as sa
from autovibe import budgets, db, prices, reconcile
from autovibe.models import Reservation
from autovibe.tests.gateway_fixtures import (
    Account,
    account,
    demo_model,
    hub_process,
    migrated,
    request_body,
    wait_for,
)
from autovibe.tests.ports import free_port
from autovibe.tests.provider_bill import cost_of, tariff_of, worst_case
from pydantic import SecretStr

MAX_TOKENS = 4000
CLIENT_SECONDS = 240.0
HOLD_SECONDS = 10


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    with migrated(tmp_path_factory.mktemp("state")) as settings, demo_model(settings.lab_dir) as model:
        yield SimpleNamespace(settings=settings, model=model)


@contextlib.contextmanager
def killed_again_and_again(site: SimpleNamespace, ports: list[int], kills: int, answers: Counter) -> Iterator[None]:
    """Gateways on these ports; one of them is killed and started again `kills` times, each after some more answers."""
    ended = threading.Event()
    with contextlib.ExitStack() as stack:
        running = {port: stack.enter_context(contextlib.ExitStack()) for port in ports}
        processes = {port: start(site, running[port], port) for port in ports}

        def kill() -> None:
            for number in range(kills):
                before = answers["seen"]
                while answers["seen"] < before + 3 and not ended.wait(0.01):
                    pass
                port = ports[number % len(ports)]
                processes[port].kill()
                running[port].close()
                answers["kills"] += 1
                processes[port] = start(site, running[port], port)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            yield
        finally:
            ended.set()
            killer.join()


def start(site: SimpleNamespace, stack: contextlib.ExitStack, port: int):
    options = {
        "AUTOVIBE_RESERVATION_WAIT_SECONDS": "5",
        "AUTOVIBE_MIN_USEFUL_OUTPUT_TOKENS": str(MAX_TOKENS),
        "AUTOVIBE_CALL_HOLD_SECONDS": str(HOLD_SECONDS),
    }
    return stack.enter_context(hub_process(site.settings, port, **options))[1]


@contextlib.contextmanager
def reaping(site: SimpleNamespace) -> Iterator[None]:
    """What the scheduler does: the calls of a killed gateway are settled once their reservations have expired."""
    ended = threading.Event()

    def reap() -> None:
        while not ended.wait(0.5):
            with db.session_scope(site.settings) as session:
                budgets.reap(session)

    reaper = threading.Thread(target=reap)
    reaper.start()
    try:
        yield
    finally:
        ended.set()
        reaper.join()


def storm(ports: list[int], who: Account, bodies: list[dict], processes: int, at_once: int, answers: Counter) -> None:
    """Every body is sent until it is answered 200 or 402, by client processes of so many calls at once."""
    clients = [
        subprocess.Popen(
            [sys.executable, "-m", "autovibe.tests.storm_client"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    common = {"ports": ports, "headers": who.headers, "at_once": at_once, "seconds": CLIENT_SECONDS}

    def listen(client: subprocess.Popen[str]) -> None:
        for line in client.stdout:
            answers[int(line)] += 1
            answers["seen"] += line.strip() != "0"

    listeners = [threading.Thread(target=listen, args=(client,)) for client in clients]
    try:
        for number, client in enumerate(clients):
            client.stdin.write(json.dumps({**common, "bodies": bodies[number::processes]}))
            client.stdin.close()
            listeners[number].start()
        assert [client.wait(CLIENT_SECONDS + 60) for client in clients] == [0] * processes
    finally:
        for client in clients:
            client.kill()
            client.wait()
        for listener in listeners:
            if listener.ident is not None:
                listener.join()


def race(site: SimpleNamespace, calls: int, paid_for: int, kills: int, processes: int, at_once: int) -> None:
    asked = [
        request_body("x" * random.Random(n).randrange(2000), max_tokens=MAX_TOKENS, stream=n % 2 == 0)
        for n in range(calls)
    ]
    who = account(site.settings, paid_for * worst_case(site.settings, asked))
    since, answers, ports = len(site.model.bill()), Counter(), [free_port(), free_port()]
    # Each answer takes a while, and is billed all that it may be.
    site.model.fault("slow", count=calls * 4, seconds=0.005, usage={"output_tokens": MAX_TOKENS})
    with reaping(site), killed_again_and_again(site, ports, kills, answers):
        storm(ports, who, asked, processes, at_once, answers)
    site.model.ask("DELETE", "/lab/faults")
    assert answers["kills"] == kills
    assert answers[402], answers
    with db.session_scope(site.settings) as session:
        budgets.reap(session, datetime.now(UTC) + timedelta(seconds=HOLD_SECONDS + 1))
    the_books_hold(site, who, site.model.bill()[since:])
    what_was_cut_off_is_put_right(site, who)


def the_books_hold(site: SimpleNamespace, who: Account, bill: list[dict]) -> None:
    """billed <= ledger <= allocated; exact where the usage arrived; nothing held; what was cut off is listed."""
    lines, budget, rate = who.lines(), who.budget(), tariff_of(site.settings)
    ledger = sum((line.cost_cad for line in lines), Decimal(0))
    billed = {line["id"]: cost_of(line, rate) for line in bill}
    assert sum(billed.values()) <= ledger == budget.used_amount <= budget.allocated_amount
    assert (who.held(), budget.reserved_amount, budget.overrun_amount, budget.frozen_at) == (0, 0, 0, None)
    exact = [line for line in lines if line.metadata_.get("basis") == "usage"]
    assert {line.metadata_["message_id"]: line.cost_cad for line in exact}.items() <= billed.items()
    with db.session_scope(site.settings) as session:
        listed = session.scalars(
            sa.select(Reservation.uuid).where(
                Reservation.project_uuid == who.project, Reservation.metadata_["settled_at_bound"].as_boolean()
            )
        ).all()
    bounded = {line.reservation_uuid for line in lines if line.metadata_.get("settled_at_bound")}
    assert bounded == set(listed)
    # What the provider billed and no usage arrived for is among those that are booked at their bound.
    assert len(billed) - len(exact) <= len(lines) - len(exact)


def what_was_cut_off_is_put_right(site: SimpleNamespace, who: Account) -> None:
    """By the provider's own report: then the ledger is what was billed, but for the last digit of each line."""
    settings = site.settings.model_copy(
        update={"anthropic_admin_key": SecretStr(site.model.key), "upstream_url": site.model.url}
    )
    last = datetime.now(UTC).date()
    first = last - timedelta(days=1)
    reported = reconcile.report(settings, first, last)
    for turn in range(2):
        with db.session_scope(settings) as session:
            found = reconcile.compare(session, reported, first, last, prices.Policy())
            assert (turn == 0 or not found.corrections, found.unexplained_cad) == (True, 0)
            reconcile.book(session, found)
    bill, rate = site.model.bill(), tariff_of(settings)
    with db.session_scope(settings) as session:
        lines, booked = session.execute(sa.text("SELECT count(*), sum(cost_cad) FROM resource_usage")).one()
    assert abs(booked - sum(cost_of(line, rate) for line in bill)) <= lines * Decimal("1e-9")
    budget = who.budget()
    assert (budget.used_amount, budget.frozen_at) == (sum(line.cost_cad for line in who.lines()), None)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_in_whose_middle_the_hub_is_killed_is_settled_once(site, stream):
    """The provider bills it all the same. A hub that is up again goes on meanwhile, and its reaper settles it."""
    who, since, port = account(site.settings, "5"), len(site.model.bill()), free_port()
    asked = {"json": request_body(max_tokens=MAX_TOKENS, stream=stream), "headers": who.headers, "timeout": 60}
    options = {"AUTOVIBE_CALL_HOLD_SECONDS": str(HOLD_SECONDS)}
    site.model.fault(**({"kind": "slow", "seconds": 60} if stream else {"kind": "delay", "seconds": 5}))
    with ThreadPoolExecutor(1) as caller, hub_process(site.settings, port, **options) as (url, gateway):
        call = caller.submit(httpx.post, f"{url}/v1/messages", **asked)
        wait_for(lambda: site.model.faults() == 0 and (not stream or len(site.model.bill()) > since), "call under way")
        gateway.kill()
        with pytest.raises(httpx.HTTPError):
            call.result()
    wait_for(lambda: len(site.model.bill()) == since + 1, "bill of the call")
    with hub_process(site.settings, port, **options) as (url, _):
        assert (who.held(), who.lines()) == (1, [])
        assert httpx.post(f"{url}/v1/messages", **asked).status_code == 200
        wait_for(lambda: len(who.lines()) == 1, "line of the whole call")
        with db.session_scope(site.settings) as session:
            ends = session.scalars(sa.select(Reservation.expires_at).where(Reservation.status == "held")).one()
        for seconds, reaped in ((-1, 0), (1, 1), (1, 0)):
            with db.session_scope(site.settings) as session:
                assert len(budgets.reap(session, ends + timedelta(seconds=seconds))) == reaped
    the_books_hold(site, who, site.model.bill()[since:])
    assert [line.metadata_.get("reaped", False) for line in who.lines()] == [False, True]
    what_was_cut_off_is_put_right(site, who)


def test_killed_gateways_spend_no_more_than_there_is(site):
    race(site, calls=60, paid_for=12, kills=2, processes=3, at_once=5)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_gateways_that_are_killed_five_times_spend_no_more_than_there_is(site):
    race(site, calls=500, paid_for=50, kills=5, processes=4, at_once=16)
