"""What the event loop answers itself, by one statement: it says the same as everything else, and is as steadfast."""

import asyncio
import contextlib
import threading
import time
from datetime import timedelta
from decimal import Decimal
from uuid import uuid4

import httpx
import sqlalchemy as sa
from autovibe import allocations, async_db, manifests, projects
from autovibe.api.v1 import calls, schemas
from autovibe.api.v1.app import create_app
from autovibe.api.v1.doors import Windows
from autovibe.models import Budget, Operation
from autovibe.tests import world
from limits import parse
from limits.strategies import SlidingWindowCounterRateLimiter

ASLEEP = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()")


def read(client, path, **parameters):
    answer = client.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def parsed(model, items):
    """What a client reads: Postgres and Python write a time's last zeros differently."""
    return [model.model_validate(one).model_dump() for one in items]


def test_a_machine_has_the_operations_of_their_own_list(people, operator):
    machine = people.machine("ours", f"m-{uuid4().hex[:8]}")
    with people.session() as session:
        for error in (None, "no room: “é”\n"):
            session.add(
                Operation(machine_uuid=machine.uuid, project_uuid=machine.project_uuid, kind="checkpoint",
                          status="failed" if error else "succeeded", error=error or "not to be told",
                          started_at=machine.spawned_at, finished_at=machine.spawned_at + timedelta(hours=1)),
            )  # fmt: skip
            session.flush()
    shown = read(operator, f"/machines/{machine.uuid}")
    listed = read(operator, f"/machines/{machine.uuid}/operations")["items"]
    assert [one["kind"] for one in shown["operations"]] == ["spawn", "checkpoint", "checkpoint"]
    assert parsed(schemas.Operation, shown["operations"]) == parsed(schemas.Operation, listed[::-1])
    assert (shown["result"], shown["files"], shown["command"]) == (None, [], None)
    for text in (machine.name, str(machine.uuid)[:13], str(machine.uuid).upper()):
        assert read(operator, f"/machines/{text}") == shown


@contextlib.asynccontextmanager
async def in_this_loop(people):
    """A client of the same API in this process, where one can see who does what; and the application."""
    app = create_app(people.settings)
    headers = {"Authorization": f"Bearer {people.keys['admin']}"}
    try:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://hub/api/v1", headers=headers
        ) as client:
            yield client, app
    finally:
        await app.state.pool.close()


def test_a_long_list_of_files_is_made_beside_the_event_loop(people, operator, monkeypatch):
    rows = [{"path": f"src/{n}.py", "size": n, "sha256": f"{n:064x}", "mode": "0644"} for n in range(20_000)]
    manifest = {"files": rows, "truncated": False}
    machine = people.machine("ours", f"m-{uuid4().hex[:8]}", manifest=manifest)
    done = []

    def watched(module, name):
        original = getattr(module, name)

        def noted(*given):
            done.append((name, threading.get_ident()))
            return original(*given)

        monkeypatch.setattr(module, name, noted)

    async def ask():
        async with in_this_loop(people) as (client, _):
            answer = await client.get(f"/machines/{machine.uuid}")
            again = await client.get(f"/machines/{machine.uuid}", headers={"If-None-Match": answer.headers["ETag"]})
            return threading.get_ident(), answer, again

    watched(manifests, "unpack")
    watched(calls, "etag")
    loop, answer, again = asyncio.run(ask())
    assert [name for name, _ in done] == ["unpack", "etag"] * 2
    assert loop not in {thread for _, thread in done}
    assert answer.json()["files"] == rows
    assert again.status_code == 304
    assert read(operator, f"/machines/{machine.uuid}")["files"] == rows


def test_who_finds_the_connections_in_use_is_told_when_to_come_again(people, monkeypatch):
    async def ask():
        async with in_this_loop(people) as (client, app):
            assert (await client.get("/machines")).status_code == 200
            wait = [asyncio.create_task(app.state.pool.fetch("SELECT pg_sleep(3600)")) for _ in range(4)]
            async with asyncio.timeout(60):
                while asleep(people) < len(wait):
                    await asyncio.sleep(0.01)
            monkeypatch.setattr(async_db, "CONNECTION_SECONDS", 0.2)
            answer = await client.get("/machines")
            for one in wait:
                one.cancel()
            await asyncio.wait(wait)
            return answer

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "busy"), answer.text
    assert int(answer.headers["Retry-After"]) > 0


