"""A POST that is sent again with its Idempotency-Key: to whom its answer is shown, while it runs, and after a crash."""

import signal
import threading
from uuid import uuid4

import httpx
import pytest
import sqlalchemy as sa
from autovibe import access, apikeys, ca, client, projects, users
from autovibe.api.tests.conftest import wait_until
from autovibe.api.v1 import replays
from autovibe.api.v1.calls import Call
from autovibe.api.v1.tests.conftest import populate, running
from autovibe.client import Login
from autovibe.models import AuditLine, Machine


@pytest.fixture
def member(people):
    """An operator of `ours` with a key: (user, their client)."""
    with people.session() as session:
        made = users.create(session, f"u-{uuid4().hex[:8]}", role="operator")
        users.grant(session, made, projects.get(session, "ours"), "operator")
        people.keys[made.name] = apikeys.create(session, made, "test", scope="operate")[1]
    with people.client(made.name) as client:
        yield made, client


def post(client, path, body, key):
    return client.post(path, json=body, headers={"Idempotency-Key": key})


def outcome(answer):
    return answer.status_code, answer.json()["error"]["code"]


def test_the_answer_is_not_shown_to_who_may_not_see_the_project_any_more(people, member):
    user, client = member
    key, body = uuid4().hex, {"project": "ours", "prompt": "a secret plan"}
    made = post(client, "/machines", body, key)
    assert post(client, "/machines", body, key).json() == made.json()
    with people.client("admin") as admin:
        assert admin.delete(f"/projects/ours/grants/{user.name}").status_code == 204
    again = post(client, "/machines", body, key)
    assert outcome(again) == (404, "not_found")
    assert made.json()["machine"]["name"] not in again.text
    with people.client("admin") as admin:
        admin.put(f"/projects/ours/grants/{user.name}", json={"role": "operator"})
    assert post(client, "/machines", body, key).json() == made.json()


@pytest.mark.parametrize("lowered", ["role", "grant"])
def test_the_answer_is_not_shown_to_who_may_only_look_now(people, member, lowered):
    user, client = member
    key, body = uuid4().hex, {"project": "ours", "prompt": "x"}
    assert post(client, "/machines", body, key).status_code == 201
    with people.client("admin") as admin:
        if lowered == "role":
            admin.patch(f"/users/{user.name}", json={"role": "viewer"})
        else:
            admin.put(f"/projects/ours/grants/{user.name}", json={"role": "viewer"})
    assert outcome(post(client, "/machines", body, key)) == (403, "forbidden")


def test_a_key_of_somebody_else_is_not_shown_to_who_was_an_admin(people):
    with people.session() as session:
        made = users.create(session, f"u-{uuid4().hex[:8]}", role="admin")
        people.keys[made.name] = apikeys.create(session, made, "test", scope="admin")[1]
    key, body = uuid4().hex, {"name": "for another", "user": "viewer-theirs", "scope": "read"}
    with people.client(made.name) as client, people.client("admin") as admin:
        assert post(client, "/keys", body, key).status_code == 201
        assert post(client, "/keys", body, key).status_code == 201
        admin.patch(f"/users/{made.name}", json={"role": "operator"})
        answer = post(client, "/keys", body, key)
    assert outcome(answer) == (403, "forbidden")


def test_every_post_remembers_what_it_needed(people):
    """What a record says its caller had to be let do is refused again, kind by kind."""
    with people.session() as session:
        ours, theirs = (projects.get(session, name).uuid for name in ("ours", "theirs"))
        asks = access.caller("x", "operator", {ours: "viewer"})
        call = Call(None, session, people.settings, asks, access.Level.OPERATE)
        call.require_again({str(ours): access.Level.READ})
        for needed in (
            {str(ours): access.Level.OPERATE},
            {"every project": access.Level.READ},
            {"any project": access.Level.ADMIN},
        ):
            with pytest.raises(access.Forbidden):
                call.require_again(needed)
        with pytest.raises(Exception, match="not there, or you may not see it"):
            call.require_again({str(theirs): access.Level.READ})


def test_the_same_key_of_another_user_in_the_same_project_is_another_key(people, member):
    user, client = member
    key, body = uuid4().hex, {"project": "ours", "prompt": "mine"}
    mine = post(client, "/machines", body, key).json()["machine"]
    with people.client("operator-ours") as other:
        answer = post(other, "/machines", {**body, "prompt": "another's"}, key)
    assert "idempotency-replayed" not in answer.headers
    assert answer.json()["machine"]["uuid"] != mine["uuid"]
    # A checkpoint of one machine that two people ask for is not the first one's, either.
    machine = people.machine("ours", f"m-{uuid4().hex[:8]}")
    path, key = f"/machines/{machine.name}/checkpoints", uuid4().hex
    post(client, path, {"description": "mine"}, key)
    with people.client("operator-ours") as other:
        theirs = post(other, path, {"description": "another's"}, key)
    assert "idempotency-replayed" not in theirs.headers
    # One that has not begun serves both, and says so.
    assert theirs.json()["checkpoint"]["description"] == "mine; another's"


def test_a_key_is_good_for_another_thing_once_it_is_forgotten(people, member):
    _, client = member
    key, body = uuid4().hex, {"project": "ours", "prompt": "x"}
    first = post(client, "/machines", body, key).json()["machine"]
    with people.session() as session:
        session.execute(sa.text("UPDATE request_replays SET created_at = created_at - interval '25 hours'"))
        assert replays.forget(session) >= 1
    assert post(client, "/machines", {**body, "prompt": "y"}, key).json()["machine"]["uuid"] != first["uuid"]


