"""Alerts reach the webhook once, signed, also when it was away."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import sqlalchemy as sa
from autovibe import alerts, allocations, budgets, db, projects
from autovibe.ledger import UsageLine
from autovibe.models import BudgetAlert
from pydantic import SecretStr


class Hook(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.headers.get("X-Autovibe-Signature"), body))
        self.server.asked.set()
        self.server.go.wait(60)
        self.send_response(self.server.answer)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def hook():
    server = HTTPServer(("127.0.0.1", 0), Hook)
    server.got, server.answer = [], 200
    server.asked, server.go = threading.Event(), threading.Event()
    server.go.set()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.go.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def told(settings, hook):
    url = f"http://127.0.0.1:{hook.server_port}/hook"
    return settings.model_copy(update={"alert_webhook_url": url, "alert_webhook_secret": SecretStr("s3cret")})


def spend(settings, cad):
    with db.session_scope(settings) as session:
        project = projects.create(session, "shop", budget_cad=Decimal(10))
        allocations.set_budget(session, project.uuid, Decimal(5), period="daily")
        line = UsageLine("money", amount=Decimal(cad), cost_cad=Decimal(cad))
        budgets.charge(session, project_uuid=project.uuid, lines=[line])


def send(settings):
    with db.session_scope(settings) as session:
        return alerts.send(session, settings)


def test_an_alert_is_sent_once_and_signed(told, hook):
    spend(told, 4)
    assert [send(told), send(told)] == [2, 0]
    said = [json.loads(body) for _, body in hook.got]
    assert [(one["project"], one["period"], one["percent"]) for one in said] == [
        ("shop", "daily", 75),
        ("shop", "daily", 80),
    ]
    for given, body in hook.got:
        assert given == alerts.signature("s3cret", body, int(given.split(",")[0].removeprefix("t=")))
        assert given != alerts.signature("other", body, int(given.split(",")[0].removeprefix("t=")))


def test_a_webhook_that_is_away_gets_its_alerts_later(told, hook):
    spend(told, 4)
    hook.answer = 503
    assert [send(told), send(told), send(told)] == [0, 0, 0]
    assert len(hook.got) == 2  # each was tried, and waits
    with db.session_scope(told) as session:
        assert {one["last_error"] for one in alerts.views(session)} == {"HTTP 503"}
        session.execute(sa.update(BudgetAlert).values(next_attempt_at=datetime.now(UTC) - timedelta(seconds=1)))
    hook.answer = 204
    assert send(told) == 2
    with db.session_scope(told) as session:
        assert all(one["delivered_at"] for one in alerts.views(session))


def test_a_freeze_is_an_alarm_of_its_own_each_time(told, hook):
    spend(told, 11)
    assert send(told) == 2 * 4 + 2
    frozen = [one for one in map(json.loads, (body for _, body in hook.got)) if one["event"] == "budget_frozen"]
    assert {(one["period"], one["overrun"], one["percent"]) for one in frozen} == {
        ("daily", "6.000000000", None),
        ("total", "1.000000000", None),
    }
    assert {one["reason"] for one in frozen} == {"11 CAD were billed that nobody had reserved"}
    with db.session_scope(told) as session:
        (project,) = projects.all_of(session)
        allocations.top_up(session, project.uuid, Decimal(20))
        line = UsageLine("money", amount=Decimal(30), cost_cad=Decimal(30))
        budgets.charge(session, project_uuid=project.uuid, lines=[line])
    hook.got.clear()
    # The total budget froze again, and reached its levels again; that of the day was frozen still.
    assert send(told) == 4 + 1
    said = [json.loads(body) for _, body in hook.got]
    assert {one["period"] for one in said} == {"total"}
    assert sorted(one["percent"] or 0 for one in said) == [0, 75, 80, 90, 100]


def levels(settings, project):
    """The levels that were told, in their order, and forgotten with that."""
    with db.session_scope(settings) as session:
        found = [one["percent"] for one in alerts.views(session, project) if one["delivered_at"] is None]
        session.execute(sa.update(BudgetAlert).values(delivered_at=datetime.now(UTC)))
    return sorted(found)


def test_a_budget_that_was_raised_tells_of_its_levels_again_and_of_none_twice(settings):
    with db.session_scope(settings) as session:
        shop = projects.create(session, "shop", budget_cad=Decimal(10)).uuid

    def use(cad):
        with db.session_scope(settings) as session:
            line = UsageLine("money", amount=Decimal(cad), cost_cad=Decimal(cad))
            budgets.charge(session, project_uuid=shop, lines=[line])
        return levels(settings, shop)

    def top_up(cad):
        with db.session_scope(settings) as session:
            allocations.top_up(session, shop, Decimal(cad))

    assert (use("9.5"), use("0.5")) == ([75, 80, 90], [100])
    top_up(1)  # to 11: 91 % are used, so only the last level is not reached any more
    assert (use("0.5"), use("0.5")) == ([], [100])
    top_up(89)  # to 100
    assert [use(63), use(1), use(5), use(10)] == [[], [75], [80], [90]]
    assert (use(1), use(1), use(8)) == ([], [], [100])


def test_a_budget_can_be_raised_while_its_alerts_are_sent(told, hook, monkeypatch):
    monkeypatch.setattr(alerts, "TIMEOUT_SECONDS", 60)
    spend(told, 4)
    hook.go.clear()
    with ThreadPoolExecutor(1) as threads:
        sending = threads.submit(send, told)
        assert hook.asked.wait(60)
        try:
            assert send(told) == 0  # one at a time
            with db.session_scope(told) as session:
                (project,) = projects.all_of(session)
                session.execute(sa.text("SET LOCAL lock_timeout = '3s'"))
                allocations.top_up(session, project.uuid, Decimal(20), period="daily")
        finally:
            hook.go.set()
        assert sending.result(60) == 2
    with db.session_scope(told) as session:
        assert all(one.delivered_at and one.passed_at for one in session.scalars(sa.select(BudgetAlert)))


def test_without_a_webhook_nothing_is_lost(settings, told):
    spend(settings, 4)
    assert send(settings) == 0
    assert send(told) == 2