def asleep(people):
    with people.session() as session:
        return session.scalar(ASLEEP)


def test_a_project_is_the_same_in_its_list_and_its_budgets_in_theirs(people, admin):
    name = f"p-{uuid4().hex[:8]}"
    with people.session() as session:
        project = projects.create(
            session, name, budget_cad=Decimal("7.5"), time_zone="Pacific/Kiritimati", models=["a*", "b"]
        )
        for resource, period in (("time", "weekly"), ("money", "daily"), ("api_calls", "monthly"), ("cpu", "total")):
            allocations.set_budget(session, project.uuid, Decimal(3), resource=resource, period=period)
        allocations.remove(session, project.uuid, resource="time", period="weekly")
    people.machine(name, "one")
    with people.session() as session:
        frozen = sa.update(Budget).where(Budget.project_uuid == project.uuid, Budget.budget_period == "daily")
        session.execute(frozen.values(frozen_at=sa.func.now(), freeze_reason="x"))
    (listed,) = read(admin, "/projects", name=name)["items"]
    assert listed == read(admin, f"/projects/{name}")
    assert (listed["machines"], listed["models"], listed["greediness"]) == (1, ["a*", "b"], "0.50")
    own = [
        {k: v for k, v in one.items() if k != "runs_out"} for one in read(admin, f"/projects/{name}/budgets")["items"]
    ]
    assert [(one["resource"], one["period"]) for one in own if not one["pooled"]] == [
        ("money", "total"), ("money", "daily"), ("api_calls", "monthly"), ("cpu", "total"),
    ]  # fmt: skip
    assert parsed(schemas.Budget, listed["budgets"]) == parsed(schemas.Budget, own)
    assert listed["budget"] == listed["budgets"][0]
    assert Decimal(own[1]["available"]) == 0
    assert own[1]["frozen_at"]


def test_a_list_begins_the_budgets_of_a_new_day(people, admin):
    with people.session() as session:
        project = world.project(session, f"p-{uuid4().hex[:8]}")
        allocations.set_budget(session, project.uuid, Decimal(2), period="daily")
        daily = sa.update(Budget).where(Budget.project_uuid == project.uuid, Budget.budget_period == "daily")
        session.execute(
            daily.values(
                since=Budget.since - 1, period_start=Budget.period_start - 1, period_end=Budget.period_end - 1,
                used_amount=1,
            )
        )  # fmt: skip
    (listed,) = read(admin, "/projects", name=project.name)["items"]
    today = [one for one in listed["budgets"] if one["period"] == "daily" and not one["pooled"]]
    assert [(one["allocated"], one["used"]) for one in today] == [("2.000000000", "0.000000000")]


def test_pages_of_projects_hold_everything_once(people, admin):
    with people.session() as session:
        mark = uuid4().hex[:6]
        made = {world.project(session, f"page-{mark}-{number}").name for number in range(5)}
    found, cursor = [], None
    while True:
        page = read(admin, "/projects", limit=2, **({"cursor": cursor} if cursor else {}))
        found += [one["name"] for one in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(found) == len(set(found))
    assert made <= set(found)


def test_reading_goes_on_when_postgres_has_closed_the_connections(people, admin):
    assert read(admin, "/machines")["items"]
    end = sa.text(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'autovibe people'"
    )
    with people.session() as session:
        assert session.scalar(end) >= 1
    for path in ("/machines", "/projects", "/machines/machine-ours"):
        assert read(admin, path)


def test_rates_are_counted_without_a_thread_and_forgotten_in_time():
    windows = Windows()
    limiter, rate = SlidingWindowCounterRateLimiter(windows), parse("3/second")
    windows.timer.join()
    before = set(threading.enumerate())
    assert [limiter.hit(rate, "a") for _ in range(4)] == [True, True, True, False]
    assert set(threading.enumerate()) <= before
    assert limiter.hit(rate, "b")
    end = time.monotonic() + 30
    while any("/c/" not in key for key in windows.storage):
        assert time.monotonic() < end
        time.sleep(0.05)
        limiter.hit(rate, "c")
    assert windows.storage
    assert set(windows.storage) == set(windows.expirations)
