"""Whatever is sent: one error, in the one form, with the status that the OpenAPI document has."""

import json
import socket
from uuid import uuid4

import pytest


def error_of(answer):
    """The error of an answer, which has the one form."""
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "hint", "details", "request_id", "time"}
    assert error["request_id"] == answer.headers["x-request-id"]
    assert error["message"].isprintable()
    assert len(error["message"]) < 400
    assert error["message"] not in ("Not Found", "Method Not Allowed")
    return error


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/machines/nobody", None, 404),
        ("GET", "/machines/%00", None, 404),
        ("GET", "/machines/%0a", None, 404),
        ("GET", "/machines/%20", None, 404),
        ("GET", "/machines/a%0Ab", None, 404),
        ("GET", "/machines/%ff", None, 404),
        ("GET", "/machines/" + "a" * 10_000, None, 404),
        ("GET", "/machines/a/b", None, 404),
        ("GET", "/machines/machine-ours%2Flogs", None, 404),
        ("GET", "/machines/", None, 404),
        ("GET", "/machines/%2F", None, 404),
        ("POST", "/machines/machine-ours%2Fterminate", None, 405),
        ("GET", "/projects/a%2Fb/usage", None, 404),
        ("GET", "/checkpoints/..%2f..", None, 404),
        ("GET", "/machines/..%2f..%2fetc", None, 404),
        ("GET", "/machines?limit=0", None, 400),
        ("GET", "/machines?limit=x", None, 400),
        ("GET", "/machines?cursor=x", None, 400),
        ("GET", "/machines?cursor=WyJhIiwiYiJd", None, 400),
        ("GET", "/machines?cursor=" + "a" * 300, None, 400),
        ("GET", "/machines?status=dead", None, 400),
        ("GET", "/machines?name=%00", None, 200),
        ("GET", "/operations/x", None, 400),
        ("GET", "/operations/00000000-0000-4000-8000-000000000000", None, 404),
        ("GET", "/usage/sums?by=colour", None, 400),
        ("GET", "/usage/sums?by=day&since=tomorrow", None, 400),
        ("GET", "/usage/sums?by=day&since=0.0", None, 400),
        ("GET", "/reconciliation?first=0&last=86400", None, 400),
        ("PUT", "/rates/USD/CAD", {"rate": "1.4", "on": 86400}, 400),
        ("GET", "/nothing", None, 404),
        ("PUT", "/machines", {}, 405),
        ("POST", "/machines", b"{not json", 400),
        ("POST", "/machines", b'{"project": "theirs", "project": "ours", "prompt": "x"}', 400),
        ("POST", "/machines", b'{"project": "ours", "prompt": "x", "limits": {"cores": 1, "cores": 2}}', 400),
        ("POST", "/machines", b'{"project": "ours", "prompt": "x", "max_cad": NaN}', 400),
        ("POST", "/machines", b'{"project": "ours", "prompt": "x", "max_cad": ' + b"1" * 5000 + b"}", 400),
        ("POST", "/machines", b'{"project": ' + b"[" * 100_000, 400),
        ("POST", "/machines", b"", 400),
        ("POST", "/machines", b"\xff\xfe", 400),
        ("POST", "/machines", b'{"project": "ours", "prompt": "\\u0000"}', 400),
        ("POST", "/machines", b'{"project": "ours", "prompt": "\\ud800"}', 400),
        ("POST", "/machines", [], 400),
        ("POST", "/machines", {"project": "ours"}, 400),
        ("POST", "/machines", {"project": "ours", "prompt": "x", "promt": "y"}, 400),
        ("POST", "/machines", {"project": "ours", "prompt": "x", "type": "hal"}, 400),
        ("POST", "/machines", {"project": "ours", "prompt": "x", "limits": {"cores": 10**9}}, 400),
        ("POST", "/machines", {"project": "ours", "prompt": "x", "limits": {"cores": "many"}}, 400),
        ("POST", "/machines", {"project": "ours", "prompt": "x", "max_cad": "a lot"}, 400),
        ("POST", "/machines", {"project": "ours", "prompt": "x", "max_cad": "0.000001"}, 400),
        ("POST", "/machines", {"project": "nowhere", "prompt": "x"}, 404),
        ("POST", "/machines", {"project": "ours", "prompt": "x", "checkpoint": "deadbeef"}, 404),
        ("GET", "/checkpoints/deadbeef/diff?to=deadbeef", None, 404),
        ("GET", "/checkpoints/deadbeef/diff", None, 400),
        ("GET", "/tree?project=nowhere", None, 404),
        ("GET", "/tree/drawing?form=png", None, 400),
        ("PATCH", "/projects/ours/policy", {"made": {"seconds": -1}}, 400),
        ("PATCH", "/projects/ours/policy", {"made": {"minutes": 1}}, 400),
        ("PUT", "/pools/money/total", {"amount": "1"}, 400),
        ("PUT", "/pools/cpu/daily", {"amount": "1"}, 400),
        ("DELETE", "/pools/money/weekly", None, 404),
        ("PUT", "/pools/money/weekly/limits/ours", {"floor": "2", "cap": "1"}, 400),
        ("PUT", "/rates/dollars/CAD", {"rate": "1"}, 400),
        ("PUT", "/rates/CAD/CAD", {"rate": "1"}, 400),
        ("PUT", "/rates/EUR/CAD", {"rate": "0"}, 400),
        ("GET", "/prices?on=tomorrow", None, 400),
        ("GET", "/reconciliation?first=2026-01-01&last=2026-01-02", None, 400),
        ("GET", "/reconciliation?first=0001-01-01&last=9999-12-31", None, 400),
        ("POST", "/machines", {"project": "ours", "prompt": "x", "checkpoint_policy": {"calls": "few"}}, 400),
        (
            "POST",
            "/machines",
            {"project": "ours", "prompt": "x", "files": [{"path": "../up", "content_base64": ""}]},
            400,
        ),
        (
            "POST",
            "/machines",
            {"project": "ours", "prompt": "x", "files": [{"path": "/etc/x", "content_base64": ""}]},
            400,
        ),
        ("POST", "/machines", {"project": "ours", "prompt": "x", "files": [{"path": "a", "content_base64": "%"}]}, 400),
        (
            "POST",
            "/machines",
            {"project": "ours", "prompt": "x", "files": [{"path": "a", "content_base64": "", "mode": "9"}]},
            400,
        ),
        ("POST", "/projects", {"name": "ours", "budget": "1"}, 409),
        ("POST", "/projects", {"name": "n", "budget": "NaN"}, 400),
        ("POST", "/projects", {"name": "n", "budget": "1e400"}, 400),
        ("POST", "/projects", {"name": "n", "budget": -1}, 400),
        ("POST", "/projects", {"name": "n", "budget": "0.0000000001"}, 400),
        ("POST", "/projects", {"name": "n", "budget": "1", "time_zone": "Mars/Olympus"}, 400),
        ("POST", "/projects", {"name": "n", "budget": "1", "greediness": 2}, 400),
        ("PATCH", "/projects/ours", {"status": "archived"}, 409),
        ("PATCH", "/projects/ours", {"status": "gone"}, 400),
        ("PUT", "/projects/ours/budgets/gold/total", {"amount": "1"}, 400),
        ("DELETE", "/projects/ours/budgets/cpu/daily", None, 404),
        ("POST", "/users", {"name": "UPPER", "role": "viewer"}, 400),
        ("POST", "/users", {"name": "root", "role": "viewer"}, 409),
        ("PUT", "/projects/ours/grants/nobody", {"role": "viewer"}, 404),
        ("POST", "/keys", {"name": "x", "days": 0, "user": "root"}, 400),
        ("POST", "/keys", {"name": "x", "user": "nobody"}, 404),
    ],
)
def test_bad_input_is_one_error_in_one_form(admin, method, path, body, status):
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    answer = admin.request(method, path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    if status < 400:
        return
    error_of(answer)


def test_a_body_that_is_too_large_is_refused_sooner_from_a_stranger(people, admin):
    with people.client() as nobody:
        for who, path, size in ((admin, "/machines", 13 << 20), (nobody, "/auth/login", 17 << 10)):
            answer = who.post(path, content=b" " * size)
            assert (answer.status_code, error_of(answer)["code"]) == (413, "too_large")


@pytest.mark.parametrize("who", ["nobody", "somebody", "machine-ours"])
def test_who_shows_no_good_key_is_answered_before_what_is_sent_is_read(people, who):
    shown = {"nobody": "", "somebody": "avk_aaaaaaaa_" + "a" * 43} | people.keys
    head = f"POST /api/v1/machines HTTP/1.1\r\nHost: hub\r\nContent-Length: {12 << 20}\r\n"
    head += f"Content-Type: application/json\r\nAuthorization: Bearer {shown[who]}\r\n\r\n"
    plain = socket.create_connection(("127.0.0.1", people.port), timeout=10)
    with people.tls().wrap_socket(plain, server_hostname="127.0.0.1") as sent:
        sent.sendall(head.encode() + b"{")
        assert sent.recv(12) == (b"HTTP/1.1 403" if who == "machine-ours" else b"HTTP/1.1 401")


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (None, b'{"project": "ours", "prompt": "x"}'),
        ("text/plain", b'{"project": "ours", "prompt": "x"}'),
        ("application/x-www-form-urlencoded", b"project=ours"),
        ("application/xml", b"<project/>"),
        ("multipart/form-data; boundary=x", b"--x--"),
        ("application/jsonp", b"{}"),
    ],
)
def test_a_body_that_is_not_said_to_be_json_is_not_guessed_at(admin, kind, content):
    answer = admin.post("/machines", content=content, headers={"Content-Type": kind} if kind else {})
    assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_media_type")
    assert "application/json" in error_of(answer)["hint"]


