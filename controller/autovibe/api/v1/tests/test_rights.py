"""Logins, keys, secrets: what lets somebody in, and what ends it."""

import time
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID, uuid4

import jwt
import pytest
import sqlalchemy as sa
from autovibe import apikeys, db, logins, passwords, projects, signing, tokens, users
from autovibe.access import Unauthenticated
from autovibe.api.tests.conftest import wait_until
from autovibe.api.v1.tests.conftest import running
from autovibe.models import ApiKey, AuditLine, LoginFailure, LoginSession, User
from autovibe.settings import load_settings
from sqlalchemy.exc import DBAPIError

PASSWORD = "correct horse battery"


@pytest.fixture
def user(people):
    with people.session() as session:
        return users.create(session, f"u-{uuid4().hex[:8]}", role="operator", password=PASSWORD)


@pytest.fixture
def http(people):
    with people.client() as client:
        yield client


def login(http, name, password=PASSWORD):
    return http.post("/auth/login", json={"name": name, "password": password})


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def code(answer):
    return answer.json()["error"]["code"]


def test_a_login_lets_in_until_it_is_ended(people, http, user):
    made = login(http, user.name).json()
    me = http.get("/me", headers=bearer(made["access_token"])).json()
    assert (me["name"], me["level"], me["projects"]) == (user.name, "operate", [])
    out = http.post("/auth/logout", headers=bearer(made["access_token"]))
    assert out.status_code == 204
    with people.session() as session:
        line = session.scalars(sa.select(AuditLine).where(AuditLine.request_id == out.headers["x-request-id"])).one()
        assert (line.action, line.actor) == ("logout", user.name)
    assert http.get("/me", headers=bearer(made["access_token"])).status_code == 401
    assert http.post("/auth/refresh", json={"refresh_token": made["refresh_token"]}).status_code == 401
    with people.client("admin") as admin:
        lines = admin.get(f"/audit?actor={user.name}").json()["items"]
    assert [line["action"] for line in lines] == ["logout", "login"]
    assert made["access_token"] not in str(lines)


def test_a_refresh_token_is_good_once_and_its_copy_ends_the_session(http, user):
    first = login(http, user.name).json()
    second = http.post("/auth/refresh", json={"refresh_token": first["refresh_token"]}).json()
    assert http.get("/me", headers=bearer(second["access_token"])).status_code == 200
    assert http.post("/auth/refresh", json={"refresh_token": first["refresh_token"]}).status_code == 401
    assert http.get("/me", headers=bearer(second["access_token"])).status_code == 401
    assert http.post("/auth/refresh", json={"refresh_token": second["refresh_token"]}).status_code == 401


def test_refreshes_and_what_ends_a_session_are_written_down(people, http, user):
    first = login(http, user.name).json()
    good = http.post("/auth/refresh", json={"refresh_token": first["refresh_token"]})
    bad = http.post("/auth/refresh", json={"refresh_token": first["refresh_token"]})
    late = http.post("/auth/refresh", json={"refresh_token": good.json()["refresh_token"]})
    assert [answer.status_code for answer in (good, bad, late)] == [200, 401, 401]
    with people.client("admin") as admin:
        lines = admin.get("/audit", params={"actor": user.name}).json()["items"]
    assert [(line["action"], line["object_name"], line["object_uuid"]) for line in lines] == [
        (action, user.name, str(user.uuid)) for action in ("end session", "refresh", "login")
    ]
    assert [line["request_id"] for line in lines[:2]] == [bad.headers["x-request-id"], good.headers["x-request-id"]]
    assert {line["address"] for line in lines} == {"127.0.0.1"}
    assert len({line["after"]["session"] for line in lines}) == 1
    assert lines[0]["after"]["reason"] == "a refresh token was shown again"
    for token in (first, good.json()):
        assert token["refresh_token"] not in str(lines)
        assert token["refresh_token"].split("_", 2)[2] not in str(lines)