def asked_while_held(people, table, ask):
    """(thread, release) of a request whose transaction has begun, and waits for a lock of ours on a table."""
    holder = people.session()
    session = holder.__enter__()
    session.execute(sa.text(f"LOCK TABLE {table} IN SHARE MODE"))
    thread = threading.Thread(target=ask)
    thread.start()
    waits = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = CAST(:table AS regclass)")

    def is_waiting():
        with people.session() as watching:
            return watching.scalar(waits, {"table": table}) > 0

    wait_until(is_waiting)
    return thread, lambda: holder.__exit__(None, None, None)


def test_a_request_whose_first_one_is_still_under_way_is_told_to_come_again(people, member):
    _, client = member
    key, body = uuid4().hex, {"project": "ours", "prompt": "x", "name": f"m-{uuid4().hex[:8]}"}
    answers = []
    thread, release = asked_while_held(
        people, "audit_log", lambda: answers.append(post(client, "/machines", body, key))
    )
    try:
        with people.client(member[0].name) as other:
            early = post(other, "/machines", body, key)
    finally:
        release()
        thread.join()
    assert outcome(early) == (409, "idempotency_key_in_use")
    assert int(early.headers["retry-after"]) >= 1
    assert answers[0].status_code == 201
    with people.client(member[0].name) as other:
        late = post(other, "/machines", body, key)
    assert (late.json(), late.headers["idempotency-replayed"]) == (answers[0].json(), "true")


@pytest.fixture
def command(people, member):
    """The client that the command line uses, with the statuses of what it has been answered."""
    user, _ = member
    login = Login(people.url, people.keys[user.name], ca.ensure_for(people.settings).ca_pem.decode())
    with client.distant(login) as one:
        statuses = []
        one.http.event_hooks = {"response": [lambda answer: statuses.append(answer.status_code)]}
        yield one, statuses


def test_a_command_whose_answer_was_lost_waits_for_what_it_has_asked(people, command):
    one, statuses = command
    # Less than the first sending takes, more than the second one waits for it, however busy the machine is.
    one.http.timeout = httpx.Timeout(60, read=replays.WAIT_SECONDS + 6)
    name, got = f"m-{uuid4().hex[:8]}", []
    body = {"project": "ours", "prompt": "x", "name": name}
    thread, release = asked_while_held(people, "audit_log", lambda: got.append(one.post("/machines", body=body)))
    try:
        wait_until(lambda: 409 in statuses)
    finally:
        release()
        thread.join()
    assert (got[0]["machine"]["name"], statuses[-1]) == (name, 201)
    with people.session() as session:
        assert len(session.scalars(sa.select(Machine).where(Machine.name == name)).all()) == 1


def test_a_command_says_that_what_it_has_asked_is_still_under_way(people, member, command, monkeypatch):
    _, first = member
    one, statuses = command
    monkeypatch.setattr(client, "IN_USE_SECONDS", 1)
    key, body = uuid4().hex, {"project": "ours", "prompt": "x", "name": f"m-{uuid4().hex[:8]}"}
    thread, release = asked_while_held(people, "audit_log", lambda: post(first, "/machines", body, key))
    try:
        with pytest.raises(client.StillUnderWay, match="still busy with POST /machines") as error:
            one.post("/machines", body=body, key=key)
    finally:
        release()
        thread.join()
    assert "`autovibe machine list`" in error.value.hint
    assert statuses == [409, 409]


def test_a_crash_between_the_change_and_its_record_leaves_neither(api_server, tmp_path):
    with running(api_server, tmp_path) as one:
        populate(one)
        key, name = uuid4().hex, f"m-{uuid4().hex[:8]}"
        body = {"project": "ours", "prompt": "x", "name": name}
        failed = []

        def ask(client):
            return post(client, "/machines", body, key)

        def first():
            with one.client("operator-ours") as client:
                try:
                    ask(client)
                except httpx.HTTPError as error:
                    failed.append(error)

        # The machine, its operation and its reservation are written; the audit line cannot be, so the record is not.
        thread, release = asked_while_held(one, "audit_log", first)
        one.process.send_signal(signal.SIGKILL)
        one.process.wait(60)
        release()
        thread.join()
        assert len(failed) == 1
        machines = sa.select(sa.func.count()).select_from(Machine).where(Machine.name == name)
        kept = sa.text("SELECT count(*) FROM request_replays WHERE idempotency_key = :key")

        def counts():
            with one.session() as session:
                return session.scalar(machines), session.scalar(kept, {"key": key})

        wait_until(lambda: counts() == (0, 0))
        one.up()
        with one.client("operator-ours") as client:
            done = ask(client)
            assert (done.status_code, "idempotency-replayed" in done.headers) == (201, False)
            assert counts() == (1, 1)
            # Killed after the commit, before anybody has heard of it: the record answers.
            one.process.send_signal(signal.SIGKILL)
            one.process.wait(60)
        one.up()
        with one.client("operator-ours") as client:
            again = ask(client)
        assert (again.json(), again.headers["idempotency-replayed"]) == (done.json(), "true")
        with one.session() as session:
            lines = sa.select(AuditLine).where(AuditLine.object_name == name)
            assert len(session.scalars(lines).all()) == 1
