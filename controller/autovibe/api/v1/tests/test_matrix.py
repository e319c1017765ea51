"""Every path x every role x one's own project and another's. The paths are the application's: none can be forgotten."""

from dataclasses import dataclass
from uuid import UUID, uuid4

import pytest
from autovibe import access, apikeys, projects, users
from autovibe.access import Level
from autovibe.api.v1.app import create_app
from autovibe.api.v1.openapi import api_routes
from autovibe.models import ApiKey, AuditLine, Machine, Operation
from autovibe.settings import load_settings
from autovibe.tests import world
from sqlalchemy import func, select, update

#: Paths that need nobody: they say who somebody is, or whether the hub is well.
OPEN = {("POST", "/api/v1/auth/login"), ("POST", "/api/v1/auth/refresh"), ("GET", "/health")}
#: A body that is right, for each path that takes one.
BODIES = {
    "POST /machines": {"project": "{project}", "prompt": "build it"},
    "POST /machines/{machine}/terminate": {"reason": "enough"},
    "POST /machines/{machine}/checkpoints": {"description": "now"},
    "POST /machines/{machine}/pause": None,
    "POST /machines/{machine}/resume": None,
    "POST /projects/{project}/reset": None,
    "POST /machines/{machine}/restore": {"checkpoint": "{checkpoint}"},
    "PATCH /checkpoints/{checkpoint}": {"add_tags": ["good"]},
    "POST /checkpoints/{checkpoint}/verify": None,
    "POST /projects/{project}/verify": None,
    "POST /hub/verify": None,
    "POST /hub/adopt": {"vm_id": 120},
    "POST /hub/checkpoint": {"label": "now"},
    "POST /projects/{project}/prune": None,
    "PATCH /projects/{project}/policy": {"made": {"calls": 9}, "kept": {"days": 9}},
    "PUT /pools/{resource}/{each}": {"amount": "1000000000"},
    "PUT /pools/{resource}/{each}/limits/{project}": {"floor": "1"},
    "PUT /rates/{base}/{quote}": {"rate": "1.5"},
    "POST /reconciliation": {"first": "2026-01-01", "last": "2026-01-02", "fingerprint": "0" * 64},
    "POST /checkpoints/{checkpoint}/machines": {"prompt": "go on"},
    "POST /checkpoints/{checkpoint}/restore": None,
    "POST /projects": {"name": "{new}", "budget": "1"},
    "PATCH /projects/{project}": {"description": "new"},
    "PUT /projects/{project}/budgets/{resource}/{period}": {"amount": "3"},
    "POST /projects/{project}/budgets/{resource}/{period}/top-up": {"amount": "1"},
    "PUT /projects/{project}/grants/{user}": {"role": "viewer"},
    "POST /auth/logout": None,
    "POST /users": {"name": "{new}", "role": "viewer"},
    "PATCH /users/{user}": {"role": "viewer"},
    "POST /keys": {"name": "another", "scope": "metrics"},
    "POST /templates": {"name": "autovibe-guest"},
    "POST /templates/import": {"name": "autovibe-guest"},
}
QUERIES = {
    "GET /usage/sums": {"by": "day", "project": "{project}"},
    "GET /usage/models": {"project": "{project}"},
    "GET /usage/checkpoints": {"project": "{project}"},
    "GET /tree": {"project": "{project}"},
    "GET /tree/drawing": {"project": "{project}"},
    "GET /checkpoints/{checkpoint}/diff": {"to": "{checkpoint}"},
    "GET /reconciliation": {"first": "2026-01-01", "last": "2026-01-02"},
}
#: What an admin does before, where a path needs it.
BEFORE = {
    "DELETE /pools/{resource}/{each}": "PUT /pools/{resource}/{each}",
    "PUT /pools/{resource}/{each}/limits/{project}": "PUT /pools/{resource}/{each}",
}
#: What the machine is, where a path needs it so.
MACHINE = {
    "POST /machines/{machine}/resume": {"status": "paused", "pause_reason": "person"},
    "DELETE /checkpoints/{checkpoint}": {"last_checkpoint_uuid": None},
    "DELETE /projects/{project}": {"status": "terminated"},
}
#: Who does not see all projects may not read these.
OF_ALL = ("/api/v1/pools",)
#: Without a project of one's own named, there is none that one sees.
NAMES_PROJECT = ("/usage/", "/tree")
#: Nothing can be booked here: the hub has no admin key of the provider. `test_reconcile` books.
WITHOUT_KEY = ("/api/v1/reconciliation",)
#: These belong to a project: another project's is not there.
OF_PROJECT = ("project", "machine", "checkpoint", "operation")
#: Who may do no more than read, and who may work, in the project of the test.
READERS, WORKERS = ("viewer", "reader"), ("operator",)
STRANGERS = ("stranger",)