def test_a_stranger_who_refreshes_ends_nothing_and_has_nobody_looked_up_again(people, user):
    scope, asked = partial(db.session_scope, people.settings), logins.Asked("here", "a-request")
    made = logins.login(scope, people.settings, user.name, PASSWORD, asked)
    known = f"avr_{made.session_uuid.hex}"
    made_up = (f"{known}_", f"{known}_{'a' * 43}", f"{known}_{'a' * 43}.{'b' * 43}", made.refresh_token[:-1] + "!")
    for token in ("x", "", "avr_" + uuid4().hex, f"{uuid4()}.x", f"{known}_\ud800.\ud800", *made_up):
        with pytest.raises(Unauthenticated) as refused:
            logins.refresh(scope, people.settings, token, asked)
        assert not isinstance(refused.value, logins.SessionEnded)
    logins.refresh(scope, people.settings, made.refresh_token, asked)
    with pytest.raises(logins.SessionEnded):
        logins.refresh(scope, people.settings, made.refresh_token, asked)
    with pytest.raises(Unauthenticated) as refused:
        logins.refresh(scope, people.settings, made.refresh_token, asked)
    assert not isinstance(refused.value, logins.SessionEnded)


def test_the_id_of_a_session_is_not_enough_to_end_it(people, http, user):
    made = login(http, user.name).json()
    with people.client("admin") as admin:
        line = admin.get("/audit", params={"actor": user.name}).json()["items"][0]
    made_up = f"avr_{UUID(line['after']['session']).hex}_{'a' * 43}.{'a' * 43}"
    assert http.post("/auth/refresh", json={"refresh_token": made_up}).status_code == 401
    assert http.get("/me", headers=bearer(made["access_token"])).status_code == 200
    assert http.post("/auth/refresh", json={"refresh_token": made["refresh_token"]}).status_code == 200


def test_no_login_with_a_password_that_is_changed_meanwhile(people, user, monkeypatch):
    fits = passwords.fits

    def changed_after(*checked):
        found = fits(*checked)
        with people.session() as session:
            users.change(session, session.get_one(User, user.uuid), password="another good password")
        return found

    monkeypatch.setattr(passwords, "fits", changed_after)
    scope = partial(db.session_scope, people.settings)
    with pytest.raises(logins.BadLogin):
        logins.login(scope, people.settings, user.name, PASSWORD, logins.Asked("here", "a-request"))


@pytest.mark.parametrize("change", [{"disabled": True}, {"password": "another good password"}])
def test_a_user_who_is_disabled_or_gets_another_password_is_out_at_once(people, http, user, change):
    made = login(http, user.name).json()
    assert http.get("/me", headers=bearer(made["access_token"])).status_code == 200
    with people.client("admin") as admin:
        assert admin.patch(f"/users/{user.name}", json=change).status_code == 200
    assert http.get("/me", headers=bearer(made["access_token"])).status_code == 401


def test_a_key_ends_at_once_also_when_another_process_revokes_it(people, http, user):
    with people.session() as session:
        key, secret = apikeys.create(session, user, "one")
    assert http.get("/me", headers=bearer(secret)).status_code == 200
    with people.session() as session:
        apikeys.revoke(session, session.get_one(ApiKey, key.uuid))
    # The database notifies it: milliseconds, where the process would have remembered for seconds.
    began = time.monotonic()
    wait_until(lambda: http.get("/me", headers=bearer(secret)).status_code == 401)
    assert time.monotonic() - began < 5


def test_a_key_ends_by_itself(people, http, user):
    with people.session() as session:
        key, secret = apikeys.create(session, user, "one", days=1)
        session.execute(sa.update(ApiKey).where(ApiKey.uuid == key.uuid).values(expires_at=datetime.now(UTC)))
    assert http.get("/me", headers=bearer(secret)).status_code == 401


def test_a_key_makes_none_that_lives_longer(people, http, user):
    with people.session() as session:
        secret = apikeys.create(session, user, "short", scope="read", days=1)[1]
    headers = {"Authorization": f"Bearer {secret}"}
    mine = http.get("/me", headers=headers).json()["key"]
    end = http.get(f"/keys/{mine}", headers=headers).json()["expires_at"]
    for asked in ({"days": None}, {"days": 90}, {}):
        made = http.post("/keys", json={"name": "another", "scope": "read", **asked}, headers=headers)
        assert (made.status_code, made.json()["expires_at"]) == (201, end)


