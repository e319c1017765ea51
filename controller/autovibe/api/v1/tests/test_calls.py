"""Answers: once for each Idempotency-Key, ETags, pages, one error form, live events; who listens where."""

import json
import socket
import threading
from decimal import Decimal
from functools import partial
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from autovibe import jobs, listening, machines, projects, supervise
from autovibe.access import LOCAL, Caller, Level
from autovibe.api.v1 import schemas, server
from autovibe.api.v1.doors import TooManyRequests
from autovibe.api.v1.routes import events
from autovibe.api.v1.tests.conftest import populate, running
from autovibe.listening import CannotListen
from autovibe.models import AuditLine, Machine, Operation, SchedulerJob
from autovibe.settings import load_settings
from autovibe.tests import world


def test_a_post_with_a_key_is_done_once_however_often_and_at_once(people, operator):
    key, name = uuid4().hex, f"m-{uuid4().hex[:8]}"
    answers = []

    def ask():
        with people.client("operator-ours") as client:
            body = {"project": "ours", "prompt": "x", "name": name}
            answers.append(client.post("/machines", json=body, headers={"Idempotency-Key": key}))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 5
    with people.session() as session:
        assert len(session.scalars(sa.select(Machine).where(Machine.name == name)).all()) == 1
        lines = sa.select(AuditLine).where(AuditLine.object_name == name)
        assert len(session.scalars(lines).all()) == 1