def test_json_may_say_more_about_itself_and_no_body_needs_to_say_what_it_is(admin):
    content = json.dumps({"project": "ours", "prompt": "x"}).encode()
    for kind in ("application/json; charset=utf-8", "Application/JSON", "application/merge-patch+json"):
        assert admin.post("/machines", content=content, headers={"Content-Type": kind}).status_code == 201
    assert admin.post("/machines/nobody/terminate").status_code == 404


def test_a_name_of_another_form_is_told_what_the_form_is(admin, people):
    machine = {"project": "ours", "prompt": "x", "name": "Bad Name"}
    for path, body in (("/machines", machine), ("/users", {"name": "Bad Name", "role": "viewer"})):
        error = error_of(admin.post(path, json=body))
        assert error["message"].startswith("name: a name has a-z, 0-9")
        assert error["details"]["problems"][0]["problem"] in error["message"]
    schemas = admin.get(f"{people.url}/openapi.json").json()["components"]["schemas"]
    assert schemas["UserNew"]["properties"]["name"]["pattern"].startswith("^[a-z0-9]")


def test_what_is_possible_with_a_path_is_said(admin):
    for method, path, possible in (
        ("PUT", "/machines", "GET, POST"),
        ("HEAD", "/machines", "GET, POST"),
        ("OPTIONS", "/projects/ours", "DELETE, GET, PATCH"),
        ("POST", "/projects/a%2Fb", "DELETE, GET, PATCH"),
    ):
        answer = admin.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, possible)
        if method != "HEAD":
            error = error_of(answer)
            assert error["code"] == "method_not_allowed"
            assert possible in error["hint"]


def test_a_slash_in_a_name_is_not_one_of_the_path(people, admin):
    name = f"a/b {uuid4().hex[:6]}"
    assert admin.post("/projects", json={"name": name, "budget": "1"}).status_code == 201
    path = "/projects/" + name.replace("/", "%2F").replace(" ", "%20")
    assert admin.get(path).json()["name"] == name
    assert admin.get(f"{path}/usage").json()["project"] == name
    assert error_of(admin.get(path.replace("%2F", "/")))["message"].startswith("There is no path /api/v1/projects/a/b")
    # A name that ends like another path does not reach that.
    answer = admin.get("/machines/machine-ours%2Flogs")
    assert error_of(answer)["message"] == "There is no machine machine-ours/logs"


def test_every_path_that_takes_a_body_documents_what_is_wrong_with_one(admin, people):
    document = admin.get(f"{people.url}/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            wanted = {"400", "413", "415"} if "requestBody" in operation else set()
            assert wanted <= operation["responses"].keys(), (method, path)
            assert "422" not in operation["responses"]