def test_a_key_ends_itself_and_none_that_may_do_more(people, http, user):
    with people.session() as session:
        scopes = {"wide": "operate", "narrow": "read", "twin": "read"}
        made = {name: apikeys.create(session, user, name, scope=scope) for name, scope in scopes.items()}
    keys = {name: key.uuid for name, (key, _) in made.items()}
    headers = bearer(made["narrow"][1])
    refused = http.delete(f"/keys/{keys['wide']}", headers=headers)
    assert (refused.status_code, code(refused)) == (403, "forbidden")
    assert http.get("/me", headers=bearer(made["wide"][1])).status_code == 200
    for name in ("twin", "narrow"):
        assert http.delete(f"/keys/{keys[name]}", headers=headers).status_code == 200
    assert http.get("/me", headers=headers).status_code == 401


def test_a_key_for_one_project_ends_none_for_another(people, http, user):
    with people.session() as session:
        both = {name: projects.get(session, name) for name in ("ours", "theirs")}
        made = {name: apikeys.create(session, user, name, project=one) for name, one in both.items()}
        everywhere, _ = apikeys.create(session, user, "everywhere", scope="metrics")
    headers = bearer(made["ours"][1])
    for key in (made["theirs"][0], everywhere):
        assert http.delete(f"/keys/{key.uuid}", headers=headers).status_code == 403
    assert http.delete(f"/keys/{made['ours'][0].uuid}", headers=headers).status_code == 200


def test_a_grant_that_is_taken_back_closes_the_project_at_once(people, http, user):
    with people.client("admin") as admin, people.session() as session:
        secret = apikeys.create(session, session.get_one(User, user.uuid), "one")[1]
        session.commit()
        admin.put(f"/projects/ours/grants/{user.name}", json={"role": "viewer"})
        assert http.get("/projects/ours", headers=bearer(secret)).status_code == 200
        assert admin.delete(f"/projects/ours/grants/{user.name}").status_code == 204
        assert http.get("/projects/ours", headers=bearer(secret)).status_code == 404


def test_what_is_no_key_and_no_token_lets_nobody_in(people, http, user):
    made = login(http, user.name).json()["access_token"]
    kid, secret = signing.current(people.settings.state_dir)
    claims = jwt.decode(made, options={"verify_signature": False})

    def forged(by=secret, algorithm="HS256", headers=None, **changes):
        return jwt.encode({**claims, **changes}, by, algorithm=algorithm, headers={"kid": kid, **(headers or {})})

    with people.session() as session:
        key = apikeys.create(session, user, "one")[1]
    assert http.get("/me", headers=bearer(forged())).status_code == 200
    for wrong in (
        "x",
        forged(by="another secret of thirty-two bytes"),
        forged(by=None, algorithm="none"),
        forged(exp=int(time.time()) - 1),
        forged(aud="machine"),
        forged(iss="somebody"),
        forged(sid=str(uuid4())),
        forged(sub=str(uuid4())),
        forged(sid=7),
        forged(headers={"kid": "none"}),
        key[:-1] + ("a" if key[-1] != "a" else "b"),
        key.replace("avk_", "avk-"),
        "avk_aaaaaaaa_" + "a" * 43,
    ):
        answer = http.get("/me", headers=bearer(wrong))
        assert (answer.status_code, code(answer)) == (401, "unauthenticated"), wrong


@pytest.mark.parametrize(
    ("proxies", "counted_for"), [("[]", {"127.0.0.1"}), ('["127.0.0.0/8"]', {"192.0.2.0", "192.0.2.1"})]
)
def test_only_a_proxy_that_is_named_says_where_a_request_comes_from(api_server, tmp_path, proxies, counted_for):
    with running(api_server, tmp_path, AUTOVIBE_API_PROXY=proxies) as one, one.client() as nobody:
        for number in range(2):
            nobody.headers["X-Forwarded-For"] = f"192.0.2.{number}"
            assert login(nobody, "ann", "not it").status_code == 401
        nobody.headers["X-Forwarded-For"] = "x" * 100
        assert login(nobody, "bob", "not it").status_code == 401
        with one.session() as session:
            assert (
                set(session.scalars(sa.select(LoginFailure.address).where(LoginFailure.name == "ann"))) == counted_for
            )