def every_path():
    app = create_app(load_settings(state_dir="/nonexistent"))
    return [(method, route.path, route) for route in api_routes(app) for method in sorted(route.methods)]


PATHS = every_path()


@dataclass
class Place:
    """A project with all that a path can name, and who is in it."""

    names: dict[str, str]
    uuids: set[str]


@pytest.fixture(scope="module")
def clients(people):
    """One client for each role: `viewer`, `operator` and `reader` are granted the project of each test."""
    with people.session() as session:
        for name, role, scope in (
            ("viewer", "viewer", "admin"),
            ("operator", "operator", "admin"),
            ("reader", "operator", "read"),
            ("stranger", "operator", "admin"),
        ):
            user = users.create(session, name, role=role)
            people.keys[name] = apikeys.create(session, user, "matrix", scope=scope)[1]
        world.hub(session, people.settings)
    roles = ("admin", "operator", "viewer", "reader", "stranger", "metrics", "machine-ours")
    found = {role: people.client(role) for role in roles} | {"nobody": people.client(), "local": people.client("local")}
    yield found
    for client in found.values():
        client.close()


@pytest.fixture
def place(people, clients):
    name = f"place-{uuid4().hex[:8]}"
    with people.session() as session:
        project = projects.create(session, name, budget_cad=5)
        for user in ("viewer", "operator", "reader"):
            role = "viewer" if user == "viewer" else "operator"
            users.grant(session, users.find(session, user), project, role)
        somebody = users.create(session, f"user-{uuid4().hex[:8]}", role="viewer")
        users.grant(session, somebody, project, "viewer")
        key = apikeys.create(session, somebody, "spare")[0].prefix
    machine = people.machine(name, f"m-{uuid4().hex[:8]}")
    checkpoint = people.checkpoint(machine)
    with people.session() as session:
        operation = session.scalars(select(Operation.uuid).where(Operation.machine_uuid == machine.uuid)).first()
    names = {
        "project": name,
        "machine": machine.name,
        "checkpoint": str(checkpoint),
        "operation": str(operation),
        "user": somebody.name,
        "key": key,
        "resource": "money",
        "period": "total",
        "each": "daily",
        "base": "EUR",
        "quote": "CAD",
        "new": f"new-{uuid4().hex[:8]}",
    }
    return Place(names, {str(project.uuid), str(machine.uuid), str(checkpoint), str(operation), name, machine.name})


def filled(what, names):
    if isinstance(what, str):
        return what.format(**names) if what.startswith("{") else what
    return {key: filled(value, names) for key, value in what.items()} if isinstance(what, dict) else what


def ask(client, method, path, place, request_id=None):
    """(status, text) of a right request; of a stream only its beginning."""
    short = f"{method} {path.removeprefix('/api/v1')}"
    body, query = filled(BODIES.get(short), place.names), filled(QUERIES.get(short), place.names)
    url = client.base_url.join("/" + path.lstrip("/").format(**place.names))
    headers = {"X-Request-ID": request_id} if request_id else {}
    with client.stream(method, url, json=body, params=query, headers=headers) as answer:
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            return answer.status_code, next(answer.iter_text(), "")
        return answer.status_code, answer.read().decode()


def expected(role, level, path):
    """The statuses that this role may get, and no others."""
    done = {200, 201, 202, 204, 409}
    inside = any(f"{{{name}}}" in path for name in OF_PROJECT)
    if role == "nobody":
        return {401}
    if role == "machine-ours":
        return {403}
    if role in ("admin", "local"):
        # Only a login can log out, and a key needs an owner: both are told so.
        told = ("/api/v1/auth/logout", "/api/v1/keys", *WITHOUT_KEY)
        return done | ({400} if path in told else set())
    if path == "/metrics":
        return done if role == "metrics" else {403}
    if path == "/api/v1/auth/logout":
        return {400}
    if "{key}" in path:
        return {404}
    if level == Level.METRICS:
        return done
    if role == "metrics" or level == Level.ADMIN:
        return {403}
    if level == Level.OPERATE and role in READERS:
        return {403}
    if path in OF_ALL:
        return {403}
    names_one = any(part in path for part in NAMES_PROJECT)
    if role in STRANGERS and (inside or names_one or path == "/api/v1/machines"):
        return {404} if inside or names_one or level == Level.OPERATE else done
    return done


