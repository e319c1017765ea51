"""What a client sees on the wire: status, reason phrase, body, delay."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
import requests
from autovibe_lab.auth import TOKEN_ID
from autovibe_lab.tests.testing import LabInThread
from proxmoxer import ProxmoxAPI


class Raw:
    """Calls without a client library."""

    def __init__(self, lab: LabInThread) -> None:
        self.lab = lab
        self.session = requests.Session()
        self.certificate = str(lab.state / "ca.pem")
        self.session.headers["Authorization"] = f"PVEAPIToken={TOKEN_ID}={lab.lab.secrets.token_secret}"

    def __call__(self, method: str, path: str, **options: object) -> requests.Response:
        return self.session.request(
            method, f"{self.lab.url}/api2/json{path}", timeout=30, verify=self.certificate, **options
        )


@pytest.fixture
def raw(lab):
    return Raw(lab)


def test_errors_stand_in_body_and_reason(raw):
    missing = raw("GET", "/nodes/pve1/qemu/4242/config")
    message = "Configuration file 'nodes/pve1/qemu-server/4242.conf' does not exist"
    assert (missing.status_code, missing.reason) == (500, message)
    assert missing.json() == {"data": None, "message": message + "\n"}


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/nope", 501, "Method 'GET /nope' not implemented"),
        ("POST", "/version", 501, "Method 'POST /version' not implemented"),
        ("PATCH", "/version", 501, "method 'PATCH' not available"),
        (
            "POST",
            "/nodes/pve1/qemu/100/status/fly",
            501,
            "Method 'POST /nodes/pve1/qemu/100/status/fly' not implemented",
        ),
        ("POST", "/nodes/pve1/qemu/4242/clone?newid=1", 400, "Parameter verification failed."),
        ("GET", "/nodes/pve1/storage/nope/content", 500, "storage 'nope' does not exist"),
        ("GET", "/pools/nope", 500, "pool 'nope' does not exist"),
    ],
)
def test_what_is_not_there(raw, method, path, status, reason):
    response = raw(method, path)
    assert (response.status_code, response.reason) == (status, reason)


@pytest.mark.parametrize(
    ("path", "params", "errors"),
    [
        ("/nodes/pve1/qemu/abc/config", {}, {"vmid": "type check ('integer') failed - got 'abc'"}),
        ("/nodes/pve1/qemu/99/config", {}, {"vmid": "invalid format - value does not look like a valid VM ID\n"}),
        (
            "/version",
            {"bogus": 1},
            {"bogus": "property is not defined in schema and the schema does not allow additional properties"},
        ),
        ("/cluster/nextid", {"vmid": ["100", "101"]}, {"vmid": "type check ('integer') failed - got ARRAY"}),
        (
            "/cluster/resources",
            {"type": "bogus"},
            {"type": "value 'bogus' does not have a value in the enumeration 'vm, storage, node, sdn'"},
        ),
        ("/nodes/pve1/tasks/rubbish/status", {}, {"upid": "unable to parse worker upid"}),
        ("/nodes/pve1/storage/nope/status", {}, {"storage": "No such storage."}),
    ],
)
def test_wrong_parameters_are_named(raw, path, params, errors):
    response = raw("GET", path, params=params)
    assert response.status_code == 400
    assert response.json() == {"data": None, "message": "Parameter verification failed.\n", "errors": errors}


def test_every_wrong_parameter_is_named_at_once(raw):
    given = {"vmid": 100, "cores": "many", "memory": 4, "bogus": 1, "name": "bad name", "net0": "foo=bar"}
    errors = raw("POST", "/nodes/pve1/qemu", data=given).json()["errors"]
    assert set(errors) == set(given) - {"vmid"}
    assert errors["memory"] == "invalid format - format error\nmemory.current: value must have a minimum value of 16\n"
    assert errors["net0"].endswith("net0.model: property is missing and it is not optional\n")


def test_form_booleans_are_strict_and_json_ones_are_not(raw, client):
    client.create()
    for value in ("True", "true", "yes"):
        refused = raw("PUT", "/nodes/pve1/qemu/100/config", data={"onboot": value})
        assert refused.json()["errors"] == {"onboot": f"type check ('boolean') failed - got '{value}'"}
    assert raw("PUT", "/nodes/pve1/qemu/100/config", json={"onboot": True}).status_code == 200
    assert client.node.qemu(100).config.get()["onboot"] == 1


def test_bodies_that_are_refused(raw):
    response = raw("DELETE", "/nodes/pve1/qemu/4242", json={"purge": 1})
    assert (response.status_code, response.text) == (501, "Unexpected content for method 'DELETE'")
    assert raw("POST", "/nodes/pve1/qemu", data="vmid=199", headers={"Content-Type": "text/plain"}).status_code == 506
    assert raw("POST", "/nodes/pve1/qemu", data="{", headers={"Content-Type": "application/json"}).status_code == 500


@pytest.mark.parametrize(
    "header",
    [{}, {"Authorization": "PVEAPIToken=a@pve!b=c"}, {"Authorization": "rubbish"}, {"Cookie": "PVEAuthCookie=x"}],
)
def test_nobody_is_let_in_without_a_secret(lab, header):
    certificate = str(lab.state / "ca.pem")
    response = requests.get(f"{lab.url}/api2/json/version", headers=header, verify=certificate, timeout=30)
    assert (response.status_code, response.content) == (401, b"")


def test_a_refusal_takes_its_time(tmp_path: Path):
    lab = LabInThread(tmp_path / "slow", login_delay=0.3)
    began = time.monotonic()
    requests.get(f"{lab.url}/api2/json/version", verify=str(lab.state / "ca.pem"), timeout=30)
    assert time.monotonic() - began >= 0.3
    lab.close()


def test_root_by_ticket_needs_the_csrf_token(lab):
    certificate = str(lab.state / "ca.pem")
    options = {"port": lab.lab.port, "user": "root@pam", "verify_ssl": certificate}
    api = ProxmoxAPI("127.0.0.1", password=lab.lab.secrets.root_password, **options)
    api.pools.post(poolid="mine")
    assert [pool["poolid"] for pool in api.pools.get()] == ["mine"]
    ticket = requests.post(
        f"{lab.url}/api2/json/access/ticket",
        data={"username": "root@pam", "password": lab.lab.secrets.root_password},
        verify=certificate,
        timeout=30,
    ).json()["data"]
    without = requests.post(
        f"{lab.url}/api2/json/pools",
        data={"poolid": "other"},
        cookies={"PVEAuthCookie": ticket["ticket"]},
        verify=certificate,
        timeout=30,
    )
    assert (without.status_code, without.reason) == (401, "Permission denied - invalid csrf token")
    wrong = requests.post(
        f"{lab.url}/api2/json/access/ticket",
        data={"username": "root@pam", "password": "no"},
        verify=certificate,
        timeout=30,
    )
    assert wrong.json() == {"data": None, "message": "authentication failure\n"}


def test_only_root_may_set_args(client, raw):
    client.create()
    assert raw("PUT", "/nodes/pve1/qemu/100/config", data={"args": "-foo"}).reason == "only root can set 'args' config"
    refused = raw("DELETE", "/nodes/pve1/qemu/100", params={"skiplock": 1})
    assert refused.json()["errors"] == {"skiplock": "Only root may use this option."}


def test_plain_http_is_sent_to_https(lab):
    address = lab.url.removeprefix("https")
    session = requests.Session()
    session.trust_env = False
    response = session.get(f"http{address}/api2/json/version", allow_redirects=False, timeout=30)
    assert (response.status_code, response.reason) == (301, "Moved Permanently")
    assert response.headers["Location"] == f"{lab.url}/api2/json/version"


def test_a_client_that_says_nothing_holds_nobody_up(lab, raw):
    with socket.create_connection(("127.0.0.1", lab.lab.port)):
        assert raw("GET", "/version").status_code == 200


def test_the_form_for_the_web_interface_is_always_a_200(raw):
    url = f"{raw.lab.url}/api2/extjs/cluster/nextid"
    refused = raw.session.get(url, params={"vmid": 99}, verify=raw.certificate, timeout=30)
    assert refused.status_code == 200
    assert refused.json() | {"errors": {}} == {
        "data": None,
        "success": 0,
        "status": "400",
        "message": "Parameter verification failed.\n",
        "errors": {},
    }
    fine = raw.session.get(url, verify=raw.certificate, timeout=30)
    assert fine.json() == {"data": "100", "success": 1}


def test_a_body_that_is_no_json_is_told_as_perl_tells_it(raw):
    broken = raw("POST", "/nodes/pve1/qemu", data='{"vmid": ', headers={"Content-Type": "application/json"})
    said = "malformed JSON string, neither tag, array, object, number, string or atom, at character offset 9"
    assert (broken.status_code, broken.text.partition(" (before")[0]) == (500, said)