def test_a_body_is_not_read_before_it_is_known_who_sends_it(http):
    answer = http.post("/machines", content=b"{not json", headers=bearer("avk_aaaaaaaa_" + "a" * 43))
    assert answer.status_code == 401


def test_secrets_rotate_and_the_last_one_stays_good(tmp_path):
    first = signing.current(tmp_path)
    assert signing.current(tmp_path) == first
    signing.rotate(tmp_path)
    second = signing.current(tmp_path)
    assert second != first
    assert signing.by_kid(tmp_path, first[0]) == first[1]
    signing.rotate(tmp_path)
    assert signing.by_kid(tmp_path, first[0]) is None
    assert (tmp_path / "hub" / "signing.json").stat().st_mode & 0o777 == 0o600


def test_whoever_guesses_waits_longer_each_time(people):
    transactions = partial(db.session_scope, people.settings)
    name = f"u-{uuid4().hex[:8]}"
    with people.session() as session:
        users.create(session, name, role="viewer", password=PASSWORD)

    def attempt(password, address="192.0.2.1", who=name):
        return logins.login(transactions, people.settings, who, password, logins.Asked(address, "a-request"))

    def pass_the_time():
        with people.session() as session:
            session.execute(sa.update(LoginFailure).values(locked_until=datetime.now(UTC)))

    waits = []
    for _ in range(logins.FREE_TRIES):
        with pytest.raises(Unauthenticated):
            attempt("wrong")
    for _ in range(3):
        with pytest.raises(logins.LoginLocked) as locked:
            attempt(PASSWORD)
        waits.append(locked.value.details["retry_after"])
        pass_the_time()
        with pytest.raises(Unauthenticated):
            attempt("wrong")
    assert waits[0] >= 25
    assert waits[1] >= 1.9 * waits[0]
    assert waits[2] >= 1.9 * waits[1]
    # Nobody locks a user out from elsewhere, and a name that nobody has is locked alike.
    assert attempt(PASSWORD, address="192.0.2.2").user.name == name
    for _ in range(logins.FREE_TRIES):
        with pytest.raises(Unauthenticated):
            attempt("wrong", who="nobody-at-all")
    with pytest.raises(logins.LoginLocked):
        attempt("wrong", who="nobody-at-all")
    pass_the_time()
    assert attempt(PASSWORD).user.name == name
    with people.session() as session:
        assert session.get(LoginFailure, (name, "192.0.2.1")) is None


def test_the_last_admin_stays(people):
    with people.client("admin") as admin:
        for change in ({"role": "viewer"}, {"disabled": True}):
            answer = admin.patch("/users/root", json=change)
            assert (answer.status_code, code(answer)) == (409, "last_admin")


def test_a_weak_password_is_refused(people):
    with people.client("admin") as admin:
        answer = admin.post("/users", json={"name": "weak", "role": "viewer", "password": "short"})
        assert answer.status_code == 400
        assert "short" not in answer.text


def test_a_key_is_shown_once_also_when_the_request_is_repeated(people, user):
    with people.client("admin") as admin:
        ask = partial(
            admin.post, "/keys", json={"name": "k", "user": user.name}, headers={"Idempotency-Key": uuid4().hex}
        )
        first, again = ask().json(), ask().json()
        assert first["key"].startswith(first["prefix"])
        assert again == first | {"key": None}
        shown = admin.get(f"/keys/{first['prefix']}").text
    assert first["key"] not in shown
    kept = sa.text("SELECT count(*) FROM request_replays WHERE answer::text LIKE :key")
    with people.session() as session:
        assert session.scalar(kept, {"key": f"%{first['key']}%"}) == 0


def test_every_change_is_written_down_with_who_and_what(people, user):
    with people.client("admin") as admin:
        was = admin.get("/projects/theirs").json()["description"]
        answer = admin.patch(
            "/projects/theirs", json={"description": "other"}, headers={"X-Request-ID": "my-request-1"}
        )
        before = answer.headers["x-request-id"]
        line = admin.get("/audit", params={"limit": 1}).json()["items"][0]
    assert before == "my-request-1" == line["request_id"]
    assert (line["actor"], line["action"], line["object_name"]) == ("root", "change", "theirs")
    assert (line["before"]["description"], line["after"]["description"]) == (was, "other")
    assert set(line["after"]) <= {"description", "updated_at"}