def test_a_key_is_for_one_request_of_one_caller(people, operator):
    send = partial(operator.post, "/machines", headers={"Idempotency-Key": "the-same"})
    assert send(json={"project": "ours", "prompt": "x"}).status_code == 201
    answer = send(json={"project": "ours", "prompt": "y"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "idempotency_key_reused")
    with people.client("operator-theirs") as other:
        body = {"project": "theirs", "prompt": "x"}
        assert other.post("/machines", json=body, headers={"Idempotency-Key": "the-same"}).status_code == 201


def test_a_template_that_is_not_known_is_looked_for_and_then_used(people, operator):
    name, key = f"t-{uuid4().hex[:8]}", {"Idempotency-Key": uuid4().hex}
    body = {"project": "ours", "prompt": "x", "template": name, "checkpoint_policy": {"calls": 3}}
    sought = operator.post("/machines", json=body, headers=key)
    assert (sought.status_code, sought.json()["machine"]) == (202, None)
    # Who looks on is the operator who has asked; asking again is the same look.
    assert operator.get(f"{people.url}{sought.headers['location']}").json()["kind"] == "template"
    again = operator.post("/machines", json=body, headers=key).json()
    assert again["operation"]["uuid"] == sought.json()["operation"]["uuid"]
    with people.session() as session:
        world.template(session, name, vm_id=9100 + int(uuid4().int % 1000), inputs=uuid4().hex)
    made = operator.post("/machines", json=body, headers=key)
    assert made.status_code == 201
    assert operator.post("/machines", json=body, headers=key).json() == made.json()
    with people.session() as session:
        machine = session.get_one(Machine, UUID(made.json()["machine"]["uuid"]))
        assert machine.assignment["checkpoints"] == {"calls": 3}


def test_what_a_look_has_found_is_told_of_ones_own_projects_only(people, operator):
    with people.client("admin") as admin:
        asked = admin.post("/hub/verify").json()["operation"]["uuid"]
    with people.session() as session:
        uuids = {name: str(projects.get(session, name).initial_checkpoint_uuid) for name in ("ours", "theirs")}
        found = session.get_one(Operation, UUID(asked))
        found.status, found.started_at, found.finished_at = "succeeded", found.created_at, found.created_at
        found.result = {"checked": 2, "missing": list(uuids.values()), "found_again": []}
    assert operator.get(f"/operations/{asked}").json()["verification"]["missing"] == [uuids["ours"]]
    with people.client("admin") as admin:
        assert len(admin.get(f"/operations/{asked}").json()["verification"]["missing"]) == 2


def test_a_request_that_failed_may_be_repeated_with_its_key(operator):
    headers = {"Idempotency-Key": uuid4().hex}
    name = f"m-{uuid4().hex[:8]}"
    wrong = operator.post("/machines", json={"project": "ours", "prompt": " ", "name": name}, headers=headers)
    assert wrong.status_code == 400
    right = operator.post("/machines", json={"project": "ours", "prompt": "x", "name": name}, headers=headers)
    assert right.status_code == 201


def test_what_has_not_changed_is_not_sent_again(admin):
    first = admin.get("/projects/theirs")
    tag = first.headers["etag"]
    again = admin.get("/projects/theirs", headers={"If-None-Match": f'"other", W/{tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert (
        admin.patch("/projects/theirs", json={"description": uuid4().hex}, headers={"If-Match": tag}).status_code == 200
    )
    assert admin.get("/projects/theirs", headers={"If-None-Match": tag}).status_code == 200
    late = admin.patch("/projects/theirs", json={"description": "x"}, headers={"If-Match": tag})
    assert (late.status_code, late.json()["error"]["code"]) == (412, "precondition_failed")


def test_what_can_be_read_by_itself_is_removed_only_as_it_was_read(people, admin):
    """All that there is: a path whose If-Match nobody looks at would remove what somebody has changed."""
    document = admin.get(f"{people.url}/openapi.json").json()["paths"]
    for path, operations in document.items():
        for method in operations.keys() & {"patch", "delete"} if "get" in operations else ():
            parameters = {one["name"] for one in operations[method]["parameters"]}
            assert "If-Match" in parameters, (method, path)
    made = admin.post("/keys", json={"name": "short", "scope": "read"}).json()
    path = f"/keys/{made['prefix']}"
    assert admin.delete(path, headers={"If-Match": '"another"'}).status_code == 412
    tag = admin.get(path).headers["etag"]
    assert admin.delete(path, headers={"If-Match": tag}).status_code == 200


def test_pages_hold_everything_once(people, admin):
    with people.session() as session:
        project = world.project(session, f"many-{uuid4().hex[:6]}", "100")
        names = {machines.spawn(session, people.settings, project=project, prompt="x").name for _ in range(7)}
    for number in range(4):
        assert admin.post("/keys", json={"name": f"key {number}", "scope": "read"}).status_code == 201
    for path, key in (
        (f"/machines?project={project.name}", "name"),
        ("/keys?", "uuid"),
        ("/audit?", "id"),
        ("/users?", "name"),
    ):
        found, cursor = [], ""
        while cursor is not None:
            page = admin.get(f"{path}&limit=3{cursor and f'&cursor={cursor}'}").json()
            assert len(page["items"]) <= 3
            found += [row[key] for row in page["items"]]
            cursor = page["next_cursor"]
        assert len(found) == len(set(found)) >= 3
        if "machines" in path:
            assert set(found) == names


def test_a_list_says_of_a_machine_what_its_own_page_does(people, operator):
    said = {"current_progress": 'half "way", é\n', "api_calls": 3, "max_cad": Decimal("1.5")}
    name = people.machine("ours", f"m-{uuid4().hex[:8]}", **said).name
    (listed,) = operator.get(f"/machines?name={name}").json()["items"]
    full = operator.get(f"/machines/{name}").json()
    assert listed["max_cad"] == full["max_cad"] == "1.500000000"
    models = [schemas.Machine.model_validate(one).model_dump() for one in (listed, full)]
    assert models[0] == {key: models[1][key] for key in models[0]}
    assert list(listed) == list(schemas.Machine.model_fields)


def test_an_unknown_idempotency_key_form_is_refused(operator):
    body = {"project": "ours", "prompt": "x"}
    answer = operator.post("/machines", json=body, headers={"Idempotency-Key": "k" * 256})
    assert answer.status_code == 400


def events_of(lines):
    """(event, data) of a stream's lines."""
    kind = None
    for line in lines:
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield kind, json.loads(line.removeprefix("data: "))


def test_a_machine_is_followed_as_it_speaks_and_ends(people, operator):
    machine = people.machine("ours", f"m-{uuid4().hex[:8]}")
    with operator.stream("GET", f"/machines/{machine.name}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        stream = events_of(answer.iter_lines())
        assert next(stream)[0] in ("log", "status")
        with people.session() as session:
            machines.say(session, machine.uuid, "first words")
        said = next(data for kind, data in stream if kind == "log" and data["text"] == "first words")
        with people.session() as session:
            machines.terminate(session, people.settings, session.get_one(Machine, machine.uuid))
            world.do(session, people.settings, kind="terminate", carrier="template")
        seen = list(stream)
    kinds = [kind for kind, _ in seen]
    assert kinds[-1] == "end"
    assert "operation" in kinds
    assert seen[-1][1]["status"] == "terminated"
    # Who comes again goes on after what it has seen.
    with operator.stream(
        "GET", f"/machines/{machine.name}/events", headers={"Last-Event-ID": str(said["id"])}
    ) as answer:
        again = list(events_of(answer.iter_lines()))
    assert "first words" not in [data.get("text") for _, data in again]


def test_a_line_is_told_that_was_written_before_another_and_comes_after_it(people, operator):
    machine = people.machine("ours", f"m-{uuid4().hex[:8]}")
    with operator.stream("GET", f"/machines/{machine.name}/events") as answer:
        stream = events_of(answer.iter_lines())
        next(stream)
        with people.session() as slow:
            machines.say(slow, machine.uuid, "slow")
            slow.flush()
            with people.session() as quick:
                machines.say(quick, machine.uuid, "quick")
            texts = [next(data["text"] for kind, data in stream if kind == "log" and data["text"] in ("slow", "quick"))]
        with people.session() as session:
            machines.say(session, machine.uuid, "last")
        while texts[-1] != "last":
            texts += [next(data["text"] for kind, data in stream if kind == "log")]
    assert [text for text in texts if text in ("slow", "quick")] == ["quick", "slow"]


def test_live_events_come_again_after_the_database_was_started_again(people, operator):
    machine = people.machine("ours", f"m-{uuid4().hex[:8]}")
    others = "datname = current_database() AND pid <> pg_backend_pid()"
    with operator.stream("GET", f"/machines/{machine.name}/events", timeout=events.ALIVE_SECONDS - 3) as answer:
        stream = events_of(answer.iter_lines())
        next(stream)
        with people.session() as session:
            session.execute(sa.text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"))  # noqa: S608
        for text in ("one", "two"):
            with people.session() as session:
                machines.say(session, machine.uuid, text)
            while next(stream)[1].get("text") != text:
                pass


def test_what_is_already_there_is_told_without_waiting(people, operator):
    machine = people.machine("ours", f"m-{uuid4().hex[:8]}")
    with people.session() as session:
        said = [f"line {number}" for number in range(events.LINES + 1)]
        for text in said:
            machines.say(session, machine.uuid, text)
        machines.terminate(session, people.settings, session.get_one(Machine, machine.uuid))
        world.do(session, people.settings, kind="terminate", carrier="template")
    with operator.stream("GET", f"/machines/{machine.name}/events", timeout=events.ALIVE_SECONDS - 3) as answer:
        seen = list(events_of(answer.iter_lines()))
    assert [data["text"] for kind, data in seen if kind == "log" and data["text"] in said] == said
    assert seen[-1][0] == "end"


def test_who_may_follow_no_more_is_told_nothing_more_of_a_machine_that_is_never_silent(people, operator):
    machine = people.machine("ours", f"m-{uuid4().hex[:8]}")
    made = operator.post("/keys", json={"name": "short", "scope": "read"}).json()
    with people.client() as http:
        headers = {"Authorization": f"Bearer {made['key']}"}
        with http.stream("GET", f"/machines/{machine.name}/events", headers=headers) as answer:
            stream = events_of(answer.iter_lines())
            next(stream)
            operator.delete(f"/keys/{made['uuid']}")
            with people.session() as session:
                machines.say(session, machine.uuid, "a secret")
            seen = list(stream)
    assert seen[-1] == ("error", {"code": "unauthenticated", "message": "Nobody is known by that key or token."})
    assert "a secret" not in [data.get("text") for _, data in seen]


def test_all_machines_are_followed_but_not_anothers(people, operator):
    with operator.stream("GET", "/events") as answer:
        stream = events_of(answer.iter_lines())
        next(stream)
        theirs, ours = (people.machine(project, f"m-{uuid4().hex[:8]}") for project in ("theirs", "ours"))
        names = []
        while ours.name not in names:
            names.append(next(stream)[1]["name"])
    assert theirs.name not in names


def test_the_owner_follows_more_machines_at_once_than_others_may():
    streams, ann = events.Streams(), Caller("ann", Level.READ, user_uuid=uuid4())
    for _ in range(events.MOST_OF_ONE):
        streams.take(ann)
        streams.take(LOCAL)
    with pytest.raises(TooManyRequests):
        streams.take(ann)
    streams.take(LOCAL)


def test_the_log_comes_in_pages(people, operator):
    machine = people.machine("ours", f"m-{uuid4().hex[:8]}")
    with people.session() as session:
        for number in range(5):
            machines.say(session, machine.uuid, f"line {number}")
    page = operator.get(f"/machines/{machine.name}/logs?limit=2").json()
    rest = operator.get(f"/machines/{machine.name}/logs?cursor={page['next_cursor']}").json()
    texts = [line["text"] for line in page["items"] + rest["items"]]
    assert [text for text in texts if text.startswith("line")] == [f"line {number}" for number in range(5)]


def test_health_says_what_is_missing(people, admin):
    answer = admin.get(f"{people.url}/health")
    states = {check["name"]: check["state"] for check in answer.json()["checks"]}
    assert (answer.status_code, states["database"], states["notifications"]) == (200, "ok", "ok")
    assert answer.json()["status"] == "degraded"
    assert states["supervisor"] == "warning"


def test_a_hub_whose_machines_nobody_answers_has_failed(api_server, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as machines_:
        port = machines_.getsockname()[1]
        with (
            running(api_server, tmp_path, AUTOVIBE_HUB_PORT=str(port)) as one,
            supervise.held_lock(one.settings),
            one.client() as nobody,
        ):
            well = nobody.get(f"{one.url}/health")
            machines_.close()
            failed = nobody.get(f"{one.url}/health")
    states = [{check["name"]: check["state"] for check in answer.json()["checks"]} for answer in (well, failed)]
    assert (well.status_code, states[0]["machines"], states[0]["supervisor"]) == (200, "ok", "ok")
    assert (failed.status_code, failed.json()["status"], states[1]["machines"]) == (503, "failed", "failed")


def test_health_names_the_jobs_that_are_overdue(people, admin):
    def scheduler():
        checks = admin.get(f"{people.url}/health").json()["checks"]
        return next((check["state"], check["message"]) for check in checks if check["name"] == "scheduler")

    assert scheduler() == ("ok", "nothing is overdue")
    with people.session() as session:
        jobs.succeeded(session, "in time", 3600)
        jobs.failed(session, "too late", 5, "a secret")
    try:
        assert scheduler() == ("warning", "overdue: too late")
    finally:
        with people.session() as session:
            session.execute(sa.delete(SchedulerJob))


def test_metrics_have_their_names(people, admin):
    assert admin.get("/machines/machine-ours").status_code == 200
    with people.client("metrics") as client:
        text = client.get(f"{people.url}/metrics").text
    for name in (
        "autovibe_active_machines_total{",
        "autovibe_budget_allocated{",
        "autovibe_api_duration_seconds_bucket{",
    ):
        assert name in text
    assert 'route="/api/v1/machines/{machine}"' in text
    assert "machine-ours" not in text


def test_only_named_origins_may_call_from_a_browser(people, api_server, tmp_path):
    with (
        running(api_server, tmp_path, AUTOVIBE_API_CORS_ORIGINS='["https://ui.example"]') as one,
        one.client() as client,
    ):
        asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
        ours = client.options("/machines", headers={"Origin": "https://ui.example", **asked})
        other = client.options("/machines", headers={"Origin": "https://evil.example", **asked})
        assert ours.headers["access-control-allow-origin"] == "https://ui.example"
        assert "access-control-allow-origin" not in other.headers
        assert "access-control-allow-credentials" not in ours.headers
        assert one.down() == 0
        assert not one.settings.api_socket.exists()


def test_who_asks_too_often_waits(api_server, tmp_path):
    with running(api_server, tmp_path, AUTOVIBE_API_RATE_LIMIT="5/hour") as one:
        populate(one)
        with one.client("admin") as client, one.client("viewer-ours") as other, one.client("local") as local:
            answers = [client.get("/me") for _ in range(6)]
            assert [answer.status_code for answer in answers] == [200] * 5 + [429]
            assert int(answers[-1].headers["retry-after"]) > 1
            assert other.get("/me").status_code == 200
            assert [local.get("/me").status_code for _ in range(6)] == [200] * 6


@pytest.mark.parametrize("bind", ["0.0.0.0", "192.0.2.1", "::", "hub.example"])  # noqa: S104
def test_it_listens_in_public_with_tls_or_an_explicit_word(tmp_path, bind):
    with pytest.raises(CannotListen, match="without TLS"):
        listening.check_bind(load_settings(state_dir=tmp_path, api_bind=bind, api_tls=False))
    listening.check_bind(load_settings(state_dir=tmp_path, api_bind=bind))
    listening.check_bind(load_settings(state_dir=tmp_path, api_bind=bind, api_tls=False, api_insecure=True))
    listening.check_bind(load_settings(state_dir=tmp_path, api_bind="127.0.0.1", api_tls=False))


def test_the_socket_is_its_owners_and_one_process_serves_it(tmp_path):
    path = tmp_path / ("long-" * 20) / ("folder-" * 10) / "api.sock"
    with server.local_socket(path):
        assert path.stat().st_mode & 0o777 == 0o600
        assert server.answers(path)
        with pytest.raises(CannotListen, match="Another process"), server.local_socket(path):
            pass
    assert not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    stale = socket.socket(socket.AF_UNIX)
    with server.short(path) as name:
        stale.bind(name)
    stale.close()
    with server.local_socket(path):
        assert server.answers(path)