@pytest.mark.parametrize(("method", "path", "route"), PATHS, ids=[f"{method} {path}" for method, path, _ in PATHS])
def test_who_may_do_what(people, clients, place, method, path, route):
    level = getattr(route.endpoint, "level", None)
    if (method, path) in OPEN:
        assert level is None
        return
    assert level is not None, "a path says what it needs: @needs(Level.…)"
    short = f"{method} {path.removeprefix('/api/v1')}"
    if method in ("POST", "PUT", "PATCH"):
        assert short in BODIES, "give this path a right body above"
    if before := BEFORE.get(short):
        put, where = before.split(" ")
        assert ask(clients["admin"], put, f"/api/v1{where}", place)[0] == 200
    if short in MACHINE:
        with people.session() as session:
            mine = Machine.name == place.names["machine"]
            session.execute(update(Machine).where(mine).values(**MACHINE[short]))
    done = []
    for role in ("nobody", "machine-ours", "stranger", "metrics", "viewer", "reader", "operator", "admin", "local"):
        request_id = f"{role}-{uuid4().hex[:12]}"
        status, text = ask(clients[role], method, path, place, request_id)
        # The admin has deleted it before.
        gone = {404} if method == "DELETE" and role == "local" else set()
        assert status in expected(role, level, path) | gone, f"{role}: {status} {text}"
        if role == "stranger" and status < 300:
            assert not [name for name in place.uuids if name in text], "it sees another's project"
        if status < 300:
            done.append(request_id)
    if method != "GET" and path not in (*WITHOUT_KEY, "/api/v1/auth/logout"):
        assert written_down(people, done) == len(done) > 0, "each change is written down in the audit log"


def written_down(people, request_ids):
    """How many of these requests have left a line in the audit log."""
    query = select(func.count(AuditLine.request_id.distinct())).where(AuditLine.request_id.in_(request_ids))
    with people.session() as session:
        return session.scalar(query)


def test_a_key_for_one_project_sees_no_other(people, place):
    with people.session() as session:
        root, project = users.find(session, "root"), projects.get(session, place.names["project"])
        key = apikeys.create(session, root, "one project", scope="admin", project=project)[1]
    people.keys["bound"] = key
    with people.client("bound") as client:
        assert [row["name"] for row in client.get("/projects").json()["items"]] == [place.names["project"]]
        assert client.get("/projects/theirs").status_code == 404
        assert client.get("/users").status_code == 403
        assert client.post("/machines", json={"project": place.names["project"], "prompt": "x"}).status_code == 201
        assert client.post("/keys", json={"name": "wider", "scope": "operate"}).status_code == 403


@pytest.mark.parametrize("role", access.ROLES)
@pytest.mark.parametrize("scope", access.SCOPES)
@pytest.mark.parametrize("granted", [None, *access.GRANTS])
def test_a_right_is_never_more_than_role_scope_and_grant_allow(role, scope, granted):
    project = uuid4()
    grants = {project: granted} if granted else {}
    made = access.caller("somebody", role, grants, scope=scope)
    there = made.level_in(project)
    bounds = [access.ROLES[role], access.SCOPES[scope]]
    assert made.level == min(bounds)
    if role == "admin":
        assert there == min(bounds)
    else:
        assert there == (min(*bounds, access.GRANTS[granted]) if granted else None)
    bound = access.caller("somebody", role, grants, scope=scope, only_project=project)
    assert bound.level <= Level.OPERATE
    assert bound.level_in(UUID(int=1)) is None


def test_no_key_is_kept_in_the_clear(people):
    with people.session() as session:
        hashes = set(session.scalars(select(ApiKey.key_hash)))
    assert not [key for key in people.keys.values() if key in hashes]
    assert all(len(one) == 64 for one in hashes)