def test_what_money_and_grants_were_before_is_written_down(people, user):
    daily = "/projects/theirs/budgets/money/daily"
    with people.client("admin") as admin:

        def written(method, path, body=None):
            answer = admin.request(method, path, json=body)
            assert answer.is_success, answer.text
            line = admin.get("/audit", params={"limit": 1}).json()["items"][0]
            assert line["request_id"] == answer.headers["x-request-id"]
            return line

        first = written("PUT", daily, {"amount": "3"})
        assert (first["before"], first["after"]["allocated"]) == (None, "3.000000000")
        second = written("PUT", daily, {"amount": "2"})
        assert (second["before"]["each_period"], second["after"]["each_period"]) == ("3.000000000", "2.000000000")
        assert set(second["before"]) == set(second["after"]) == {"each_period", "allocated", "available"}
        more = written("POST", f"{daily}/top-up", {"amount": "1"})
        assert (more["before"]["allocated"], more["after"]["allocated"]) == ("2.000000000", "3.000000000")
        gone = written("DELETE", daily)
        assert (gone["before"]["allocated"], gone["after"]) == ("3.000000000", None)
        assert {one["object_name"] for one in (first, second, more, gone)} == {"theirs: daily money"}

        grant = f"/projects/theirs/grants/{user.name}"
        assert written("PUT", grant, {"role": "viewer"})["before"] is None
        line = written("PUT", grant, {"role": "operator"})
        assert (line["before"], line["after"]["role"]) == ({"role": "viewer"}, "operator")
        assert written("DELETE", grant)["before"]["role"] == "operator"

        written("PUT", "/pools/money/weekly", {"amount": "9"})
        share = "/pools/money/weekly/limits/theirs"
        assert written("PUT", share, {"floor": "1"})["before"] is None
        line = written("PUT", share, {"floor": "2"})
        assert (line["before"], line["after"]) == ({"floor": "1.000000000"}, {"floor": "2"})
        written("DELETE", "/pools/money/weekly")

        assert written("PUT", "/rates/NOK/CAD", {"rate": "0.13"})["before"] is None
        assert written("PUT", "/rates/NOK/CAD", {"rate": "0.14"})["before"]["rate"].startswith("0.13")


@pytest.mark.parametrize(
    "statement", ["UPDATE audit_log SET actor = 'me'", "DELETE FROM audit_log", "TRUNCATE audit_log"]
)
def test_the_audit_log_only_grows(people, user, statement):
    with people.session() as session:
        session.add(AuditLine(actor="x", request_id="x", action="x", object_type="x"))
        session.flush()
        with pytest.raises(DBAPIError, match="append-only"), session.begin_nested():
            session.execute(sa.text(statement))


def test_a_machine_may_not_even_with_a_fresh_token(people, http):
    from autovibe.models import Machine

    with people.session() as session:
        machine = session.scalars(sa.select(Machine).where(Machine.name == "machine-ours")).one()
        token = tokens.machine_token(machine, people.settings)
    answer = http.get("/machines/machine-ours", headers=bearer(token))
    assert (answer.status_code, code(answer)) == (403, "machine_forbidden")


def test_old_sessions_are_of_no_use(people, http, user):
    made = login(http, user.name).json()
    with people.session() as session:
        past = datetime.now(UTC) - timedelta(seconds=1)
        session.execute(sa.update(LoginSession).where(LoginSession.user_uuid == user.uuid).values(expires_at=past))
    assert http.post("/auth/refresh", json={"refresh_token": made["refresh_token"]}).status_code == 401


def test_the_settings_name_a_rate(people):
    from autovibe.api.v1.doors import parsed_rate
    from autovibe.errors import SettingsError

    with pytest.raises(SettingsError, match="api_rate_limit"):
        parsed_rate("lots", "api_rate_limit")
    assert parsed_rate(load_settings().api_rate_limit, "api_rate_limit").amount == 200
