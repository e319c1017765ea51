"""/agent/v1 as an agent, and as somebody who is none, finds it."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import jwt
import pytest
from autovibe import agents, allocations, ca, hubkey, identity, machines, operations, tokens
from autovibe.api.limits import ENROL_BODY_BYTES, STRANGERS_BURST, BodyLimit, RateLimit, TooManyRequests
from autovibe.models import Checkpoint, MachineEvent, Operation, Project
from sqlalchemy import select

PRIVATE = [
    ("GET", "/agent/v1/assignment"),
    ("POST", "/agent/v1/heartbeat"),
    ("POST", "/agent/v1/progress"),
    ("POST", "/agent/v1/checkpoints"),
    ("GET", f"/agent/v1/checkpoints/{UUID(int=1)}"),
    ("POST", "/agent/v1/result"),
]


def operations_of(hub, machine, kind):
    with hub.session() as session:
        query = select(Operation).where(Operation.machine_uuid == machine.uuid, Operation.kind == kind)
        return list(session.scalars(query))


def events_of(hub, machine):
    with hub.session() as session:
        query = select(MachineEvent).where(MachineEvent.machine_uuid == machine.uuid).order_by(MachineEvent.id)
        return [(event.kind, event.text) for event in session.scalars(query)]


def test_the_hub_is_well_and_shows_its_ca(hub):
    assert hub.call("GET", "/healthz").json == {"status": "ok"}
    assert hub.call("GET", "/ca.pem").content == ca.ensure_for(hub.settings).ca_pem


def test_the_agent_is_served_by_its_hash(hub):
    index = hub.call("GET", "/agent/v1/agent").json
    import hashlib

    assert hashlib.sha256(hub.call("GET", index["path"]).content).hexdigest() == index["sha256"]
    assert hub.call("GET", f"/agent/v1/agent/{'0' * 64}.pyz").status == 404


def test_the_port_says_nothing_else(hub):
    for path in ("/docs", "/openapi.json", "/redoc", "/agent/v1", "/api/v1/machines", "/agent/v1/agent/../../etc"):
        answer = hub.call("GET", path)
        assert (answer.status, answer.code) == (404, "not_found")


@pytest.mark.parametrize(("method", "path"), PRIVATE)
def test_nothing_without_a_valid_token(hub, machine, method, path):
    key = hubkey.hub_key(hub.settings.state_dir)
    now = int(time.time())
    good = {"sub": str(machine.uuid), "gen": 1, "aud": "machine", "iat": now, "exp": now + 60}

    def forged(by=key, algorithm="HS256", **claims):
        return jwt.encode({**good, **claims}, by, algorithm=algorithm)

    shown = [
        None,
        "x",
        forged(by=b"another key of thirty-two bytes!"),
        forged(by=None, algorithm="none"),
        forged(exp=now - 1),
        forged(aud="user"),
        forged(sub=str(uuid4())),
        forged(sub="me"),
        forged(gen=2),
        forged(gen=None),
    ]
    for token in shown:
        answer = hub.call(method, path, b"{not json", token=token)
        assert (answer.status, answer.code) == (401, "bad_token")


def test_a_token_is_taken_from_either_header(hub, machine):
    token = hub.token(machine)
    assert hub.call("POST", "/agent/v1/heartbeat", {}, token=token).status == 200
    assert hub.call("POST", "/agent/v1/heartbeat", {}, headers={"x-api-key": token}).status == 200


def test_enrolling_makes_it_active_and_may_be_repeated(hub, machine):
    first = hub.call("POST", "/agent/v1/enrol", hub.enrolment(machine))
    assert first.status == 200
    assert first.json["heartbeat_seconds"] == 1
    assert hub.get(machine).status == "active"
    assert hub.call("POST", "/agent/v1/enrol", hub.enrolment(machine)).status == 200


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"nonce": "somebody else's"}, 409, "already_enrolled"),
        ({"token": "wrong"}, 401, "bad_token"),
        ({"token": "é"}, 401, "bad_token"),
        ({"machine": str(uuid4())}, 401, "bad_token"),
        ({"machine": "m"}, 422, "invalid"),
        ({"generation": 0}, 422, "invalid"),
        ({"generation": "x"}, 422, "invalid"),
        ({"generation": 2}, 409, "superseded"),
        ({"nonce": ""}, 422, "invalid"),
    ],
)
def test_who_is_not_let_in(hub, machine, change, status, code):
    hub.token(machine)
    answer = hub.call("POST", "/agent/v1/enrol", hub.enrolment(machine, **change))
    assert (answer.status, answer.code) == (status, code)


def test_a_machine_that_has_ended_or_never_was_is_superseded(hub, machine):
    hub.change(machine, status="terminated", terminated_at=datetime.now(UTC))
    assert hub.call("POST", "/agent/v1/enrol", hub.enrolment(machine)).code == "superseded"
    machine.uuid = uuid4()
    assert hub.call("POST", "/agent/v1/enrol", hub.enrolment(machine)).code == "superseded"


def test_a_restored_machine_enrols_anew_and_its_old_token_is_over(hub, machine):
    old = hub.token(machine)
    hub.change(machine, generation=2)
    assert hub.call("POST", "/agent/v1/heartbeat", {}, token=old).status == 401
    assert hub.call("POST", "/agent/v1/enrol", hub.enrolment(machine, generation=1)).code == "superseded"
    new = hub.token(machine)
    assert hub.call("POST", "/agent/v1/heartbeat", {}, token=new).status == 200


def test_the_assignment(hub):
    machine = hub.machine("do it", command=["make"], model="m-1", limits={"wall_seconds": 7})
    given = hub.call("GET", "/agent/v1/assignment", token=hub.token(machine)).json
    assert given["machine"] == str(machine.uuid)
    assert (given["agent_type"], given["prompt"], given["command"]) == ("command", "do it", ["make"])
    assert given["limits"]["wall_seconds"] == 7
    assert given["gateway_url"] == hub.settings.hub_url_for_guests
    assert given["model"] == "m-1"
    assert hub.get(machine).status == "working"


def test_a_heartbeat_goes_on_and_keeps_the_token(hub, machine):
    token = hub.token(machine)
    answer = hub.call("POST", "/agent/v1/heartbeat", {"status": "working", "progress": "x" * 9999}, token=token).json
    assert (answer["directive"], answer["reason"], answer["token"]) == ("continue", None, token)
    assert answer["budget_fraction"] == 0
    assert hub.get(machine).current_progress == "x" * 500


def test_an_old_token_is_renewed(hub, machine):
    hub.token(machine)
    now = int(time.time())
    claims = {"sub": str(machine.uuid), "gen": 1, "aud": "machine", "iat": now - 3000, "exp": now + 600}
    old = jwt.encode(claims, hubkey.hub_key(hub.settings.state_dir), algorithm="HS256")
    answer = hub.call("POST", "/agent/v1/heartbeat", {}, token=old).json
    assert answer["token"] != old
    assert datetime.fromisoformat(answer["expires_at"]) > datetime.now(UTC) + timedelta(minutes=55)


def test_who_was_told_to_end_hears_it(hub, machine):
    token = hub.token(machine)
    with hub.session() as session:
        machines.terminate(session, hub.settings, hub.get(machine), reason="enough")
    answer = hub.call("POST", "/agent/v1/heartbeat", {}, token=token).json
    assert (answer["directive"], answer["reason"]) == ("stop", "enough")
    for method, path in (("GET", "/agent/v1/assignment"), ("POST", "/agent/v1/checkpoints")):
        assert hub.call(method, path, {}, token=token).code == "stopping"


@pytest.mark.parametrize(("wanted", "told"), [("end", ("stop", "budget", 1.0)), ("pause", ("continue", None, 1.0))])
def test_without_money_it_stops_unless_its_vm_is_to_be_paused(hub, machine, wanted, told):
    token = hub.token(machine)
    with hub.session() as session:
        session.get_one(Project, machine.project_uuid).when_exhausted = wanted
        budget = allocations.get(session, machine.project_uuid)
        budget.used_amount = budget.allocated_amount
    answer = hub.call("POST", "/agent/v1/heartbeat", {}, token=token).json
    assert (answer["directive"], answer["reason"], answer["budget_fraction"]) == told


def test_beyond_its_time_it_stops(hub):
    machine = hub.machine(limits={"wall_seconds": 10})
    token = hub.token(machine)
    hub.change(machine, enrolled_at=datetime.now(UTC) - timedelta(seconds=11) - agents.WALL_GRACE)
    assert hub.call("POST", "/agent/v1/heartbeat", {}, token=token).json["reason"] == "wall_limit"


def test_progress_is_kept(hub, machine):
    token = hub.token(machine)
    at = datetime.now(UTC).isoformat()
    told = [{"at": at, "kind": "text", "text": "héllo \0"}, {"at": at, "kind": "tool", "text": "Write"}]
    assert hub.call("POST", "/agent/v1/progress", {"messages": told}, token=token).status == 204
    assert events_of(hub, machine) == [("text", "héllo \ufffd"), ("tool", "Write")]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 422),
        (b"\xff\xff", 422),
        (b"[]", 422),
        ({"messages": [{"kind": "shout", "text": "x"}]}, 422),
        ({"messages": [{"kind": "text", "text": "x", "at": "yesterday"}]}, 422),
        ({"messages": [{"kind": "text", "text": "x"}] * 501}, 422),
        (b'{"messages": [{"kind": "text", "text": "\\ud800"}]}', 422),
        (b" " * (9 << 20), 413),
    ],
)
def test_what_is_no_progress_is_refused_in_one_form(hub, machine, body, status):
    answer = hub.call("POST", "/agent/v1/progress", body, token=hub.token(machine))
    assert answer.status == status
    assert set(answer.json["error"]) == {"type", "message"}
    assert events_of(hub, machine) == []


def test_a_chunked_body_is_bounded_too(hub, machine):
    chunks = [b"x" * (1 << 20)] * 9
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    answer = hub.call("POST", "/agent/v1/result", body, hub.token(machine), {"Transfer-Encoding": "chunked"})
    assert (answer.status, answer.code) == (413, "too_large")


def test_a_checkpoint_is_asked_for_once_at_a_time(hub, machine):
    token = hub.token(machine)
    manifest = {"files": [{"path": "a", "size": 1, "sha256": "0" * 64, "mode": "0644"}], "truncated": False}
    body = {"type": "automatic", "description": "d", "context": {"session": "s"}, "manifest": manifest}
    first = hub.call("POST", "/agent/v1/checkpoints", body, token=token)
    assert first.status == 202
    assert hub.call("POST", "/agent/v1/checkpoints", body, token=token).json == first.json
    assert len(operations_of(hub, machine, "checkpoint")) == 1
    assert hub.get(machine).status == "checkpointing"
    with hub.session() as session:
        made = session.get_one(Checkpoint, first.json["checkpoint"])
        assert made.file_manifest == manifest
        assert (made.checkpoint_type, made.creation_context) == ("automatic", '{"session": "s"}')
    path = f"/agent/v1/checkpoints/{first.json['checkpoint']}"
    assert hub.call("GET", path, token=token).json == {"status": "pending"}
    with hub.session() as session:
        operations.finish(session, operations_of(hub, machine, "checkpoint")[0].uuid, error="no space")
        session.get_one(Checkpoint, first.json["checkpoint"]).verification_status = "failed"
    assert hub.call("GET", path, token=token).json == {"status": "failed"}
    hub.call("POST", "/agent/v1/heartbeat", {}, token=token)
    assert hub.get(machine).status == "working"


@pytest.mark.parametrize("kind", ["automatic", "manual"])
def test_a_machine_gets_no_checkpoint_sooner_by_calling_it_another_name(hub, machine, kind):
    token = hub.token(machine)
    made = hub.call("POST", "/agent/v1/checkpoints", {"type": kind}, token=token).json
    with hub.session() as session:
        operations.finish(session, UUID(made["operation"]), result={})
    assert hub.call("POST", "/agent/v1/checkpoints", {"type": kind}, token=token).json == made
    assert len(operations_of(hub, machine, "checkpoint")) == 1


def test_who_says_very_much_is_kept_in_short(hub, machine, monkeypatch):
    monkeypatch.setattr(agents, "LONG_EVENTS", 2)
    monkeypatch.setattr(agents, "MAX_EVENTS", 4)
    with hub.session() as session:
        for text in ("x" * 8000, "y", "z", "u" * 2000, "v", "w"):
            agents.record_progress(session, machine, [{"at": datetime.now(UTC), "kind": "text", "text": text}])
    assert [len(text) for _, text in events_of(hub, machine)] == [8000, 1, 1, 1000, 1]


def test_another_machines_checkpoint_is_not_seen(hub, machine):
    made = hub.call("POST", "/agent/v1/checkpoints", {}, token=hub.token(machine)).json["checkpoint"]
    stranger = hub.token(hub.machine())
    for path in (made, uuid4(), "x", "%00", "..%2f..%2fresult"):
        assert hub.call("GET", f"/agent/v1/checkpoints/{path}", token=stranger).status == 404


def test_a_message_of_a_spool_is_kept_once(hub, machine):
    token = hub.token(machine)

    def say(spool, *messages):
        told = [{"kind": "text", "text": text, "seq": seq} for seq, text in messages]
        return hub.call("POST", "/agent/v1/progress", {"spool": spool, "messages": told}, token=token).status

    assert say("1-a", (0, "first"), (1, "second")) == 204
    assert say("1-a", (1, "second"), (2, "third")) == 204
    assert say("2-b", (0, "another")) == 204
    assert say(None, (0, "unnamed")) == say(None, (0, "unnamed")) == 204
    assert [text for _, text in events_of(hub, machine)] == [
        "first",
        "second",
        "third",
        "another",
        "unnamed",
        "unnamed",
    ]
    for bad in ("", "a b", "../x", "x" * 65):
        assert say(bad, (0, "x")) == 422
    assert say("1-a", (-1, "x")) == 422


def test_a_result_is_recorded_and_ends_the_machine_once(hub, machine):
    token = hub.token(machine)
    manifest = {"files": [{"path": "a", "size": 1, "sha256": None, "mode": None}], "truncated": False}
    body = {"outcome": "succeeded", "summary": "done", "exit_code": 0, "manifest": manifest, "details": {"n": 1}}
    assert hub.call("POST", "/agent/v1/result", body, token=token).status == 202
    assert hub.call("POST", "/agent/v1/result", {**body, "outcome": "failed"}, token=token).status == 202
    (end,) = operations_of(hub, machine, "terminate")
    now = hub.get(machine)
    assert (now.outcome, now.result["summary"], now.result["details"]) == ("succeeded", "done", {"n": 1})
    with hub.session() as session:
        assert session.get_one(Checkpoint, end.checkpoint_uuid).file_manifest == manifest
    assert hub.call("GET", "/agent/v1/assignment", token=token).code == "stopping"


@pytest.mark.parametrize(
    "more",
    [
        b'"details": {"n": NaN}',
        b'"details": {"n": [1e999]}',
        b'"details": {"n": "' + b"x" * (1 << 16) + b'"}',
        b'"details": {"n": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'"manifest": {"files": [{"path": "a", "size": 1, "mode": "' + b"7" * 21 + b'"}]}',
        b'"manifest": {"files": [{"path": "a", "size": -1}]}',
    ],
)
def test_a_result_that_nothing_could_keep_is_refused(hub, machine, more):
    body = b'{"outcome": "succeeded", ' + more + b"}"
    assert hub.call("POST", "/agent/v1/result", body, token=hub.token(machine)).status == 422
    assert not hub.get(machine).result


def test_a_result_after_somebody_asked_for_the_end_still_brings_its_manifest(hub, machine):
    token = hub.token(machine)
    with hub.session() as session:
        end = machines.terminate(session, hub.settings, hub.get(machine))
    manifest = {"files": [{"path": "a", "size": 1, "sha256": None, "mode": None}], "truncated": False}
    hub.call("POST", "/agent/v1/result", {"outcome": "stopped", "manifest": manifest}, token=token)
    assert len(operations_of(hub, machine, "terminate")) == 1
    with hub.session() as session:
        assert session.get_one(Checkpoint, end.checkpoint_uuid).file_manifest == manifest


def test_a_machine_that_asks_too_often_is_slowed_and_no_other():
    limit = RateLimit(per_second=0.001, burst=3)
    for _ in range(3):
        limit.take("one")
    with pytest.raises(TooManyRequests):
        limit.take("one")
    limit.take("another")


def test_strangers_neither_ask_without_end_nor_send_more_than_an_enrolment(hub, tmp_path):
    async def main() -> list[int]:
        answered = []

        async def app(scope, receive, send):
            answered.append(200)

        async def send(message):
            if message["type"] == "http.response.start":
                answered.append(message["status"])

        async def call(size, address, path="/healthz", headers=()):
            async def receive():
                return {"type": "http.request", "body": b"x" * size, "more_body": False}

            scope = {"type": "http", "path": path, "method": "POST", "headers": list(headers), "client": (address, 1)}
            await door(scope, receive, send)
            return answered.pop()

        door = BodyLimit(app, hub.settings)
        token = hub.token(hub.machine())
        known = [(b"authorization", f"Bearer {token}".encode())]
        found = [await call(ENROL_BODY_BYTES + 1, "a", "/agent/v1/progress")]
        found += [await call(ENROL_BODY_BYTES + 1, "a", "/agent/v1/progress", known)]
        for _ in range(int(STRANGERS_BURST)):
            last = await call(1, "a")
        while last == 200:  # the bucket fills a little meanwhile
            last = await call(1, "a")
        return [*found, last, await call(1, "b"), await call(1, "a", headers=known), await call(1, "a", "/v1/messages")]

    assert asyncio.run(main()) == [413, 200, 429, 200, 200, 200]


def test_identity_files_are_private_and_repeatable(hub, machine, tmp_path):
    import json

    path = identity.write_identity(hub.settings, hub.get(machine), tmp_path / "secrets" / "identity.json")
    first = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert identity.write_identity(hub.settings, hub.get(machine), path).read_bytes() == first
    assert set(json.loads(first)) == {"machine", "generation", "hub_url", "ca_sha256", "token"}


def test_tokens_end_with_their_machine(hub, machine):
    headers = {"authorization": f"Bearer {hub.minted(machine)}"}
    with hub.session() as session:
        assert tokens.authenticate(session, headers, hub.settings).uuid == machine.uuid
    hub.change(machine, status="terminated", terminated_at=datetime.now(UTC))
    with hub.session() as session, pytest.raises(tokens.BadToken):
        tokens.authenticate(session, headers, hub.settings)
